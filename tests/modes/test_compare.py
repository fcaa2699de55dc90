import csv
import re
from functools import partial
from importlib import import_module

import pytest

from fewstep.eval.report.results import save_results
from fewstep.models.dit import DiTSize
from fewstep.modes.compare import (
    ComparedRun,
    compare_methods,
    draft_run,
    is_evaluated,
    plan_runs,
)
from fewstep.modes.job import Draft
from fewstep.modes.request import Request
from fewstep.modes.sweep import add_teachers
from fewstep.training.report import DivergedError, NonFiniteError
from tests import cli
from tests.training.runs import small_config, small_experiment

# The smallest network with every part; it compiles in a third of the time.
run = partial(cli.run, nano=DiTSize(32, 1, 2))
SMALL = (
    "--config=configs/digits.py",
    "--config.model.size=nano",
    "--config.steps=2",
    "--config.batch_size=64",
    "--config.optimizer.schedule=constant",
    "--config.optimizer.warmup_steps=0",
    "--config.evaluate.steps=(1,2)",
    "--config.evaluate.num_samples=20",
    "--config.evaluate.batch_size=20",
    "--config.evaluate.features=pixels",
    "--config.evaluate.agreement=False",
)


def finished_runs(printed):
    """Return the numbers of the runs that a comparison printed as finished."""
    return re.findall(r"\[(\d)/\d\] [^\n]*\nfinished", printed)


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    """Compare edm and its student cd with two seeds each; return the folder and the output."""
    root = tmp_path_factory.mktemp("compare")
    return root, run("--mode=compare", "--methods=cd", "--seeds=0,1", f"--workdir={root}", *SMALL)


@pytest.mark.some_days(2)
def test_teachers_are_trained_first_and_everything_is_in_the_table(comparison):
    root, printed = comparison
    order = re.findall(r"\[\d/4\] (\w+), seed (\d)", printed.stdout)
    assert order == [("edm", "0"), ("edm", "1"), ("cd", "0"), ("cd", "1")]
    with (root / "table.csv").open() as file:
        every = list(csv.DictReader(file))
    assert every.pop()["method"] == "real images"
    assert [row["seed"] for row in every] == 4 * ["mean", "0", "1"]
    rows = {(row["method"], row["steps"]): row for row in every if row["seed"] == "mean"}
    assert set(rows) == {(method, steps) for method in ("edm", "cd") for steps in ("1", "2")}
    row = rows["cd", "1"]
    assert (row["seeds"], row["metric"], row["images_seen"]) == ("2", "fd-pixels-20", "128")
    low, mean, high = (float(row[f]) for f in ("frechet_low", "frechet", "frechet_high"))
    assert low < mean < high and float(row["frechet_least"]) == pytest.approx(low)
    assert row["frechet_spread"] == "range"
    assert {low, high} == {float(each["frechet"]) for each in every[7:9]}
    # Training costs three forward passes; cd adds two of the teacher (Heun) and one of the target.
    assert float(rows["edm", "1"]["network_evaluations"]) == pytest.approx(3 * 128, rel=0.1)
    assert float(row["network_evaluations"]) == pytest.approx(6 * 128, rel=0.1)
    # Both teachers' and the student's; edm was not asked for; Heun's second step is Euler's.
    assert [row["images_seen_with_teacher"] for row in every[5:7]] == ["", "256"]
    taught = float(rows["edm", "1"]["network_evaluations"])
    total = taught + float(row["network_evaluations"])
    assert float(row["network_evaluations_with_teacher"]) == pytest.approx(total)
    assert float(row["seconds_with_teacher"]) > float(row["seconds"])
    assert [rows[m, s]["evaluations"] for m in ("edm", "cd") for s in "12"] == ["1", "3", "1", "2"]
    assert (rows["edm", "1"]["added"], row["added"]) == ("teacher", "")
    assert "fd-pixels-20" in printed.stdout and f"{mean:.3f}" in printed.stdout
    page = (root / "report.html").read_text()
    assert f"{mean:.3f}" in page and page.count("added as a teacher") == 1


@pytest.mark.some_days(2)
def test_finished_runs_stay_and_missing_ones_are_made(comparison):
    root, _ = comparison
    seeds = {path: path.stat().st_mtime_ns for path in root.glob("*/*/checkpoints/*")}
    again = run("--mode=compare", "--methods=cd", "--seeds=0,1", f"--workdir={root}", *SMALL)
    assert finished_runs(again.stdout) == ["1", "2", "3", "4"]
    more = run("--mode=compare", "--methods=edm,sct", "--seeds=0", f"--workdir={root}", *SMALL)
    assert finished_runs(more.stdout) == ["1"]
    counted = (*SMALL, "--config.evaluate.num_samples=25")
    measured = run("--mode=compare", "--methods=edm", f"--workdir={root}", *counted)
    assert "fd-pixels-25" in measured.stdout and not finished_runs(measured.stdout)
    other = (*SMALL, "--config.evaluate.reference=test")
    measured = run("--mode=compare", "--methods=edm", f"--workdir={root}", *other)
    assert not finished_runs(measured.stdout)
    asked = run("--mode=compare", "--methods=edm", f"--workdir={root}", *SMALL)
    assert finished_runs(asked.stdout) == ["1"]
    assert again.stdout.splitlines()[9].split()[:4] != asked.stdout.splitlines()[4].split()[:4]
    assert asked.stdout.splitlines()[4].split()[3] in more.stdout
    assert all(path.stat().st_mtime_ns == time for path, time in seeds.items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "--methods is missing; name"),
        (("--methods=cdd",), "did you mean 'cd'"),
        (("--methods=cd", "--config.evaluate.guidance_scale=nan"), "must be a finite number"),
        (("--methods=cd", "--seeds=1-0"), "--seeds=1-0"),
        (("--methods=cd", "--config.optimizer.warmup_steps", "5"), "warmup_steps=5"),
        (("--methods=cd", "--config.objective.solver.name=heun"), "solver"),
        (("--methods=cd", "--config.teacher=runs/edm"), "a comparison trains the teachers"),
    ],
)
def test_an_invalid_comparison_is_refused_before_compute(tmp_path, options, message):
    result = run("--mode=compare", f"--workdir={tmp_path}/c", *SMALL, *options, expect=2)
    assert message in result.stderr and not (tmp_path / "c").exists()
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"evaluate.steps": (2,)}, "cannot sample in 2"),
        ({"start_from_teacher": False}, "only by starting from it"),
    ],
)
def test_a_staged_run_is_refused_before_its_teacher_trains(tmp_path, field, message):
    fields = {"steps": 4, "objective.max_steps": 2, "evaluate.steps": (1,), "teacher": "runs/edm"}
    with pytest.raises(ValueError, match=message):
        draft_run(tmp_path / "run", small_config("progressive", **fields | field))


def test_a_result_without_its_samples_is_made_again(tmp_path):
    job = Draft(small_config("cd"), None, None, None)
    one = ComparedRun(tmp_path, job, frozenset({"a", "b"}))
    (tmp_path / "eval").mkdir()
    for name in ("a.json", "a.npz", "b.json", "b.npz"):
        assert not is_evaluated(one)
        (tmp_path / "eval" / name).touch()
    assert is_evaluated(one)


def test_another_run_in_the_folder_of_a_run_is_refused(comparison):
    root, _ = comparison
    other = ("--mode=compare", "--methods=cd", f"--workdir={root}", *SMALL)
    result = run(*other, "--config.model.size=micro", expect=2)
    assert "holds a run with another config: model.size" in result.stderr
    result = run(*other, "--config.steps=1", expect=2)
    assert "is at step 2, beyond steps=1" in result.stderr


def test_teachers_come_before_their_students():
    teachers = {"cd": "edm", "sim_flow": "flow_matching"}
    ordered = add_teachers(["cd", "sim_flow", "edm"], teachers)
    assert ordered == ["edm", "cd", "flow_matching", "sim_flow"]


def test_every_run_has_its_seed_its_folder_and_the_teacher_of_its_seed(tmp_path, monkeypatch):
    module = import_module("fewstep.modes.compare")
    monkeypatch.setattr(module, "add_result_ids", lambda runs: runs)
    monkeypatch.setattr(module, "check_teacher", lambda *_: None)
    monkeypatch.setattr(
        module,
        "draft_run",
        lambda folder, config: ComparedRun(folder, Draft(config, None, None, None)),
    )
    request = Request(
        config=small_config("cd", seed=9),
        workdir=tmp_path,
        config_of_method=small_config,
        methods=("sct", "cd"),
        teachers={"cd": "edm"},
    )

    def planned(**fields):
        runs = plan_runs(tmp_path, request._replace(**fields))
        for one in runs:
            method, seed = one.config.method, one.config.seed
            taught = tmp_path / "edm" / f"seed_{seed}" if method == "cd" else ""
            assert one.config.teacher == str(taught)
            assert one.folder == tmp_path / method / f"seed_{seed}"
        return [(one.config.method, one.config.seed) for one in runs]

    methods = ("sct", "edm", "cd")
    assert planned(seeds=(4, 2)) == [(method, seed) for method in methods for seed in (4, 2)]
    # Without --seeds, the seed of the config.
    assert planned() == [(method, 9) for method in methods]


@pytest.mark.parametrize(
    ("trained", "evaluated", "done"),
    [(False, False, "train"), (True, False, "evaluate"), (True, True, "")],
)
def test_a_run_is_completed_by_its_own_config(tmp_path, monkeypatch, trained, evaluated, done):
    module, seen = import_module("fewstep.modes.compare"), []
    monkeypatch.setattr(module, "is_trained", lambda one: trained)
    monkeypatch.setattr(module, "is_evaluated", lambda one: evaluated)
    for mode in ("train", "evaluate"):
        done_by = lambda request, mode=mode: seen.append((mode, request))
        monkeypatch.setattr(module, f"{mode}_run", done_by)
    config, experiment = small_experiment(**{"ema.decays": (0.5, 0.9)})
    experiment = experiment._replace(sample_with="ema_0.9")
    module.complete_run(ComparedRun(tmp_path, Draft(config, None, experiment, None)))
    request = Request(config=config, workdir=tmp_path, network="ema_0.9")
    assert seen == ([(done, request)] if done else [])


def test_a_run_lacks_results_without_the_rows_that_are_asked_for(tmp_path):
    file = tmp_path / "eval" / "a.json"
    file.parent.mkdir()

    def is_done(*rows):
        job = Draft(small_config("dis", **{"evaluate.rows": rows}), None, None, None)
        return is_evaluated(ComparedRun(tmp_path, job, frozenset({"a"})))

    save_results(file, {"rows": {"hmc": {}}})
    assert not is_done()
    file.with_suffix(".npz").touch()
    assert is_done() and is_done("hmc") and not is_done("hmc", "weighted")
    save_results(file, {"id": "a"})  # of an older version
    assert is_done() and not is_done("hmc")


def make_config(method):
    config = small_config(method)
    config.data.name = "digits"
    return config


def test_students_follow_the_teachers_that_are_planned_for_them(tmp_path, monkeypatch):
    def other_size(method):
        config = make_config(method)
        config.model.size = "micro" if method == "flow_matching" else "nano"
        return config

    monkeypatch.setattr(import_module("fewstep.modes.compare"), "add_result_ids", lambda runs: runs)
    request = Request(
        config=make_config("cd"),
        config_of_method=other_size,
        methods=("cd",),
        teachers={"cd": "flow_matching"},
    )
    teacher, student = plan_runs(tmp_path, request)
    assert student.config.model.size == teacher.config.model.size == "micro"
    assert student.config.path == teacher.config.path
    with pytest.raises(ValueError, match="by ct, which does not predict data and noise"):
        plan_runs(tmp_path, request._replace(teachers={"cd": "ct"}))
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_refused_before_the_data_are_read(tmp_path):
    (tmp_path / "file").write_text("no folder")
    request = Request(config=small_config(), workdir=tmp_path / "file/runs", methods=("cd",))
    with pytest.raises(
        OSError, match="file/runs cannot be written to .*; choose another --workdir"
    ):
        compare_methods(request)


@pytest.mark.some_days(2)
def test_a_diverged_run_is_left_out_with_its_students(tmp_path, monkeypatch, capsys):
    def diverging(one):
        if one.config.method == "edm":
            raise NonFiniteError("loss is not finite at step 1")

    module = import_module("fewstep.modes.compare")
    shown = []
    monkeypatch.setattr(module, "complete_run", diverging)
    monkeypatch.setattr(module, "write_tables", lambda root, runs: shown.append(runs))
    request = Request(
        config=make_config("cd"),
        workdir=tmp_path,
        config_of_method=make_config,
        methods=("cd", "flow_matching"),
        teachers={"cd": "edm"},
    )
    compare_methods(request)
    assert [one.folder for one in shown[0]] == [tmp_path / "flow_matching" / "seed_0"]
    printed = capsys.readouterr()
    assert "left out: loss is not finite" in printed.err
    assert f"left out: {tmp_path}/cd/seed_0; it or" in printed.out
    with pytest.raises(DivergedError, match="every run diverged"):
        compare_methods(request._replace(methods=("cd",)))
