"""Data sets that Hugging Face's `save_to_disk` wrote, by the package or a stand-in for it."""

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from fewstep import data
from tests.data.odd_folders import png


class Image:
    """The type of a column of images."""

    def __init__(self, decode=True):
        self.decode = decode


class ClassLabel:
    """The type of a column of classes."""

    def __init__(self, names):
        self.names = names


class Value:
    """The type of a column of numbers or texts."""


class Rows:
    """The part of datasets.Dataset that is used."""

    def __init__(self, columns, features, file):
        self.columns, self.features = columns, features
        self.cache_files = [{"filename": str(file)}]

    def __len__(self):
        return len(next(iter(self.columns.values())))

    def __getitem__(self, key):
        if isinstance(key, str):
            return self.columns[key]
        return {name: column[key] for name, column in self.columns.items()}

    def select_columns(self, names):
        return Rows({n: self.columns[n] for n in names}, self.features, *self._files())

    def cast_column(self, name, feature):
        assert isinstance(feature, Image) and not feature.decode
        return self

    def _files(self):
        return [file["filename"] for file in self.cache_files]


@pytest.fixture
def save(tmp_path, monkeypatch):
    """Save splits; the stand-in keeps them in memory."""
    saved = {}

    def load_from_disk(path):
        if path not in saved:
            raise FileNotFoundError(f"Directory {path} is neither a `Dataset` directory nor\nany")
        return saved[path]

    stand_in = SimpleNamespace(load_from_disk=load_from_disk, Image=Image)
    monkeypatch.setitem(sys.modules, "datasets", stand_in)

    def save_splits(features, splits):
        root = tmp_path / "saved"
        root.mkdir(exist_ok=True)
        file = root / "data.arrow"
        file.touch()
        rows = {name: Rows(columns, features, file) for name, columns in splits.items()}
        saved[str(root)] = rows.get("", rows)
        return root

    return save_splits


@pytest.fixture
def load(tmp_path):
    def load_folder(path, **arguments):
        arguments = {"data_dir": str(tmp_path / "arrays"), "image_size": 4} | arguments
        return data.load_selection(data.Selection(f"hf:{path}", **arguments))

    return load_folder


def images(*grey):
    return [{"bytes": png(level), "path": None} for level in grey]


def levels(split):
    """(grey level, label) of each image."""
    return list(zip(split.images[:, 0, 0, 0].tolist(), split.labels.tolist(), strict=True))


NAMED = {"image": Image(), "label": ClassLabel(["dog", "cat"])}


def test_rows_have_the_classes_of_their_column(save, load, capsys):
    splits = {
        "train": {"image": images(1, 2, 3), "label": [1, 0, 1]},
        "validation": {"image": images(4), "label": [1]},
        "test": {"image": images(5), "label": [-1]},
    }
    root = save(NAMED, splits)
    loaded = load(root)
    assert loaded.classes == ("dog", "cat")
    assert levels(loaded.train) == [(2, 0), (1, 1), (3, 1)] and levels(loaded.test) == [(4, 1)]
    said = capsys.readouterr().err
    assert f"hf:{root}: labels of column label; validation/ is held out; test/ is passed" in said


def test_a_name_that_is_no_split_is_refused_beside_train(save, load):
    rows = {"image": images(1), "label": [0]}
    with pytest.raises(ValueError, match="has train/ beside unsupervised/, which is not a split"):
        load(save(NAMED, {"train": rows, "unsupervised": rows}))


def test_other_columns_of_labels(save, load):
    one = save({"img": Image(), "kind": ClassLabel(["a"])}, {"": {"img": images(1), "kind": [0]}})
    assert load(one).classes == ("a",)
    columns = {"image": images(1, 2), "label": ["dog", "cat"]}
    assert load(save({"image": Image(), "label": Value()}, {"": columns})).classes == ("cat", "dog")
    columns["label"] = [2, 0]
    assert load(save({"image": Image(), "label": Value()}, {"": columns})).num_classes == 3
    plain = load(save({"image": Image()}, {"": {"image": images(7)}}))
    assert plain.num_classes == 0 and levels(plain.train) == [(7, -1)]


def test_images_beside_the_arrow_files(save, load, tmp_path):
    (tmp_path / "a.png").write_bytes(png(6))
    rows = {"image": [{"bytes": None, "path": str(tmp_path / "a.png")}], "label": [0]}
    assert levels(load(save(NAMED, {"": rows})).train) == [(6, 0)]


@pytest.mark.parametrize(
    ("features", "rows", "message"),
    [
        (
            {"text": Value()},
            {"text": ["a"]},
            "has 0 columns of images among text; name one `image`",
        ),
        (
            {"image": Image(), "fine": ClassLabel(["a"]), "coarse": ClassLabel(["b"])},
            {"image": images(1), "fine": [0], "coarse": [0]},
            r"several columns of classes \(fine, coarse\), none called label",
        ),
        (
            {"image": Image(), "label": Value()},
            {"image": images(1), "label": [0.5]},
            "has float values in column label",
        ),
        (
            NAMED,
            {"image": images(1, 2), "label": [0, None]},
            "train/000000001 is one of 1 images without labels of column label",
        ),
        (NAMED, {"image": [None], "label": [0]}, "train/000000000 cannot be read .the row has no"),
        (NAMED, {"image": [], "label": []}, "has no rows"),
    ],
)
def test_what_is_unclear_is_an_error(save, load, features, rows, message):
    with pytest.raises(ValueError, match=message):
        load(save(features, {"": rows}))


def test_another_folder_and_a_missing_package_are_errors(save, load, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="'/nowhere' does not exist"):
        load("/nowhere")
    with pytest.raises(ValueError, match=r"\(Directory .* nor\); save it again") as error:
        load(tmp_path)
    assert "\n" not in str(error.value)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match="not installed: pip install datasets"):
        load(tmp_path)


@pytest.mark.skipif(not importlib.util.find_spec("datasets"), reason="needs the package datasets")
def test_the_package_itself_writes_what_is_read(load, tmp_path):
    import datasets

    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["dog", "cat"])}
    )
    rows = {"image": images(1, 2), "label": [1, 0]}
    split = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict({"train": split, "test": split.select([0])}).save_to_disk(tmp_path / "set")
    split.save_to_disk(tmp_path / "alone")
    loaded = load(tmp_path / "set")
    assert loaded.classes == ("dog", "cat")
    assert levels(loaded.train) == [(2, 0), (1, 1)] and levels(loaded.test) == [(1, 1)]
    assert load(Path(tmp_path / "alone")).num_classes == 2
