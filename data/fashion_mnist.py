"""Prepares TFDS's Fashion-MNIST (Xiao et al. 2017) without TensorFlow.

TFDS's builder encodes images with TensorFlow. This one has the same name, version, features and
examples, but passes PIL images, which TFDS encodes without TensorFlow. The four IDX files come from
Debian's package dataset-fashion-mnist if it is installed. Otherwise TFDS's URLs are downloaded and
its checksums checked.
"""

import gzip
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.image_classification import mnist

INSTALLED = Path("/usr/share/datasets/fashion-mnist")  # by the Debian package
PARTS = {"train": "train", "test": "t10k"}  # split: prefix of its files
IMAGES, LABELS = "-images-idx3-ubyte.gz", "-labels-idx1-ubyte.gz"
UNSIGNED_BYTE = 8  # the IDX code of the element type

with tfds.core.registered.skip_registration():

    class FashionMNIST(mnist.FashionMNIST):
        """TFDS's builder, by name and version, but with its own reader of IDX files."""

        url_infos = mnist.FashionMNIST.url_infos

        def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
            names = [part + kind for part in PARTS.values() for kind in (IMAGES, LABELS)]
            if INSTALLED.is_dir():
                files = {name: INSTALLED / name for name in names}
            else:
                files = dl_manager.download({name: self.URL + name for name in names})
            return {
                split: self._generate_examples(files[part + IMAGES], files[part + LABELS])
                for split, part in PARTS.items()
            }

        def _generate_examples(self, images: Path, labels: Path) -> Iterator[tuple[int, dict]]:
            pixels, classes = read_idx(images), read_idx(labels)
            if len(pixels) != len(classes):
                raise ValueError(
                    f"{images} has {len(pixels)} images and {labels} has {len(classes)} labels; "
                    "download both again"
                )
            for i, (image, label) in enumerate(zip(pixels, classes, strict=True)):
                yield i, {"image": Image.fromarray(image), "label": int(label)}


def read_idx(path: Path) -> np.ndarray:
    """The uint8 array of a gzipped IDX file.

    The format: bytes 0, 0, element type, number of axes; the length of each axis as a big-endian
    uint32; the elements in C order. Raises ValueError or FileNotFoundError that names the file.
    """
    if not Path(path).exists():
        raise FileNotFoundError(
            f"{path} is missing; install the package dataset-fashion-mnist again"
        )
    try:
        with gzip.open(path) as file:
            content = file.read()
    except (OSError, EOFError) as error:
        raise ValueError(f"{path} is no whole gzip file ({error}); download it again") from error
    axes = content[3] if len(content) > 3 else 0
    start = 4 + 4 * axes
    shape = np.frombuffer(content[4:start], ">u4").tolist() if len(content) >= start else []
    if content[:3] != bytes([0, 0, UNSIGNED_BYTE]) or len(content) != start + int(np.prod(shape)):
        raise ValueError(f"{path} is no IDX file of bytes, or is cut short; download it again")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
