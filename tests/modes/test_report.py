"""--mode=report passes its flags to the page, and counts the evaluations of each run."""

from importlib import import_module
from pathlib import Path

import pytest

from fewstep.eval.report import run_page
from fewstep.eval.report.runs import group_by_method, load_runs
from fewstep.modes.request import Request
from tests.eval.evaluated import evaluated_run

REPORT = import_module("fewstep.modes.report")
TWO = (Path("a"), Path("b"))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"workdirs": TWO}, (TWO, Path("report.html"), "")),
        ({"workdir": Path("c")}, ((Path("c"),), Path("report.html"), "")),
        ({"workdirs": TWO, "workdir": Path("c")}, (TWO, Path("report.html"), "")),
        ({"workdirs": TWO, "out": Path("p.html")}, (TWO, Path("p.html"), "")),
        ({"workdirs": TWO, "metric": "fd-pixels-1k"}, (TWO, Path("report.html"), "fd-pixels-1k")),
    ],
)
def test_folders_page_and_metric_are_those_asked_for(monkeypatch, fields, expected):
    seen = []
    monkeypatch.setattr(REPORT, "write_page", lambda *given: seen.append(given) or [])
    REPORT.report(Request(**{"config": None, "workdir": None} | fields))
    assert seen == [expected]


def test_each_run_has_the_evaluations_of_its_images(monkeypatch, tmp_path):
    folders = [evaluated_run(tmp_path / str(seed), "cd", seed, steps=(1,)) for seed in (0, 1)]
    (group,) = group_by_method(load_runs(folders)).values()
    seen = group[1].budget["images_seen"]
    group[1] = group[1]._replace(budget={**group[1].budget, "images_seen": 2 * seen})
    monkeypatch.setattr(run_page, "rebuild", lambda config, run: "experiment")
    monkeypatch.setattr(run_page, "network_evaluations", lambda config, experiment: 6.0)
    counted = run_page.add_network_evaluations(group)
    assert [run.budget["network_evaluations"] for run in counted] == [6.0 * seen, 12.0 * seen]
