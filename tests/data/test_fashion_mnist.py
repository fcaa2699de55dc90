import gzip

import numpy as np
import pytest
import tensorflow_datasets as tfds

from fewstep import data
from fewstep.data import fashion_mnist
from fewstep.data.fashion_mnist import IMAGES, INSTALLED, LABELS, FashionMNIST, read_idx

COUNTS = {"train": 12, "t10k": 5}


@pytest.fixture
def idx_folder(tmp_path, monkeypatch, write_idx, draw_images):
    """A folder like the Debian package's with 12 and 5 images; what it holds, by file name."""
    arrays = {}
    for seed, (part, count) in enumerate(COUNTS.items()):
        arrays[part + IMAGES] = draw_images(count, 28, 28, seed=seed)
        arrays[part + LABELS] = np.arange(count, dtype=np.uint8) % 10
    for name, array in arrays.items():
        write_idx(tmp_path / "idx" / name, array)
    monkeypatch.setattr(fashion_mnist, "INSTALLED", tmp_path / "idx")
    return arrays


def rows(images, labels):
    """Rows of label and pixels in an order of their own: TFDS shuffles what it writes."""
    flat = np.concatenate([labels[:, None], images.reshape(len(images), -1)], axis=1)
    return flat[np.lexsort(flat.T)]


def test_prepared_images_are_those_of_the_files(idx_folder, tmp_path):
    data.prepare_dataset(data.Selection("fashion_mnist", data_dir=str(tmp_path)))
    loaded = data.load_selection(data.Selection("fashion_mnist", data_dir=str(tmp_path)))
    assert (loaded.num_classes, loaded.image_shape) == (10, (28, 28, 1))
    for part, split in {"train": loaded.train, "t10k": loaded.test}.items():
        expected = rows(idx_folder[part + IMAGES], idx_folder[part + LABELS])
        np.testing.assert_array_equal(rows(split.images, split.labels), expected)


def test_tfds_itself_reads_what_was_prepared(idx_folder, tmp_path):
    data.prepare_dataset(data.Selection("tfds:fashion_mnist", data_dir=str(tmp_path)))
    stock = tfds.builder("fashion_mnist", data_dir=str(tmp_path), try_gcs=False)
    assert type(stock) is not FashionMNIST
    assert stock.info.features["label"].int2str(9) == "Ankle boot"
    assert len(stock.as_data_source("train")) == COUNTS["train"]


def test_files_are_downloaded_where_the_package_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setattr(fashion_mnist, "INSTALLED", tmp_path / "absent")
    builder = FashionMNIST(data_dir=str(tmp_path), file_format="array_record")

    class Downloads:
        def download(self, urls):
            self.urls = urls
            return urls

    downloads = Downloads()
    assert set(builder._split_generators(downloads)) == {"train", "test"}
    # TFDS knows size and checksum of exactly these.
    assert sorted(downloads.urls.values()) == sorted(FashionMNIST.url_infos)


def test_damaged_files_are_named(tmp_path, write_idx):
    whole = tmp_path / "whole.gz"
    write_idx(whole, np.arange(6, dtype=np.uint8).reshape(2, 3))
    np.testing.assert_array_equal(read_idx(whole), [[0, 1, 2], [3, 4, 5]])
    content = gzip.decompress(whole.read_bytes())
    damaged = {
        "short.gz": gzip.compress(content[:-1]),
        "floats.gz": gzip.compress(content[:2] + b"\x0d" + content[3:]),
        "header.gz": gzip.compress(content[:6]),
        "empty.gz": gzip.compress(b""),
        "cut.gz": whole.read_bytes()[:-9],
        "plain.gz": content,
    }
    for name, damage in damaged.items():
        (tmp_path / name).write_bytes(damage)
        with pytest.raises(ValueError, match=name):
            read_idx(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="missing.gz"):
        read_idx(tmp_path / "missing.gz")


@pytest.mark.skipif(not INSTALLED.is_dir(), reason="dataset-fashion-mnist is not installed")
def test_the_installed_files_are_fashion_mnist():
    for part, count in {"train": 60_000, "t10k": 10_000}.items():
        images, labels = (
            read_idx(INSTALLED / (part + IMAGES)),
            read_idx(INSTALLED / (part + LABELS)),
        )
        assert images.shape == (count, 28, 28)
        np.testing.assert_array_equal(np.bincount(labels), [count // 10] * 10)
