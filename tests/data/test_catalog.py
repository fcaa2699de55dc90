import pytest

import data


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("digit", "digits"),
        ("fashion-mnist", "fashion_mnist"),
        ("tfds:cifar", "cifar10"),
        ("Folder:/images", "folder:PATH"),
        ("beanz:1.0.0", "beans"),
    ],
)
def test_an_unknown_name_suggests_the_nearest(tmp_path, name, nearest):
    forms = "digits, fashion_mnist, folder:PATH, tfds:NAME"
    typed = name.removeprefix("tfds:")
    for function in (data.load, data.prepare):
        with pytest.raises(ValueError, match=f"{typed}'.*did you mean {nearest!r}.*{forms}"):
            function(name, data_dir=str(tmp_path))


@pytest.mark.parametrize("name", ["", "tfds:", "huggingface:beans", "https://example.org/images"])
def test_names_that_tfds_would_fetch_code_for_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match="does not exist"):
        data.load(name, data_dir=str(tmp_path))


def test_an_unknown_tfds_config_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="bedroo not found"):
        data.load("lsun/bedroo", data_dir=str(tmp_path), image_size=8)


@pytest.mark.parametrize("function", [data.load, data.prepare])
def test_sizes_are_checked(function):
    with pytest.raises(ValueError, match="channels=2"):
        function("digits", channels=2)


def test_preparing_digits_writes_nothing(tmp_path):
    assert data.prepare("digits", data_dir=str(tmp_path)) == tmp_path
    assert list(tmp_path.iterdir()) == []
