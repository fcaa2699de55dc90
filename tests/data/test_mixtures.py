import numpy as np
import pytest

from fewstep import data
from fewstep.data.mixtures import MIXTURES, mixture_dataset


@pytest.mark.parametrize("name", MIXTURES)
def test_points_have_the_moments_and_shares_of_the_mixture(name):
    mixture, dataset = MIXTURES[name], data.load_selection(data.Selection(f"mixture:{name}"))
    points, modes = dataset.train
    count = len(points)
    mean = mixture.weight @ mixture.mean
    centred = mixture.mean - mean
    covariance = (mixture.weight * centred.T) @ centred
    covariance += mixture.deviation**2 * np.eye(len(mean))
    assert points.dtype == np.float32 and dataset.image_shape == mean.shape
    error = 5 * np.sqrt(np.diag(covariance).max() / count)
    np.testing.assert_allclose(points.mean(axis=0), mean, atol=error)
    np.testing.assert_allclose(np.cov(points, rowvar=False), covariance, atol=2 * error)
    shares = np.bincount(modes, minlength=dataset.num_classes) / count
    np.testing.assert_allclose(shares, mixture.weight, atol=5 / np.sqrt(count))
    spread = points - mixture.mean[modes]
    np.testing.assert_allclose(spread.std(), mixture.deviation, rtol=0.02)


def test_points_are_the_same_every_time_and_differ_between_splits():
    one, other = mixture_dataset("ring"), mixture_dataset("ring")
    assert one.digest == other.digest
    np.testing.assert_array_equal(one.test.images, other.test.images)
    held_out, trained = (set(map(tuple, s.images.tolist())) for s in (one.test, one.train))
    assert not held_out & trained


def test_the_space_is_known_by_the_name():
    assert data.space_of("mixture:cube").shape == (3,)
    assert data.space_of("digits", 8, 1).shape == (8, 8, 1)
    for name in ("none", "tfds:cifar10", "cifar10", "folder:/x"):
        assert data.space_of(name, 32, 3).name == "pixels"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            data.Selection("mixture:rings"),
            "data.name='mixture:rings' is not one of .*did you mean 'mixture:ring'",
        ),
        (data.Selection("mixture:ring", image_size=8), "has points; leave both at 0"),
        (data.Selection("mixture:ring", channels=3), "has points; leave both at 0"),
    ],
)
def test_an_unknown_mixture_is_named(asked, message):
    for function in (data.load_selection, data.prepare_dataset):
        with pytest.raises(ValueError, match=message):
            function(asked)


def test_batches_are_the_points_themselves():
    dataset = mixture_dataset("ring")
    space = data.space_of("mixture:ring")
    batch = next(data.image_batches(dataset.train, start=space.start, batch_size=8, seed=0))
    index = data.batch_indices(len(dataset.train.labels), batch_size=8, seed=0, step=0)
    np.testing.assert_array_equal(batch["x"], dataset.train.images[index])
    np.testing.assert_array_equal(batch["label"], dataset.train.labels[index])
