import pytest

from fewstep.training.storage.listing import LISTING, changed_files, write_listing

FILES = [(f"train/c{i % 2}/{i}.png", 100 + i, 7) for i in range(8)]


@pytest.fixture
def begun(tmp_path):
    write_listing(tmp_path, FILES)
    return tmp_path


def without(name):
    return [file for file in FILES if file[0] != name]


@pytest.mark.parametrize(
    ("now", "words"),
    [
        ([*FILES, ("train/c0/new.png", 1, 1)], "added: train/c0/new.png"),
        (without("train/c1/3.png"), "removed: train/c1/3.png"),
        (
            [*without("train/c1/3.png"), ("train/c0/3.png", 103, 7)],
            "added: train/c0/3.png; removed: train/c1/3.png",
        ),
        ([*without("train/c1/3.png"), ("train/c1/3.png", 103, 8)], "written to: train/c1/3.png"),
        ([(name, size, 9) for name, size, _ in FILES], ""),  # a copy: its times mean nothing
        ([(n, s + (n == "train/c0/2.png"), 9) for n, s, _ in FILES], "written to: train/c0/2.png"),
        (FILES[:2], "removed: train/c0/2.png, train/c0/4.png, train/c0/6.png and 3 more"),
        (FILES, ""),
    ],
)
def test_the_files_that_changed_are_named(begun, now, words):
    assert changed_files(begun, now) == words


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"record": {"files": 3}, "crc32": 1}'])
def test_a_listing_that_cannot_be_read_names_nothing(begun, content):
    (begun / LISTING).write_text(content)
    assert changed_files(begun, FILES[:3]) == ""


def test_the_listing_stays_that_of_the_beginning(begun, tmp_path):
    write_listing(begun, FILES[:3])
    assert changed_files(begun, FILES) == ""
    write_listing(tmp_path / "no run", [])
    assert not (tmp_path / "no run").exists()
