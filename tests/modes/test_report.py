"""--mode=report finds the runs of its folders, and writes what the name of its file says."""

import csv
from pathlib import Path

import numpy as np
import pytest

from fewstep.eval.report.folders import record_methods
from fewstep.eval.report.results import ROWS, load_results
from fewstep.modes.report import report
from fewstep.modes.request import Request
from tests.eval.evaluated import MEASUREMENT, evaluated_run, save_evaluation


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    """A folder with a comparison of two methods, a run beside it, and one without evaluation."""
    root = tmp_path_factory.mktemp("runs")
    for method, frechet in (("cd", 0.4), ("edm", 0.6)):
        for seed in (0, 1):
            folder = root / "compare" / method / f"seed_{seed}"
            evaluated_run(folder, method, seed, frechet=frechet * (1 + seed), steps=(1, 4))
    record_methods(root / "compare", ["cd"])
    evaluated_run(root / "alone", "sim", steps=(1,))
    evaluated_run(root / "compare" / "edm" / "seed_2", "edm", 2, steps=())
    return root


def written(root, name, *folders, **fields):
    """The text that --mode=report writes."""
    report(Request(workdirs=tuple(root / folder for folder in folders), out=root / name, **fields))
    return (root / name).read_text()


@pytest.mark.parametrize("folders", [("compare", "alone"), ("",), ("alone", "compare/edm", "")])
def test_folders_of_runs_and_runs_are_mixed(comparison, folders, capsys):
    rows = list(csv.DictReader(written(comparison, "x.csv", *folders).splitlines()))
    seeds = {(row["method"], row["seed"]) for row in rows}
    both = {(method, seed) for method in ("cd", "edm") for seed in ("mean", "0", "1")}
    assert seeds == both | {("sim", "mean"), ("sim", "0"), ("real images", "")}
    assert len(rows) == 2 * len(both) + 3
    assert "seed_2 is left out, since it has not been evaluated" in capsys.readouterr().err


def test_a_run_named_by_workdir_is_shown_with_those_of_workdirs(comparison):
    written(comparison, "x.csv", "compare", workdir=comparison / "alone")
    rows = list(csv.DictReader((comparison / "x.csv").read_text().splitlines()))
    assert {row["method"] for row in rows} == {"cd", "edm", "sim", "real images"}


def test_markdown_has_the_means_and_each_seed(comparison):
    text = written(comparison, "x.md", "compare")
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    cells = {tuple(row[2:-2].split(" | ")[:2]): row[2:-2].split(" | ") for row in rows}
    assert cells["cd", "1"][2] == "0.600 (0.400 to 0.800)"
    assert cells["edm (added as a teacher)", "1"][2] == "0.900 (0.600 to 1.200)"
    assert cells["cd, seed 1", "1"][2] == "0.800"
    assert len({len(row) for row in cells.values()}) == 1
    assert text.startswith("# Fewstep: digits\n\nfd-classifier-1k: 1,000 samples")
    assert "\n\n\n" not in text


def test_rows_that_correct_samples_and_smc_are_in_every_form(tmp_path):
    folder = evaluated_run(tmp_path / "run", "dis", steps=(1,))
    (file,) = (folder / "eval").glob("*.json")
    of_row = {"ess": 0.25, "evaluations": 30.0}
    rows = {"weighted": of_row, "hmc": {"mmd": 0.5}, "smc": {"ess": 0.75, "evaluations": 0.0}}
    with np.load(file.with_suffix(".npz")) as saved:
        samples = {name: saved[name] for name in ("x", "y", "way")}
    save_evaluation(file, load_results(file) | {"rows": rows}, **samples)
    forms = [written(tmp_path, f"x.{form}", "run") for form in ("csv", "md", "html")]
    titles = (f"dis, {ROWS['weighted']}", ROWS["hmc"], ROWS["smc"])
    assert all(title in text for text in forms for title in titles)
    table = {row["method"]: row for row in csv.DictReader(forms[0].splitlines())}
    assert table[f"dis, {ROWS['weighted']}"]["ess"] == "0.25"
    assert table[f"dis, {ROWS['weighted']}"]["evaluations"] == "30"
    assert (table[f"dis, {ROWS['hmc']}"]["mmd"], table[ROWS["smc"]]["ess"]) == ("0.5", "0.75")


def test_the_page_marks_what_was_added(comparison):
    text = written(comparison, "x.html", "compare")
    assert text.startswith("<!DOCTYPE html>") and text.count("added as a teacher") == 1


@pytest.mark.parametrize(
    ("folder", "name", "message"),
    [
        ("compare", "x.pdf", r"x.pdf must end in .html, .md, .csv"),
        ("compare", "x", "must end in"),
        ("nothing", "x.md", "nothing: it is no run and has none in it"),
        ("compare/edm/seed_0/eval", "x.md", "has none in it"),
    ],
)
def test_other_files_and_folders_are_refused(comparison, folder, name, message):
    with pytest.raises(ValueError, match=message):
        written(comparison, name, folder)
    assert not (comparison / name).exists() or name == "x.md"


def test_a_folder_of_runs_without_evaluations_is_refused(tmp_path):
    evaluated_run(tmp_path / "a", steps=())
    with pytest.raises(ValueError, match="no run in it has been evaluated"):
        report(Request(workdirs=(tmp_path,), out=Path(tmp_path / "x.md")))


def test_runs_of_other_protocols_share_no_table(comparison, tmp_path):
    evaluated_run(tmp_path / "other", measurement={**MEASUREMENT, "samples": 2000})
    with pytest.raises(ValueError, match="samples"):
        report(Request(workdirs=(comparison / "alone", tmp_path / "other"), out=tmp_path / "x.md"))
    assert not (tmp_path / "x.md").exists()


@pytest.mark.parametrize("folder", ["sweep", ""])
def test_a_swept_field_has_a_column(tmp_path, folder):
    for rate in (1e-4, 3e-4):
        config = {"optimizer": {"learning_rate": rate}, "steps": 7}
        cell = tmp_path / "sweep" / "cd" / f"learning_rate_{rate}" / "seed_0"
        evaluated_run(cell, "cd", steps=(1, 4), config=config)
    record_methods(tmp_path / "sweep", ["cd"], ["optimizer.learning_rate"])
    record_methods(tmp_path / "sweep", ["sim"], ["steps"])
    evaluated_run(tmp_path / "sweep" / "edm" / "seed_0", "edm", steps=(1,))
    rows = list(csv.DictReader(written(tmp_path, "x.csv", folder).splitlines()))
    means = [row for row in rows if row["seed"] == "mean" and row["method"].startswith("cd")]
    assert [row["optimizer.learning_rate"] for row in means] == 2 * ["0.0001"] + 2 * ["0.0003"]
    assert [(row["training_steps"], row["steps"]) for row in means[:2]] == [("7", "1"), ("7", "4")]
    assert [row["added"] for row in rows if row["method"] == "edm"] == 2 * ["teacher"]
    text = written(tmp_path, "x.md", folder)
    assert "| method | optimizer.learning_rate | training_steps | steps |" in text
    page = written(tmp_path, "x.html", folder)
    heading = '<th scope="col" data-sort="number">optimizer.learning_rate</th>'
    assert heading in page and '<td data-value="0.0003">0.0003</td>' in page
