import numpy as np
import pytest
from PIL import Image

from fewstep import data
from fewstep.data import origins


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("digit", "digits"),
        ("fashion-mnist", "fashion_mnist"),
        ("tfds:cifar", "cifar10"),
        ("Folder:/images", "folder:/images"),
        ("path:/images", "folder:/images"),
        ("./images", "folder:./images"),
        ("images.zip", "folder:images.zip"),
        ("folder", "folder:PATH"),
        ("beanz:1.0.0", "beans"),
    ],
)
def test_an_unknown_name_suggests_the_nearest(tmp_path, name, nearest):
    forms = "digits, fashion_mnist, folder:PATH, hf:PATH, webdataset:PATTERN, latents:FOLDER"
    typed = name.removeprefix("tfds:")
    for function in (data.load_selection, data.prepare_dataset):
        with pytest.raises(ValueError, match=f"{typed}'.*did you mean {nearest!r}.*{forms}"):
            function(data.Selection(name, data_dir=str(tmp_path)))


def test_no_data_set_is_a_name_that_is_never_there(tmp_path):
    none = data.Selection(data.NONE, str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"data.name=none has no images: choose a data set"):
        data.load_selection(none)
    assert data.prepare_dataset(none) == tmp_path
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["", "tfds:", "huggingface:beans", "https://example.org/images"])
def test_names_that_tfds_would_fetch_code_for_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match="does not exist"):
        data.load_selection(data.Selection(name, data_dir=str(tmp_path)))


def test_an_unknown_tfds_config_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="bedroo not found"):
        data.load_selection(data.Selection("lsun/bedroo", data_dir=str(tmp_path), image_size=8))


@pytest.mark.parametrize("function", [data.load_selection, data.prepare_dataset])
def test_sizes_are_checked(function):
    with pytest.raises(ValueError, match="channels=2"):
        function(data.Selection("digits", channels=2))


def test_a_folder_that_is_not_writable_is_read_and_not_written_to(tmp_path, monkeypatch):
    own, theirs = tmp_path / "own", tmp_path / "theirs"
    monkeypatch.setenv("FEWSTEP_DATA", str(own))
    for split in ("train", "test"):
        (tmp_path / "images" / split).mkdir(parents=True)
        Image.new("L", (4, 4), 9).save(tmp_path / "images" / split / "a.png")
    asked = data.Selection(f"folder:{tmp_path}/images", data_dir=str(theirs), image_size=4)
    first = data.load_selection(asked, writable=False)
    assert not theirs.exists() and len(list((own / "arrays").iterdir())) == 1
    own.rename(theirs)
    again = data.load_selection(asked, writable=False)
    assert not own.exists()
    np.testing.assert_array_equal(again.train.images, first.train.images)
    # Nor is a copy, or one of an older version, which has no manifest.
    (folder,) = (theirs / "arrays").iterdir()
    (folder / "manifest.json").unlink()
    older = data.load_selection(asked, writable=False)
    assert not own.exists() and not (folder / "manifest.json").exists()
    assert older.identity == first.identity


def test_preparing_digits_writes_nothing(tmp_path):
    assert data.prepare_dataset(data.Selection("digits", data_dir=str(tmp_path))) == tmp_path
    assert list(tmp_path.iterdir()) == []


def test_a_new_source_is_an_entry(tmp_path, monkeypatch):
    asked, digits = [], data.load_selection(data.Selection("digits"))

    def open_new(path, selection, writable):
        asked.append((path, selection, writable))
        return digits

    downloaded = []
    origin = origins.Origin(
        "new:PATH", open_new, lambda *given: downloaded.append(given), place="new images"
    )
    monkeypatch.setitem(origins.ORIGINS, "new", origin)
    selection = data.Selection("new:a:b", data_dir=str(tmp_path), image_size=8)
    assert data.load_selection(selection, writable=False) is digits
    assert data.load_copy(selection, str(tmp_path)) is digits and not downloaded
    assert data.prepare_dataset(selection) == tmp_path and downloaded == [("a:b", selection)]
    assert asked == [("a:b", selection, writable) for writable in (False, True, True)]
    assert data.path_in_name("new:a:b") == "a:b" and data.protocol_name("new:a:b") == "new images"
    with pytest.raises(ValueError, match="did you mean 'new:PATH'.*tfds:NAME, new:PATH, or"):
        data.load_selection(data.Selection("new", data_dir=str(tmp_path)))


@pytest.mark.parametrize("name", ["digits", "tfds:digits", "folder", "digits:1.0.0"])
def test_data_that_are_no_path_are_known_by_their_name(name):
    assert data.path_in_name(name) == "" and data.protocol_name(name) == name


def test_a_folder_is_known_by_its_images():
    assert data.path_in_name("folder:~/a:b") == "~/a:b"
    assert data.protocol_name("folder:~/a:b") == "a folder of images"
