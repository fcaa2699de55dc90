"""Small image data sets on disk, and TFDS data sets that exist only in these tests."""

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

Features = dict[str, tfds.features.FeatureConnector]


@pytest.fixture
def draw_images() -> Callable[..., np.ndarray]:
    """Random uint8 images [count, *shape]."""

    def draw(count: int, *shape: int, seed: int = 0) -> np.ndarray:
        return np.random.default_rng(seed).integers(0, 256, (count, *shape), np.uint8)

    return draw


@pytest.fixture
def save_png() -> Callable[[Path, np.ndarray], Path]:
    """Write an array as an image file, with its folders."""

    def save(path: Path, pixels: np.ndarray) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        return path

    return save


@pytest.fixture
def write_tfds_files() -> Callable[..., None]:
    """Write records as the TFDS data set `tiny` under a folder, as another program would."""

    def write(root: Path, features: Features, splits: dict[str, list[dict]]) -> None:
        with tfds.core.registered.skip_registration():

            class Tiny(tfds.core.GeneratorBasedBuilder):
                VERSION = tfds.core.Version("1.0.0")

                def _info(self):
                    structure = tfds.features.FeaturesDict(features)
                    return tfds.core.DatasetInfo(builder=self, features=structure)

                def _split_generators(self, dl_manager):
                    return {name: self._generate_examples(name) for name in splits}

                def _generate_examples(self, name):
                    yield from enumerate(splits[name])

        Tiny(data_dir=str(root), file_format="array_record").download_and_prepare()

    return write


@pytest.fixture
def write_idx() -> Callable[[Path, np.ndarray], None]:
    """Write a uint8 array as a gzipped IDX file."""

    def write(path: Path, array: np.ndarray) -> None:
        header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(header + array.tobytes()))

    return write
