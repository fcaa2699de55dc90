"""Real photographs for tests of codecs."""

import numpy as np
from sklearn.datasets import load_sample_images

from fewstep.latents.codec import as_floats


def photographs(side):
    """Squares of scikit-learn's two photographs, uint8 [N, side, side, 3]."""
    images = np.stack(load_sample_images().images)
    count, rows, columns = len(images), 427 // side, 640 // side
    images = images[:, : rows * side, : columns * side].reshape(count, rows, side, columns, side, 3)
    return images.swapaxes(2, 3).reshape(-1, side, side, 3)


def mean_square_error(decoded, images):
    """Of pixels in [-1, 1], against uint8 images."""
    return float(
        np.mean(np.square(np.asarray(decoded, np.float64) - np.asarray(as_floats(images))))
    )


def psnr(decoded, images):
    """Peak signal-to-noise ratio in dB, with a peak of 2, the range of [-1, 1]."""
    return 10 * np.log10(4 / mean_square_error(decoded, images))
