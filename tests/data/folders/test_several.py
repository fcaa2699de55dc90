"""Several folders as one data set."""

import numpy as np
import pytest

from fewstep import data
from tests.data.odd_folders import make, make_zip


@pytest.fixture
def load(tmp_path):
    def load_names(text, **arguments):
        arguments = {"data_dir": str(tmp_path / "arrays"), "image_size": 4} | arguments
        return data.load_selection(data.Selection(f"folder:{text}", **arguments))

    return load_names


def levels(split):
    """(grey level, label) of each image."""
    return list(zip(split.images[:, 0, 0, 0].tolist(), split.labels.tolist(), strict=True))


def test_classes_of_the_same_name_are_joined(tmp_path, load, capsys):
    one = make(tmp_path / "one", {"cat/a.png": 1, "dog/b.png": 2})
    two = make(tmp_path / "two", {"train/emu/a.png": 3, "train/dog/b.png": 4, "test/emu/c.png": 5})
    loaded = load(f"{one},{two}")
    assert loaded.classes == ("cat", "dog", "emu")
    assert levels(loaded.train) == [(1, 0), (2, 1), (4, 1), (3, 2)]
    assert levels(loaded.test) == [(5, 2)]
    said = capsys.readouterr().err
    assert f"folder:{one},{two}: one/ has class folders; two/ has class folders; test/ is" in said
    # Neither the order of folders nor their place changes the data.
    assert load(f"{two}, {one}").train.images.filename == loaded.train.images.filename
    (tmp_path / "moved").mkdir()
    moved = [folder.rename(tmp_path / "moved" / folder.name) for folder in (one, two)]
    assert load(f"{moved[0]},{moved[1]}").identity == loaded.identity


def test_images_without_labels_stay_without(tmp_path, load, capsys):
    one = make(tmp_path / "one", {"cat/a.png": 1})
    archive = make_zip(tmp_path / "two.zip", {"a.png": 2, "b.png": 3})
    assert levels(load(f"{one},{archive}").train) == [(2, -1), (3, -1), (1, 0)]
    assert "train: 1 in each class, 2 without a label; " in capsys.readouterr().err
    plain = make(tmp_path / "plain", {"a.png": 4})
    both = load(f"{plain},{archive}")
    assert both.num_classes == 0 and levels(both.train) == [(4, -1), (2, -1), (3, -1)]


def test_each_folder_has_its_own_table_of_labels(tmp_path, load, capsys):
    one = make(tmp_path / "one", {"a.png": 1, "labels.csv": "a.png,dog\n"})
    two = make(tmp_path / "two", {"a.png": 2, "labels.csv": "a.png,cat\n", "x.txt": "text"})
    assert levels(load(f"{one},{two}").train) == [(2, 0), (1, 1)]
    assert "passed over 1: 1 .txt (two/x.txt)" in capsys.readouterr().err


def test_a_path_with_a_comma_is_one_folder(tmp_path, load):
    folder = make(tmp_path / "one,two", {"a.png": 1})
    np.testing.assert_array_equal(load(folder).train.labels, [-1])


def test_folders_that_repeat_images_are_refused(tmp_path, load):
    one = make(tmp_path / "one", {"cat/a.png": 1})
    (tmp_path / "link").symlink_to("one")
    for other in (one, one / "cat", tmp_path / "link"):
        with pytest.raises(ValueError, match="repeat the same images; give only the outer folder"):
            load(f"{one},{other}")


def test_a_missing_or_damaged_folder_is_named(tmp_path, load):
    one = make(tmp_path / "one", {"cat/a.png": 1})
    two = make(tmp_path / "two", {"dog/b.png": "\x89PNG cut"})
    with pytest.raises(FileNotFoundError, match=f"'{tmp_path}/gone' does not exist"):
        load(f"{one},{tmp_path}/gone")
    with pytest.raises(ValueError, match=f"image {two}/dog/b.png cannot be read"):
        load(f"{one},{two}")
    with pytest.raises(ValueError, match="data.decoding=1 reads only folders"):
        load(f"{one},{two}", decoding=1)


def test_each_path_in_a_name_is_replaced():
    assert data.replace_paths("folder:a,b", str.upper) == "folder:A,B"
    assert data.replace_paths("folder:", str.upper) == "folder:"
    assert data.replace_paths("digits", str.upper) == "digits"
