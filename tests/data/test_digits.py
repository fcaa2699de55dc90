import numpy as np
from sklearn.datasets import load_digits

from fewstep import data


def test_the_splits_are_all_images_once():
    digits = data.load_selection(data.Selection("digits"))
    assert digits.image_shape == (8, 8, 1)
    assert digits.num_classes == 10
    assert (len(digits.train.images), len(digits.test.images)) == (1437, 360)
    rows = np.concatenate([digits.train.images, digits.test.images]).reshape(1797, 64)
    labels = np.concatenate([digits.train.labels, digits.test.labels])
    pixels, classes = load_digits(return_X_y=True)
    exact = pixels * 255 / 16
    assert rows.dtype == np.uint8 and labels.dtype == np.int32
    ours, theirs = np.lexsort((*rows.T, labels)), np.lexsort((*exact.T, classes))
    assert np.abs(rows[ours] - exact[theirs]).max() <= 0.5
    np.testing.assert_array_equal(labels[ours], classes[theirs])


def test_the_split_is_stratified():
    digits = data.load_selection(data.Selection("digits"))
    test = np.bincount(digits.test.labels, minlength=10)
    everything = test + np.bincount(digits.train.labels, minlength=10)
    assert np.abs(test - everything / 5).max() < 1


def test_other_sizes_and_channels():
    digits = data.load_selection(data.Selection("digits", image_size=16, channels=3))
    assert digits.image_shape == digits.test.images.shape[1:] == (16, 16, 3)
    np.testing.assert_array_equal(digits.train.images[..., 0], digits.train.images[..., 2])


def test_the_identity_is_that_of_the_images():
    digits = data.load_selection(data.Selection("digits"))
    assert digits.identity["classes"] == list("0123456789")
    assert digits.identity["splits"]["train"]["count"] == 1437
    assert data.load_selection(data.Selection("digits")).digest == digits.digest
    assert data.load_selection(data.Selection("digits", image_size=16)).digest != digits.digest
