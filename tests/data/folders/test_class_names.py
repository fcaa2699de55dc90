import pytest

from fewstep.data.folders.class_names import (
    join_names,
    label_of,
    label_texts,
    printable,
    sort_naturally,
)

ANIMALS = ("cat", "guinea pig", "3", "Zebra", " odd ", "a,b")


@pytest.mark.parametrize(
    "names",
    [
        ["1", "2", "10", "11", "20"],
        ["9", "09", "10"],
        ["a2", "a10", "b1"],
        ["Bee", "ant", "zebra"],
        ["", "1", "1a", "1b2", "1b10", "a", "a1", "ä"],
        ["0000", "n2", "n10"],
        ["x²", "x³"],  # no digits of a number
    ],
)
def test_numbers_in_names_are_sorted_as_numbers(names):
    expected = ["09", "9", "10"] if "09" in names else names
    assert sort_naturally(reversed(names)) == expected


@pytest.mark.parametrize(
    ("asked", "label"),
    [
        ("cat", 0),
        ("guinea pig", 1),
        (0, 0),
        (3, 3),
        ("name:3", 2),
        ("name:cat", 0),
        ("odd", 4),
        ("a,b", 5),
        ("03", 3),
    ],
)
def test_a_class_is_found_by_index_or_name(asked, label):
    assert label_of(asked, ANIMALS, len(ANIMALS)) == label


def test_a_number_is_an_index_where_a_class_has_another_by_name(capsys):
    assert label_of(3, ANIMALS, 6) == 3
    assert (
        "--labels=3 is the index 3, the class named 'Zebra'; --labels=name:3 is the class "
        "named '3'" in capsys.readouterr().err
    )
    assert label_of(42, ("7", "42"), 2) == 1  # no index
    assert label_of("007", ("a", "007"), 2) == 1
    assert label_of(1, ("0", "1"), 2) == 1
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("asked", "names", "message"),
    [
        (
            "cta",
            ANIMALS,
            "--labels=cta is not a class; did you mean cat.* The classes are cat, guinea",
        ),
        ("zebra", ANIMALS, "did you mean Zebra"),
        ("name:4", ANIMALS, "--labels=4 is not a class"),
        ("qqq", ANIMALS, r"--labels=qqq is not a class\. The classes are"),
        ("", ANIMALS, "is not a class"),
        (6, ANIMALS, "--labels=6 is out of range; this model has 0 to 5: cat"),
        (-1, ANIMALS, "out of range"),
        (6, (), "--labels=6 is out of range; this model has 0 to 5"),
        ("cat", (), "has no class names; give numbers from 0 to 5"),
    ],
)
def test_a_wrong_label_names_the_nearest(asked, names, message):
    with pytest.raises(ValueError, match=message):
        label_of(asked, names, 6)


def test_names_are_listed_and_described():
    assert join_names([str(i) for i in range(12)]) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more"
    assert label_texts([0, 1, 5], ("cat", "1")) == ["0 (cat)", "1", "5"]
    assert printable("a\nb\udcff é") == r"a\nb\udcff é"
