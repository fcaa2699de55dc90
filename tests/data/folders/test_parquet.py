"""Parquet files of images, as the Hub has them, by the rules of saved data sets."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow
import pyarrow.parquet as parquet
import pytest

from fewstep import data
from fewstep.data.folders import parquet as parquet_files
from fewstep.data.folders.parquet import ParquetRows, split_of
from tests.data.odd_folders import png

FEATURES = {"image": {"_type": "Image"}, "label": {"names": ["dog", "cat"], "_type": "ClassLabel"}}


def write(file, grey, labels, typed=True, struct=True, rows=2):
    """A file of images of these grey levels. rows: in a row group."""
    images = [png(level) for level in grey]
    column = [{"bytes": image, "path": None} for image in images] if struct else images
    table = pyarrow.table({"image": column, "label": labels})
    if typed:
        about = json.dumps({"info": {"features": FEATURES}})
        table = table.replace_schema_metadata({"huggingface": about})
    file.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, file, row_group_size=rows)


@pytest.fixture
def load(tmp_path):
    def load_folder():
        given = {"data_dir": str(tmp_path / "arrays"), "image_size": 4}
        return data.load_selection(data.Selection(f"hf:{tmp_path / 'set'}", **given))

    return load_folder


def levels(split):
    """(grey level, label) of each image, by grey level."""
    found = zip(split.images[:, 0, 0, 0].tolist(), split.labels.tolist(), strict=True)
    return sorted(found)


def test_splits_classes_and_every_row(load, tmp_path):
    folder = tmp_path / "set" / "data"
    write(folder / "train-00000-of-00002.parquet", [1, 2, 3], [1, 0, 1])
    write(folder / "train-00001-of-00002.parquet", [4, 5], [0, 1])
    write(folder / "test-00000-of-00001.parquet", [6], [0])
    loaded = load()
    assert loaded.classes == ("dog", "cat")
    assert levels(loaded.train) == [(1, 1), (2, 0), (3, 1), (4, 0), (5, 1)]
    assert levels(loaded.test) == [(6, 0)]


def test_files_of_other_writers(load, tmp_path):
    write(tmp_path / "set" / "a.parquet", [7, 8], ["x", "y"], typed=False, struct=False)
    loaded = load()
    assert loaded.classes == ("x", "y") and levels(loaded.train) == [(7, 0), (8, 1)]


def test_a_damaged_file_is_named(load, tmp_path):
    write(tmp_path / "set" / "a.parquet", [7], [0])
    file = tmp_path / "set" / "b.parquet"
    file.write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=f"{file} cannot be read as Parquet .*; replace it"):
        load()


@pytest.mark.parametrize(
    ("file", "split"),
    [
        ("data/train-00000-of-00002.parquet", "train"),
        ("validation/0000.parquet", "validation"),
        ("part-0.parquet", "train"),
        ("data/0000.parquet", "train"),
        ("cifar10-test.parquet", "test"),
        ("default/partial-train/0000.parquet", "train"),
        ("val/set-train-00000-of-00002-5fa8.parquet", "train"),
        ("held-out-00000-of-00002.parquet", "held-out"),
        ("extra-00000-of-00002.parquet", "extra"),
        ("data/extra/0000.parquet", "extra"),
    ],
)
def test_names_say_the_split(file, split):
    assert split_of(Path(file)) == split


def write_all(folder, files):
    """Files of one image each, with grey levels 1, 2, ... in this order."""
    for level, file in enumerate(files, 1):
        write(folder / file, [level], [0])


@pytest.mark.parametrize(
    ("files", "train", "test"),
    [
        (["cifar10-train.parquet", "cifar10-test.parquet"], [1], [2]),
        (["0000.parquet", "test-0.parquet", "data/part-1.parquet"], [1, 3], [2]),
        (["train/cat/0.parquet", "train/dog/0.parquet", "val/0.parquet"], [1, 2], [3]),
        (["a.parquet", "b.parquet", "extra/0.parquet"], [1, 2, 3], []),
        (["shard0-train.parquet", "shard1-train.parquet"], [1, 2], []),
        (["2023/train-0.parquet", "2024/train-0.parquet"], [1, 2], []),
        (["train/books/train-0.parquet", "train/web/train-1.parquet"], [1, 2], []),
    ],
)
def test_files_are_of_the_split_that_is_a_word_of_their_path(load, tmp_path, files, train, test):
    write_all(tmp_path / "set", files)
    loaded = load()
    assert [level for level, _ in levels(loaded.train)] == train
    assert [level for level, _ in (levels(loaded.test) if loaded.test else [])] == test


def test_files_that_name_no_split_keep_the_order_of_their_paths(load, tmp_path):
    write_all(tmp_path / "set", ["a/d.parquet", "b/c.parquet"])
    assert load().train.images[:, 0, 0, 0].tolist() == [1, 2]


@pytest.mark.parametrize("other", ["extra-0.parquet", "unlabeled.parquet", "extra/0000.parquet"])
@pytest.mark.parametrize("beside", [[], ["test-0.parquet"]])
def test_a_name_that_is_no_split_is_refused_beside_train(load, tmp_path, other, beside):
    write_all(tmp_path / "set", ["train-0.parquet", other, *beside])
    with pytest.raises(ValueError, match=r"has .*train/ beside (extra|unlabeled)/, which is not a"):
        load()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("large/train-0.parquet", "small/train-0.parquet"),
        ("large/train/0.parquet", "small/train/0.parquet"),
        ("cifar10-train.parquet", "cifar100-train.parquet"),
    ],
)
def test_two_data_sets_in_a_folder_are_refused(load, tmp_path, one, other):
    write_all(tmp_path / "set", [one, other])
    with pytest.raises(ValueError, match=f"{one} and {other}, which are train of two data sets; "):
        load()


def test_threads_read_a_row_group_once(tmp_path, monkeypatch):
    write(tmp_path / "a.parquet", range(8), [0] * 8)
    reads, own = [], parquet_files.read_group

    def read_group(file, group, column):
        reads.append(group)
        time.sleep(0.05)  # until all threads have come
        return own(file, group, column)

    monkeypatch.setattr(parquet_files, "read_group", read_group)
    rows = ParquetRows([tmp_path / "a.parquet"])
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda number: rows.image(number, "image")["bytes"], range(8)))
    assert found == [png(level) for level in range(8)]
    assert sorted(reads) == [0, 1, 2, 3]
