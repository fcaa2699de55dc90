"""Parquet files of images, as the Hub has them, by the rules of saved data sets."""

import json

import pyarrow
import pyarrow.parquet as parquet
import pytest

from fewstep import data
from fewstep.data.folders.parquet import split_of
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
    ],
)
def test_names_say_the_split(file, split, tmp_path):
    assert split_of((tmp_path / file).relative_to(tmp_path)) == split
