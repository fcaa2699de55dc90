import numpy as np
import pytest
from sklearn.datasets import load_digits

from eval import agreement
from eval.agreement import fit_classifier, label_agreement

FITTED = 1438


@pytest.fixture(scope="module")
def digits():
    images, labels = load_digits(return_X_y=True)
    images = np.round(images * 255 / 16).astype(np.uint8).reshape(-1, 8, 8, 1)
    order = np.random.default_rng(0).permutation(len(images))
    return images[order], labels[order]


@pytest.fixture(scope="module")
def predict(digits):
    images, labels = digits
    return fit_classifier(images[:FITTED], labels[:FITTED])


def test_held_out_digits_are_recognized(digits, predict):
    images, labels = digits
    assert label_agreement(predict, images[FITTED:], labels[FITTED:]) > 0.97


def test_agreement_is_the_share_of_matching_labels(digits, predict):
    images, labels = digits
    images, wrong = images[:100], labels[:100].copy()
    wrong[:25] = (wrong[:25] + 1) % 10
    assert label_agreement(predict, images, labels[:100]) == 1.0
    assert label_agreement(predict, images, wrong) == 0.75


def test_noise_agrees_by_chance_at_most(predict):
    noise = np.random.default_rng(1).integers(0, 256, (500, 8, 8, 1), dtype=np.uint8)
    assert label_agreement(predict, noise, np.arange(500) % 10) < 0.2


def test_a_large_set_is_cut_to_a_random_subset(digits, monkeypatch):
    # Sorted by class: the first 300 images hold two classes, a random subset holds all ten.
    images, labels = digits
    order = np.argsort(labels, kind="stable")
    monkeypatch.setattr(agreement, "LARGEST_FIT", 300)
    predict = fit_classifier(images[order], labels[order])
    assert 0.9 < label_agreement(predict, images, labels) < 1.0
    again = fit_classifier(images[order], labels[order])
    np.testing.assert_array_equal(predict(images), again(images))


def test_colour_images_with_more_values_than_components():
    rng = np.random.default_rng(2)
    labels = np.arange(150) % 2
    images = rng.integers(0, 100, (150, 8, 8, 3), dtype=np.uint8)
    images[labels == 1, ..., 2] += 100
    predict = fit_classifier(images[:120], labels[:120])
    assert label_agreement(predict, images[120:], labels[120:]) == 1.0


def test_errors_name_what_is_wrong(digits, predict):
    images, labels = digits
    with pytest.raises(ValueError, match=r"labels have shape \[4\] for 5 images"):
        label_agreement(predict, images[:5], labels[:4])
    with pytest.raises(ValueError, match="for 0 images"):
        label_agreement(predict, images[:0], labels[:0])
    with pytest.raises(ValueError, match="2 of 3 labels are the null class"):
        label_agreement(predict, images[:3], np.array([1, -1, -1]))
    with pytest.raises(ValueError, match="1 class"):
        fit_classifier(images[:5], np.zeros(5, int))
    with pytest.raises(ValueError, match="uint8"):
        fit_classifier(images[:5] / 255.0, labels[:5])
