import numpy as np
import pytest

from fewstep.data.spaces.pixels import pixel_space
from fewstep.eval.published import check_published, choose_part, read_published

SHAPE, D = (8, 8, 1), 64
EYE = np.eye(D)
IMAGES = np.zeros((5, *SHAPE), np.uint8)


def write_npz(folder, arrays):
    np.savez(folder / "reference.npz", **arrays)
    return folder / "reference.npz"


NEGATIVE, ASYMMETRIC = EYE.copy(), EYE.copy()
NEGATIVE[3, 3], ASYMMETRIC[0, 5] = -1.0, 0.5
GOOD = {"mu": np.zeros(D), "sigma": EYE}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, r"has \[\]; it should have mu"),
        ({"mean": np.zeros(D), "cov": EYE}, "has .'cov', 'mean'.; it should have mu"),
        ({"mu": np.zeros(D)}, "has .'mu'.; it should have"),
        ({"mu": np.zeros(D), "arr_0": IMAGES}, "it has mu alone"),
        ({"mu": np.zeros(D, np.float16), "sigma": EYE}, "mu is float16"),
        ({"mu": np.zeros(D, int), "sigma": EYE}, "mu is int64"),
        ({"mu": np.zeros(D), "sigma": EYE.astype(complex)}, "sigma is complex"),
        ({"mu": EYE, "sigma": np.zeros(D)}, "they are swapped"),
        ({"mu": np.zeros(D - 1), "sigma": EYE}, r"mu is \[63\] and sigma \[64, 64\]"),
        ({"mu": np.zeros((1, D)), "sigma": EYE}, r"mu is \[1, 64\]"),
        ({"mu": np.zeros(0), "sigma": np.zeros((0, 0))}, r"mu is \[0\]"),
        ({"mu": np.zeros(D), "sigma": EYE[:, :5]}, r"sigma \[64, 5\]"),
        ({"mu": np.full(D, np.nan), "sigma": EYE}, "not finite"),
        ({"mu": np.zeros(D), "sigma": np.where(EYE, np.inf, 0.0)}, "not finite"),
        ({"mu": np.zeros(D), "sigma": ASYMMETRIC}, "sigma is not symmetric"),
        ({"mu": np.zeros(D), "sigma": NEGATIVE}, "eigenvalue -1, so it is no covariance"),
        ({"mu": np.zeros(D), "sigma": -EYE}, "no covariance"),
        ({"mu": np.zeros(D), "sigma": 0.0 * EYE}, "no covariance"),
        ({"mu": np.zeros(9), "sigma": np.eye(9)}, "9 dimensions, and evaluate.features=pixels has"),
        ({"arr_0": IMAGES.astype(np.float32)}, "arr_0 is float32"),
        ({"arr_0": IMAGES[0]}, r"arr_0 is uint8 \[8, 8, 1\]"),
        ({"arr_0": IMAGES[:1]}, "arr_0 has 1 image"),
        ({"arr_0": np.moveaxis(IMAGES, 3, 1)}, r"arr_0 is uint8 \[5, 1, 8, 8\]"),
        ({"arr_0": IMAGES.repeat(2, 1)}, "images of 16 x 8 x 1, and the run makes 8 x 8 x 1"),
        ({"arr_0": IMAGES.repeat(3, 3), **GOOD}, "images of 8 x 8 x 3"),
        ({"mu": np.array([{}] * D), "sigma": EYE}, "cannot be read"),
    ],
)
def test_a_file_that_is_no_reference_is_named(tmp_path, arrays, message):
    path = write_npz(tmp_path, arrays)
    with pytest.raises(ValueError, match=f"(?s){path}.*{message}"):
        check_published(path, "pixels", pixel_space(SHAPE))


def test_a_covariance_with_errors_of_rounding_is_accepted(tmp_path):
    rows = np.random.default_rng(0).normal(size=(20, D))  # fewer than dimensions: singular
    sigma = np.cov(rows, rowvar=False).astype(np.float32)
    sigma[0, 1] *= 1 + 1e-6
    check_published(
        write_npz(tmp_path, {"mu": rows.mean(0), "sigma": sigma}), "pixels", pixel_space(SHAPE)
    )


@pytest.mark.parametrize(
    ("arrays", "part"),
    [
        (GOOD, "mu"),
        ({**GOOD, "arr_0": IMAGES}, "mu"),
        ({"arr_0": IMAGES}, "arr_0"),
        # As ADM publishes them: Inception's statistics, of two kinds, and the images.
        ({"mu": np.zeros(9), "sigma": np.eye(9), "mu_s": np.zeros(3), "arr_0": IMAGES}, "arr_0"),
    ],
)
def test_statistics_of_the_features_are_used_else_the_images(tmp_path, arrays, part):
    path = write_npz(tmp_path, arrays)
    check_published(path, "pixels", pixel_space(SHAPE))
    assert choose_part(path, read_published(path), "pixels", D) == part


def test_statistics_of_features_whose_size_is_known_are_refused_before_weights_are_read(tmp_path):
    path = write_npz(tmp_path, {"mu": np.zeros(9), "sigma": np.eye(9)})
    for features, size in (("inception", 2048), ("classifier", 64)):
        with pytest.raises(ValueError, match=f"9 dimensions, and .*features={features} has {size}"):
            check_published(path, features, pixel_space(SHAPE))
    check_published(path, "dinov2", pixel_space(SHAPE))  # whose size its weights say
