"""Tar shards of samples KEY.png and KEY.cls or KEY.json."""

import io
import json
import tarfile

import pytest

from fewstep import data
from fewstep.data.folders.tar_shards import expand_braces, split_name
from tests.data.odd_folders import png


def write(path, members):
    """Write a shard; an image is a number, the grey level of all its pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            content = png(content) if isinstance(content, int) else content.encode()
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def load(tmp_path):
    def load_pattern(pattern, **arguments):
        arguments = {"data_dir": str(tmp_path / "arrays"), "image_size": 4} | arguments
        return data.load_selection(data.Selection(f"webdataset:{pattern}", **arguments))

    return load_pattern


def levels(split):
    """(grey level, label) of each image."""
    return list(zip(split.images[:, 0, 0, 0].tolist(), split.labels.tolist(), strict=True))


def test_a_sample_is_an_image_and_its_label(tmp_path, load, capsys):
    shards = tmp_path / "shards"
    write(shards / "000001.tar", {"c.cls": "0\n", "c.png": 3, "c.txt": "a caption"})
    write(shards / "000000.tar", {"./b.png": 2, "a.PNG": 1, "a.cls": "2", "./b.cls": "0"})
    loaded = load(shards / "{000000..000001}.tar")
    assert loaded.classes == ("0", "1", "2") and loaded.test is None
    assert levels(loaded.train) == [(2, 0), (3, 0), (1, 2)]
    said = capsys.readouterr().err
    assert "labels of .cls or .json; 3 classes (0, 1, 2), 3 images to train on" in said
    assert "passed over 1: 1 .txt (000001.tar/c.txt)" in said
    for pattern in (shards, shards / "*.tar", shards / "00000[01].tar"):
        assert load(pattern).identity == loaded.identity


def test_json_names_a_class(tmp_path, load):
    names = {"a": "dog", "b": "cat"}
    records = {f"{key}.json": json.dumps({"label": name, "id": 7}) for key, name in names.items()}
    shard = write(tmp_path / "0.tar", {"a.png": 1, "b.png": 2} | records)
    loaded = load(shard)
    assert loaded.classes == ("cat", "dog") and levels(loaded.train) == [(2, 0), (1, 1)]
    plain = write(tmp_path / "1.tar", {"a.png": 1, "a.json": '{"caption": "x"}'})
    assert load(plain).num_classes == 0 and levels(load(plain).train) == [(1, -1)]


@pytest.mark.parametrize("form", ["{}/000.tar", "set-{}-000.tar", "{}_000.tar"])
def test_splits_are_named_by_folders_or_shards(tmp_path, load, form):
    write(tmp_path / "s" / form.format("train"), {"a.png": 1, "a.cls": "0"})
    write(tmp_path / "s" / form.format("val"), {"a.png": 2, "a.cls": "0"})
    loaded = load(tmp_path / "s")
    assert levels(loaded.train) == [(1, 0)] and levels(loaded.test) == [(2, 0)]
    alone = load(tmp_path / "s" / form.format("val"))
    assert levels(alone.train) == [(2, 0)] and alone.test is None


@pytest.mark.parametrize(
    "form", ["part0/{}-000.tar", "part0/set-{}-000.tar", "of-{}/{}/000.tar", "p/q/{}/000.tar"]
)
def test_splits_are_found_at_any_depth(tmp_path, load, form):
    for level, split in enumerate(("train", "test"), 1):
        write(tmp_path / "s" / form.format(split, split), {"a.png": level, "a.cls": "0"})
    second = form.format("train", "train").replace("000", "001")
    write(tmp_path / "s" / second, {"b.png": 3, "b.cls": "0"})
    write(tmp_path / "s" / "val/000.tar", {"a.png": 4, "a.cls": "0"})
    loaded = load(tmp_path / "s")
    assert levels(loaded.train) == [(1, 0), (3, 0)] and levels(loaded.test) == [(2, 0)]


def cut(path, count):
    path.write_bytes(path.read_bytes()[:count])


@pytest.mark.parametrize("kept", [0, 100, 700, 1024, 1500])
def test_a_shard_cut_short_is_named(tmp_path, load, kept):
    shard = write(tmp_path / "0.tar", {"a.png": 1, "b.png": 2, "a.cls": "0", "b.cls": "0"})
    cut(shard, kept)
    with pytest.raises(ValueError, match=r"shard .*0\.tar cannot be read .*copy or unzip it again"):
        load(shard)


def test_a_damaged_header_is_not_the_end(tmp_path, load):
    shard = write(tmp_path / "0.tar", {"a.png": 1, "b.png": 2})
    content = bytearray(shard.read_bytes())
    content[1024 + 10] ^= 1  # in the header of the second image
    shard.write_bytes(content)
    with pytest.raises(ValueError, match="it ends early, or is damaged in the middle"):
        load(shard)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.png": 1, "a.jpg": 2}, r"0.tar has several images of one key \(a.jpg, a.png\)"),
        ({"a.png": 1, "b.png": 2, "a.cls": "0"}, "0.tar/b.png is one of 1 images without labels"),
        ({"a.png": 1, "a.cls": "-1"}, "0.tar/a.png has the label -1"),
        ({"a.png": 1, "a.cls": " "}, "0.tar/a.cls is empty"),
        ({"a.png": 1, "a.json": "{"}, "0.tar/a.json cannot be read .*correct it"),
        ({"a.png": 1, "a.json": '{"label": [1]}'}, r"label \[1\] is neither a whole number nor"),
        ({"a.png": "no image"}, "0.tar/a.png cannot be read"),
        ({"a.txt": "x"}, "has no images; passed over 1: 1 without an image"),
    ],
)
def test_what_is_unclear_is_an_error(tmp_path, load, members, message):
    shard = write(tmp_path / "0.tar", members)
    with pytest.raises(ValueError, match=message):
        load(shard)


def test_missing_shards_and_old_rules_are_errors(tmp_path, load):
    shard = write(tmp_path / "0.tar", {"a.png": 1})
    with pytest.raises(FileNotFoundError, match=r"there is no tar shard .*/1\.tar"):
        load(tmp_path / "{0..1}.tar")
    with pytest.raises(ValueError, match="data.decoding=1 does not read webdataset:PATTERN"):
        load(shard, decoding=1)
    with pytest.raises(ValueError, match="image_size is required for webdataset:PATTERN"):
        load(shard, image_size=0)


def test_unreadable_images_are_left_out_up_to_a_number(tmp_path, load, capsys):
    shard = write(tmp_path / "0.tar", {"a.png": 1, "b.png": "cut"})
    assert levels(load(shard, unreadable=1).train) == [(1, -1)]
    assert "1 unreadable left out (0.tar/b.png)" in capsys.readouterr().err


def test_patterns_are_those_of_a_shell():
    assert expand_braces("a{08..10}{x,y}") == [f"a{n}{c}" for n in ("08", "09", "10") for c in "xy"]
    names = {
        "val/0.tar": "val",
        "set-train-00-of-12.tar": "set-train",
        "0.tar": "shards",
        "part0/x/0.tar": "part0",
        "my_test/train-0.tar": "train",
        "part0/set-test-0.tar": "set-test",
    }
    assert {name: split_name(name) for name in names} == names
