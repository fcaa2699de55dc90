"""The table of metrics: its names exist, and everything that shows or ranks metrics reads it."""

import inspect
import json
import re
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from fewstep.eval.metrics import MAIN, METRICS
from fewstep.eval.metrics.metric import (
    ARROWS,
    LESS,
    MORE,
    NEITHER,
    Inputs,
    Metric,
    compute_metrics,
    error_name,
)
from fewstep.eval.report.page import NOTES
from fewstep.eval.report.spreadsheet import SHOWN
from fewstep.eval.report.table import metric_column
from fewstep.modes.retention import retention_of
from tests.eval.evaluated import REAL, metrics_at
from tests.training.runs import small_config

CHECKPOINTS = import_module("fewstep.modes.checkpoints")  # the package's own is the function
ROOT = Path(__file__).parents[3]
DOCUMENTED = re.compile(r"^\| ([^|]+) \|[^|]+\| (eval/metrics/\w+\.py) \|$", re.MULTILINE)
EVERY = [*METRICS, *(error_name(name) for name, metric in METRICS.items() if metric.error)]


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_needs_as_many_inputs_as_its_function_takes(name):
    metric = METRICS[name]
    positional = inspect.Parameter.POSITIONAL_OR_KEYWORD
    taken = inspect.signature(metric.compute).parameters.values()
    assert len(metric.needs) == sum(parameter.kind == positional for parameter in taken)
    assert set(metric.needs) <= set(Inputs._fields)
    returned = inspect.get_annotations(metric.compute)["return"]
    parts = {metric.part, metric.error} - {""}
    assert parts <= set(returned._fields) if parts else returned is float
    assert metric.part in ("", OTHER_PARTS.get(name, name))
    assert metric.better in ARROWS and metric.format.format(0.5)


def test_a_function_of_several_metrics_runs_once_and_what_lacks_inputs_is_left_out():
    calls = []

    def total(features):
        calls.append(len(features))
        return np.polynomial.Polynomial([0.0, 1.0])

    one = Metric(total, {"features": 2}, "one", "{}", MORE, part="domain")
    other = one._replace(part="window", error="coef")
    unknown = Metric(float, {"logits": 0}, "unknown", "{}", LESS)
    table = {"one": one, "other": other, "unknown": unknown}
    found = compute_metrics(table, Inputs(features=np.zeros((2, 3))))
    assert list(found) == ["one", "other", "other_error"] and calls == [2]
    assert compute_metrics(table, Inputs(features=np.zeros((1, 3)))) == {}


def test_the_fixture_of_evaluated_runs_has_metrics_that_exist():
    assert {*metrics_at(0.5, 1)} <= {*EVERY} and REAL.keys() <= METRICS.keys()


def test_the_documentation_lists_every_metric_and_its_file():
    rows = DOCUMENTED.findall((ROOT / "docs" / "evaluation.md").read_text())
    documented = {heading: file for headings, file in rows for heading in headings.split(", ")}
    assert documented == {
        metric.heading: f"{metric.compute.__module__.removeprefix('fewstep.').replace('.', '/')}.py"
        for metric in METRICS.values()
    }


def test_each_metric_has_its_direction():
    more = {"agreement", "inception_score", "precision", "recall", "density", "coverage"}
    neither = {"deviation_ratio", "quartile_ratio", "narrowest_ratio", "mode_entropy", "closer"}
    found = {name: metric.better for name, metric in METRICS.items()}
    assert {name for name, better in found.items() if better == MORE} == more
    assert {name for name, better in found.items() if better == NEITHER} == neither


# Metrics whose number is a field of another name.
OTHER_PARTS = {
    "closer": "share_closer",
    "kernel": "value",
    "inception_score": "mean",
    "deviation_ratio": "deviation",
    "quartile_ratio": "quartiles",
    "narrowest_ratio": "narrowest",
    "mean_error": "mean",
}


@pytest.mark.parametrize("better", [LESS, MORE, NEITHER])
def test_a_new_entry_is_shown_and_ranked_everywhere(tmp_path, monkeypatch, better):
    new = Metric(float, {}, "new", "{:.1f}", better)
    monkeypatch.setitem(METRICS, "new", new)
    column = metric_column("new")
    assert column.heading == f"new{ARROWS[better]}"
    assert column.largest_is_best == (better == MORE)
    shown = CHECKPOINTS.format_distances({"new_1": 0.25, "new_error_1": 0.5, "unknown_1": 1.0})
    assert shown == ("; new_1 0.25" if better == LESS else "")
    fields = {"checkpoint.keep_best": "new_4", "evaluate.every": 5, "evaluate.steps": (1, 4)}
    if better == NEITHER:
        with pytest.raises(ValueError, match="keep_best=new_4 must be one of frechet, "):
            retention_of(small_config(**fields), tmp_path)
        return
    rows = [{"step": step, "evaluate/new_4": value} for step, value in ((5, 0.5), (10, 0.75))]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    scores = retention_of(small_config(**fields), tmp_path).scores()
    assert min(scores, key=scores.get) == (5 if better == LESS else 10)


def test_the_best_checkpoint_needs_an_evaluation_at_its_number_of_steps(tmp_path):
    for fields in ({"evaluate.every": 0}, {"evaluate.every": 5, "evaluate.steps": (1,)}):
        with pytest.raises(ValueError, match="one of evaluate.steps, such as frechet_1"):
            retention_of(small_config(**{"checkpoint.keep_best": "recall_4"}, **fields), tmp_path)


def test_notes_and_text_columns_come_from_the_table():
    notes = " ".join(NOTES)
    assert all(metric.note in notes for metric in METRICS.values())
    in_text = {name: metric.format for name, metric in METRICS.items() if metric.in_text}
    assert MAIN in in_text and in_text.items() <= SHOWN.items()


@pytest.mark.parametrize(
    ("best", "fields"),
    [
        ("frechet_1", {"evaluate.features": "none"}),
        ("agreement_1", {"evaluate.agreement": False}),
        ("wasserstein_1_1", {}),
    ],
)
def test_no_checkpoint_is_best_by_what_evaluations_lack(tmp_path, best, fields):
    fields |= {"checkpoint.keep_best": best, "evaluate.every": 5, "evaluate.steps": (1,)}
    with pytest.raises(ValueError, match=f"keep_best={best} must be one of .* gives"):
        retention_of(small_config(**fields), tmp_path)
