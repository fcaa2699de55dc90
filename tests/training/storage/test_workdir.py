import json
import os

import pytest
from ml_collections import ConfigDict

from fewstep.eval.report import evaluation
from fewstep.files import write_json
from fewstep.training import pairs, profile, replay
from fewstep.training.cluster import watchdog
from fewstep.training.location import locate_teacher
from fewstep.training.loggers import EVENTS, TABLE
from fewstep.training.metrics import DROPPED, LOG
from fewstep.training.storage import environment, workdir
from fewstep.training.storage.defaults import fill_missing_fields
from fewstep.training.storage.identity import as_dict, read_identity
from tests.cli import SERVER
from tests.training.killed import signal_self
from tests.training.runs import save_run, small_config


@pytest.fixture
def saved(monkeypatch):
    """Makes every run one that has saved step 10."""
    monkeypatch.setattr(workdir.restore, "has_checkpoint", lambda folder: True)
    monkeypatch.setattr(workdir.restore, "saved_step", lambda folder: 10)


def test_a_config_survives_its_folder(tmp_path):
    fields = {"evaluate.steps": (1, 4), "path.sigma_data": None}
    config = ConfigDict(fill_missing_fields(as_dict(small_config(**fields))))
    workdir.start_run(tmp_path / "run", config)
    loaded = workdir.load_config(tmp_path / "run")
    assert loaded.to_dict() == as_dict(config)
    assert list(loaded.evaluate.steps) == [1, 4]
    assert json.loads((tmp_path / "run" / "environment.json").read_text())[-1]["devices"]


def test_only_what_leaves_the_run_the_same_may_change(tmp_path, request):
    workdir.start_run(tmp_path, small_config())
    request.getfixturevalue("saved")
    workdir.start_run(tmp_path, small_config(**{"steps": 20, "log.every": 7, "mesh.fsdp": 2}))
    changed = small_config(**{"optimizer.learning_rate": 0.5, "objective.max_steps": 64})
    with pytest.raises(ValueError) as error:
        workdir.start_run(tmp_path, changed)
    assert "optimizer.learning_rate (0.001 there, 0.5 now)" in str(error.value)
    assert "objective.max_steps (128 there, 64 now)" in str(error.value)
    assert "log.every" not in str(error.value)
    assert (
        "It keeps objective.max_steps, since it would minimise another loss; "
        "optimizer.learning_rate, since every update so far depends on it. To train its networks "
        f"on with these values, start a new run: add --from={tmp_path} --workdir={tmp_path}_2"
    ) in str(error.value)
    other = small_config(**{"prediction.kind": "v"})
    with pytest.raises(ValueError, match="mean something else. Choose another --workdir, or"):
        workdir.start_run(tmp_path, other)
    scheduled = small_config(**{"optimizer.schedule": "cosine"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workdir.restore, "has_checkpoint", lambda folder: False)
        workdir.start_run(tmp_path / "cosine", scheduled)
    scheduled.steps = 20
    with pytest.raises(ValueError, match=r"steps \(10 there, 20 now\)"):
        workdir.start_run(tmp_path / "cosine", scheduled)
    # The record is still the run's own.
    assert workdir.load_config(tmp_path).optimizer.learning_rate == 1e-3


def test_a_run_that_is_measured_otherwise_says_that_its_curve_mixes(tmp_path, request, capsys):
    measured = {"evaluate.every": 5, "evaluate.num_samples": 100}
    workdir.start_run(tmp_path / "run", small_config(**measured))
    workdir.start_run(tmp_path / "no_curve", small_config())
    request.getfixturevalue("saved")
    workdir.start_run(tmp_path / "run", small_config(**measured, **{"evaluate.batch_size": 10}))
    workdir.start_run(tmp_path / "no_curve", small_config(**measured))
    assert capsys.readouterr().err == ""
    workdir.start_run(tmp_path / "run", small_config(**measured | {"evaluate.num_samples": 200}))
    assert (
        "evaluate.num_samples (100 there, 200 now): its curves, and checkpoint.keep_best, compare "
        "evaluations that are not alike"
    ) in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("method", "fields", "changeable"),
    [
        ("ct", {}, False),
        ("ct", {"objective.curriculum.total_steps": 100}, True),
        ("ict", {}, False),
        ("ect", {}, False),
        ("ect", {"objective.total_steps": 100}, True),
        ("cd", {}, True),
        ("cd", {"optimizer.schedule": "linear"}, False),
        ("sct", {}, True),
        ("sct", {"objective.tangent_warmup": None}, False),
        ("scd", {"objective.tangent_warmup": None}, False),
        ("edm", {}, True),
        ("edm", {"player_optimizers": {"network": {"schedule": "cosine"}}}, False),
        ("edm", {"player_optimizers": {"network": {"schedule": "constant"}}}, True),
    ],
)
def test_a_run_whose_grid_depends_on_its_length_keeps_it(
    tmp_path, method, fields, changeable, request
):
    workdir.start_run(tmp_path, small_config(method, **fields))
    request.getfixturevalue("saved")
    longer = small_config(method, **fields, steps=20)
    if changeable:
        workdir.start_run(tmp_path, longer)
        assert workdir.load_config(tmp_path).steps == 20
    else:
        with pytest.raises(ValueError, match=r"steps \(10 there, 20 now\)"):
            workdir.start_run(tmp_path, longer)


@pytest.mark.parametrize("other", [{"seed": 1}, {"steps": 20, "optimizer.schedule": "cosine"}])
def test_a_run_that_has_saved_nothing_gives_way_and_nothing_of_it_is_lost(tmp_path, capsys, other):
    first = workdir.start_run(tmp_path, small_config())
    left = {"metrics.jsonl": "a row", "pairs.npz": "pairs"}
    for name, text in left.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "mine.txt").write_text("of the user")
    assert workdir.start_run(tmp_path, small_config()).id == first.id  # the same one begins again
    assert capsys.readouterr().err == "" and not (tmp_path / workdir.UNSAVED).exists()
    second = workdir.start_run(tmp_path, small_config(**other))
    assert f"a new run begins, and {tmp_path}/unsaved/0 keeps" in capsys.readouterr().err
    assert second.id != first.id and (tmp_path / "mine.txt").exists()
    kept = tmp_path / "unsaved" / "0"
    assert read_identity(kept).id == first.id and not (tmp_path / "metrics.jsonl").exists()
    assert {name: (kept / name).read_text() for name in left} == left
    workdir.start_run(tmp_path, small_config(), started_from={"id": "a"})
    assert read_identity(tmp_path / "unsaved" / "1").id == second.id
    workdir.start_run(tmp_path, small_config(), started_from={"id": "b"})
    assert (tmp_path / "unsaved" / "2").is_dir()


def test_every_file_of_a_run_is_kept_with_it():
    assert {LOG, DROPPED, EVENTS, TABLE, evaluation.FOLDER} < {*workdir.LEFT}
    assert {pairs.FILE, pairs.PARTS} < {*workdir.LEFT}
    assert {profile.FOLDER, replay.FOLDER, watchdog.FOLDER} < {*workdir.LEFT}


@pytest.mark.parametrize("field", [{"teacher": "runs/b@3"}, {"start_from_teacher": False}])
def test_a_run_keeps_its_teacher(tmp_path, field, request):
    workdir.start_run(tmp_path, small_config("cd", teacher="runs/a@3"))
    request.getfixturevalue("saved")
    with pytest.raises(ValueError, match=next(iter(field))):
        workdir.start_run(tmp_path, small_config("cd", **{"teacher": "runs/a@3"} | field))


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(ValueError, match=r"config.json does not exist"):
        workdir.load_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        workdir.load_config(tmp_path)


def test_a_folder_belongs_to_one_process_at_a_time(tmp_path):
    folder = tmp_path / "run"
    with workdir.claim_workdir(folder):
        process = SERVER.Process(target=claim, args=(folder, tmp_path / "said"))
        process.start()
        process.join()
    said = (tmp_path / "said").read_text()
    assert f"{folder} is being trained in (process {os.getpid()} on " in said
    with workdir.claim_workdir(folder):  # given back
        pass


def claim(folder, said):
    try:
        with workdir.claim_workdir(folder):
            said.write_text("claimed")
    except ValueError as error:
        said.write_text(str(error))


def test_a_killed_process_gives_its_folder_back(tmp_path):
    process = SERVER.Process(target=claim_and_die, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == -9
    with workdir.claim_workdir(tmp_path):
        pass


def claim_and_die(folder):
    with workdir.claim_workdir(folder):
        signal_self()


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(OSError, match=r"file/run cannot be written to \(Not a directory\); choose"),
        workdir.claim_workdir(tmp_path / "file" / "run"),
    ):
        pass


def test_a_full_disk_is_found_before_training(tmp_path):
    workdir.check_space(tmp_path, 2**10)
    with pytest.raises(OSError, match="a checkpoint of this run takes 1048576.00 GiB; free disk"):
        workdir.check_space(tmp_path, 2**50)


def test_a_run_without_its_record_says_what_it_is_by_its_checkpoint(tmp_path):
    folder = save_run(tmp_path / "run", "flow_matching")
    config = workdir.load_config(tmp_path / "run")
    (tmp_path / "run" / "config.json").unlink()
    assert workdir.is_run(tmp_path / "run") and locate_teacher(folder).folder == tmp_path / "run"
    assert workdir.load_config(tmp_path / "run").to_dict() == config.to_dict()
    with pytest.raises(ValueError, match="batch_size"):  # it does not begin as another run
        workdir.start_run(tmp_path / "run", small_config("flow_matching", batch_size=32))


def start_entries(*starts):
    """Entries of environment.json: (devices, processes, kind)."""
    return [
        {"devices": [f"d{i}" for i in range(count)], "processes": processes}
        | ({"kind": kind} if kind else {})
        for count, processes, kind in starts
    ]


@pytest.mark.parametrize(
    ("starts", "step", "line"),
    [
        ([(1, 1, "cpu")], 0, "starts {} for 12 steps on 1 device (cpu) of 1 process"),
        ([(8, 2, "v4"), (8, 2, "v4")], 4, "resumes {} at step 4 of 12 on 8 devices (v4) of 2 pro"),
        (
            [(4, 1, "v4"), (8, 2, "v4")],
            4,
            "resumes {} at step 4 of 12 on 8 devices (v4) of 2 processes (before: 4 devices (v4) "
            "of 1 process)",
        ),
        ([(9, 1, "v4"), (4, 1, "v4"), (4, 1, "v5")], 4, "{} at step 4 of 12 on 4 devices (v5) of"),
        ([(4, 1, "v4"), (4, 1, "v5")], 4, "(before: 4 devices (v4) of 1 process)"),
        ([(4, 1, ""), (4, 2, "v4")], 4, "(before: 4 devices of 1 process)"),
        ([(4, 1, "v4")] * 2, 0, "starts {} again, since nothing was saved, for 12 steps on 4 dev"),
    ],
)
def test_a_start_says_where_and_on_what_and_what_is_new(tmp_path, starts, step, line):
    write_json(tmp_path / environment.ENVIRONMENT, start_entries(*starts))
    said = environment.describe_start(tmp_path, step, 12)
    assert line.format(tmp_path) in said
    assert ("before" in said) == ("before" in line or len(starts) == 3)


def test_a_start_is_said_whatever_earlier_ones_recorded(tmp_path):
    odd = [{"devices": 5, "processes": 1}, {"devices": ["a"], "processes": "x"}, {}]
    for before in odd:
        write_json(tmp_path / environment.ENVIRONMENT, [before, *start_entries((1, 1, "cpu"))])
        assert "before" not in environment.describe_start(tmp_path, 1, 2)
    # A start of a version that did not record the kind is no other start.
    write_json(tmp_path / environment.ENVIRONMENT, start_entries((2, 1, ""), (2, 1, "cpu")))
    assert "before" not in environment.describe_start(tmp_path, 1, 2)


@pytest.mark.parametrize(
    ("folder", "told"),
    [
        ("runs", "; the runs in it are {}/runs/Digits, {}/runs/edm"),
        ("runs/edm/checkpoints/5", "; did you mean {}/runs/edm?"),
        ("runs/digit", "; did you mean {}/runs/Digits?"),
        ("runs/other", ""),
        ("nowhere/edm", ""),
    ],
)
def test_a_folder_that_is_no_run_is_told_with_the_runs_near_it(tmp_path, folder, told):
    for name in ("Digits", "edm"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "run.json").touch()
    (tmp_path / "runs" / "other").mkdir()
    assert workdir.nearby_runs(tmp_path / folder) == told.format(tmp_path, tmp_path)
    with pytest.raises(ValueError, match="is no run; (did you mean|the runs in it|train there)"):
        workdir.load_config(tmp_path / folder)
