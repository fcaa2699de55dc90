"""Seeds and labels make pairs, each once, and each pair has a file of its own."""

import re
from pathlib import Path

import pytest

from fewstep.modes.draws import MANY, choose_labels, choose_pairs, many_steps, sibling_path
from tests.training.runs import small_experiment

NAMES = ("ant", "cat", "0-1", "dog")


@pytest.mark.parametrize(
    ("seeds", "labels", "grid", "pairs"),
    [
        ((10, 20, 30), (0, 1, 2), (), [(10, 0), (20, 1), (30, 2)]),
        ((5, 5, 5), (0, 1, 2), (), [(5, 0), (5, 1), (5, 2)]),
        ((7, 8, 9), (2, 0), (), [(7, 2), (8, 0), (9, 2)]),
        ((7,), (2, 0, 3), (), [(7, 2), (7, 0), (7, 3)]),
        ((7, 8, 7), (1,), (), [(7, 1), (8, 1)]),
        ((10, 3), (), (), [(10, 2), (3, 3)]),
        ((6, 5), (3, 1), ("seeds", "labels"), [(6, 3), (6, 1), (5, 3), (5, 1)]),
        ((6, 5, 6), (3, 1), ("labels", "seeds"), [(6, 3), (5, 3), (6, 1), (5, 1)]),
        ((6,), (), ("seeds", "labels"), [(6, 0), (6, 1), (6, 2), (6, 3)]),
    ],
)
def test_pairs(seeds, labels, grid, pairs):
    draw = choose_pairs(seeds, labels, len(NAMES), grid)
    assert [*zip(draw.seeds, draw.labels, strict=True)] == pairs
    assert draw.files() == [f"{seed:06d}-label_{label}.png" for seed, label in pairs]
    assert draw.captions(NAMES) == [f"{NAMES[label]}\nseed {seed}" for seed, label in pairs]


def test_a_grid_has_a_column_for_each_value_of_its_second_axis():
    assert choose_pairs((6, 5, 6), (3, 1, 2), 4, ("seeds", "labels")).columns == 3
    assert choose_pairs((6, 5, 6), (3, 1, 2), 4, ("labels", "seeds")).columns == 2


def test_labels_are_as_wide_as_the_largest_and_left_out_without_classes():
    assert choose_pairs((5,), (7,), 100).files() == ["000005-label_07.png"]
    draw = choose_pairs((5, 6), (), 0)
    assert (draw.files(), draw.captions(())) == (["000005.png", "000006.png"], ["seed 5", "seed 6"])


@pytest.mark.parametrize(
    ("asked", "labels"),
    [((1, "cat"), [1, 1]), (("1-3", 0), [1, 2, 3, 0]), (("0-1",), [2]), ((), [])],
)
def test_labels_are_indices_ranges_or_names(asked, labels):
    assert choose_labels(asked, len(NAMES), NAMES) == labels


@pytest.mark.parametrize(
    ("seeds", "labels", "classes", "grid", "message"),
    [
        ((1, 2), (0, 1, 2), 4, (), "--labels has 3 labels for 2 --seeds, .*--grid=seeds,labels"),
        ((1,), (), 0, ("seeds", "labels"), "--grid crosses .* has no classes"),
        ((1,), ("1-9",), 4, (), "--labels=4 is out of range"),
        ((1,), ("3-1",), 4, (), "--labels=3-1 is not a class"),
        ((1,), (0,), 0, (), "--labels has no effect"),
    ],
)
def test_pairs_that_are_none_are_refused(seeds, labels, classes, grid, message):
    with pytest.raises(ValueError, match=re.compile(message)):
        choose_pairs(seeds, choose_labels(labels, classes, NAMES[:classes]), classes, grid)


@pytest.mark.parametrize(
    ("out", "beside"), [("a/samples", "a/samples.png"), ("b.npz", "b.png"), (".", "{}.png")]
)
def test_what_lies_beside_a_draw_has_its_name(tmp_path, monkeypatch, out, beside):
    monkeypatch.chdir(tmp_path)
    assert sibling_path(Path(out), ".png") == Path(beside.format(tmp_path.resolve()))


@pytest.mark.parametrize(("method", "steps"), [("guidance", MANY), ("reflow", None), ("cd", None)])
def test_a_denoiser_needs_many_steps_unless_pairs_have_made_it_straight(method, steps):
    assert many_steps(small_experiment(method)[1].objective) == steps
