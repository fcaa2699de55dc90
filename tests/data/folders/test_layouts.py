"""Typical folders are read as intended, or refused in one sentence."""

import re

import pytest

from fewstep import data
from tests.data.odd_folders import CASES, Link, make, make_zip


def levels(split, classes):
    """The class of each image, by its grey level."""
    names = [classes[label] if label >= 0 else None for label in split.labels]
    return sorted(zip(split.images[:, 0, 0, 0].tolist(), names, strict=True), key=str)


def check(case, path, tmp_path, capsys):
    """Assert that a folder or a .zip is read as a case says."""

    def load():
        return data.load_selection(
            data.Selection(f"folder:{path}", data_dir=str(tmp_path / "arrays"), image_size=4)
        )

    if case.refused:
        with pytest.raises(ValueError, match=case.refused) as error:
            load()
        assert "\n" not in str(error.value) and str(path) in str(error.value)
        return
    loaded = load()
    # Both classes of images that links put into two: the case names neither.
    train = [
        pair for pair in levels(loaded.train, loaded.classes) if "both" not in case.train.values()
    ]
    if train:
        assert train == sorted(case.train.items(), key=str)
    held_out = levels(loaded.test, loaded.classes) if loaded.test else None
    assert held_out == (None if case.test is None else sorted(case.test.items(), key=str))
    said = capsys.readouterr().err
    assert case.said in said
    assert len(re.findall(f"^folder:{re.escape(str(path))}: ", said, re.MULTILINE)) == 2
    # What is decoded is found again, and nothing is said.
    assert load().identity == loaded.identity
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", CASES)
def test_a_folder_is_understood_or_refused(name, tmp_path, capsys):
    case = CASES[name]
    check(case, make(tmp_path / "images", case.files) / case.inside, tmp_path, capsys)


def zipped(case):
    """Whether a .zip can hold the files of a case: no links, and names in UTF-8."""
    linked = any(isinstance(content, Link) for content in case.files.values())
    return not linked and "not UTF-8" not in case.name


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if zipped(case)])
def test_a_zip_is_read_as_its_folder(name, tmp_path, capsys):
    case = CASES[name]
    check(case, make_zip(tmp_path / "images.zip", case.files), tmp_path, capsys)


def test_a_table_that_a_zip_cannot_give_is_an_error_that_names_it(tmp_path):
    files = {"a.png": 1, "labels.csv": "image,label\na.png,cat\n"}
    archive = make_zip(tmp_path / "images.zip", files)
    archive.write_bytes(archive.read_bytes().replace(b"a.png,cat", b"a.png,cut"))
    with pytest.raises(ValueError, match="images.zip/labels.csv cannot be read .*CRC"):
        data.load_selection(
            data.Selection(f"folder:{archive}", data_dir=str(tmp_path), image_size=4)
        )
