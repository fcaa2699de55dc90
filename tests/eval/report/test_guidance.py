"""Fidelity against diversity along guidance scales, from the files of evaluations."""

import pytest

from fewstep.eval.report.guidance import guidance_plot, guidance_text
from fewstep.eval.report.runs import group_by_method, load_runs
from tests.eval.evaluated import evaluated_run

SCALES = {4.0: 0.7, 1.0: 0.4, 2.0: 0.5}  # the first is evaluated last


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """A run evaluated at three scales in 1 and 4 steps, and one at a single scale."""
    for name, scales in (("a", [*SCALES][::-1]), ("b", [1.0])):
        for scale in scales:
            evaluated_run(tmp_path / name, name, steps=(1, 4), sampling={"guidance_scale": scale})
    groups = group_by_method(load_runs([tmp_path / "a", tmp_path / "b"]))
    for own in groups["a"][0].guided.values():
        for scale, result in own.items():
            result["metrics"] |= {"recall": 1.0 / scale, "precision": SCALES[scale]}
    return groups


def test_results_are_found_by_steps_and_scale(groups):
    run = groups["a"][0]
    assert {steps: list(own) for steps, own in run.guided.items()} == {
        1: [1.0, 2.0, 4.0],
        4: [1.0, 2.0, 4.0],
    }
    assert run.sampling["guidance_scale"] == 4.0 and groups["b"][0].guided == {}


def test_each_number_of_steps_has_a_line_along_the_scales(groups):
    plot = guidance_plot(groups)
    assert [line.label for line in plot.lines] == ["a, 1 step", "a, 4 steps"]
    assert plot.lines[0].points == [(1.0, 0.4), (0.5, 0.5), (0.25, 0.7)]
    assert "1, 2, 4 along each line" in guidance_text(groups)
    assert guidance_plot({"b": groups["b"]}) is None


def test_a_method_has_one_colour_and_its_numbers_of_steps_have_dashes(groups):
    both = guidance_plot({"a": groups["a"], "c": groups["a"]}).lines
    colours, dashes = ([line.look[part] for line in both] for part in (0, 1))
    assert colours[0] == colours[1] != colours[2] == colours[3]
    assert dashes[0] == dashes[2] != dashes[1] == dashes[3]
