"""The built-in data set: scikit-learn's 1,797 handwritten digits of 8 x 8 pixels.

They are the test part of Alpaydin & Kaynak's "Optical Recognition of Handwritten Digits" (UCI,
1998), with pixels from 0 to 16. A fifth is held out to judge classifiers; `train` and `test`
together are all images.
"""

import numpy as np

from fewstep.data.arrays.dataset import Dataset, Split
from fewstep.data.arrays.pixels import fit_array

NUM_CLASSES = 10
LARGEST = 16  # pixel value
HOLD_OUT_EVERY = 5
IMAGE_SIZE, CHANNELS = 8, 1


def digits(image_size: int = 0, channels: int = 0) -> Dataset:
    """1,437 training and 360 held-out images, uint8 [N, 8, 8, 1], stratified by class.

    The split uses no random numbers: sorted by class, then by position in the file, every fifth
    image is held out. Images are resized to image_size, and grey is repeated to `channels`; 0 is
    the data set's own.
    """
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = np.floor(images * 255 / LARGEST + 0.5).astype(np.uint8)
    images = images.reshape(-1, IMAGE_SIZE, IMAGE_SIZE, CHANNELS)
    size, channels = image_size or IMAGE_SIZE, channels or CHANNELS
    images = np.stack([fit_array(image, size, channels) for image in images])
    labels = labels.astype(np.int32)
    held_out = np.zeros(len(labels), bool)
    held_out[np.argsort(labels, kind="stable")[::HOLD_OUT_EVERY]] = True
    train = Split(images[~held_out], labels[~held_out])
    test = Split(images[held_out], labels[held_out])
    return Dataset("digits", train, test, NUM_CLASSES, tuple(map(str, range(NUM_CLASSES))))
