import errno
import json
import os
import re
import shutil

import pytest

from fewstep.configs import base
from fewstep.data import FIRST_ORDER, NEWEST_ORDER
from fewstep.training.cluster import processes
from fewstep.training.cluster.processes import warn_once
from fewstep.training.compiled_step import abstract_state
from fewstep.training.networks import with_network_fields
from fewstep.training.sharding import make_mesh
from fewstep.training.storage import environment, identity, restore, workdir
from fewstep.training.storage.checkpoint import FOLDER
from fewstep.training.storage.environment import ENVIRONMENT
from fewstep.training.storage.seal import checksum, seal_record
from tests.test_imports import FLOORS
from tests.training.runs import save_run, small_config, small_experiment

CONFIG, EXPERIMENT = small_experiment("flow_matching")
CONFIG = with_network_fields(CONFIG)  # as runs are recorded
ALL_FIELDS = identity.with_all_fields(identity.as_dict(CONFIG)).to_dict()
DATA = {"splits": {"train": {"count": 3, "sha256": "aa"}}, "classes": ["cat", "dog"]}
TEACHER = {"step": 5, "network": "ema_0.999", "fingerprint": 7}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folders of two runs of one config, each with the checkpoints 3 and 5."""
    root = tmp_path_factory.mktemp("runs")
    return [root / save_run(root / name, "flow_matching", (3, 5)) for name in ("a", "b")]


@pytest.fixture
def runs(saved, tmp_path):
    warn_once.cache_clear()
    return [shutil.copytree(folder, tmp_path / folder.name) for folder in saved]


def newest_step(folder):
    abstract = abstract_state(EXPERIMENT.objective, EXPERIMENT.optimizers, 0, {}, make_mesh())
    return int(restore.newest_state(folder, abstract).step)


def test_two_runs_of_one_config_have_ids_of_their_own_which_stay(runs):
    ids = [identity.read_identity(folder).id for folder in runs]
    assert ids[0] != ids[1] and all(re.fullmatch("[0-9a-f]{32}", id) for id in ids)
    assert workdir.start_run(runs[0], CONFIG).id == ids[0]
    assert restore.read_record(runs[0])["run"]["id"] == ids[0]


def test_a_renamed_checkpoint_is_not_the_step_of_its_name(runs, capsys):
    run = runs[0]
    (run / FOLDER / "5").rename(run / FOLDER / "40")
    with pytest.raises(ValueError, match="checkpoints/40 holds step 5: it was renamed"):
        restore.read_record(run, 40)
    assert restore.saved_step(run) == 3
    assert newest_step(run) == 3  # goes on from its own checkpoint; the other is moved aside
    assert "checkpoints/40 holds step 5" in capsys.readouterr().err
    assert (run / "damaged" / "40").is_dir()


def test_a_checkpoint_of_another_run_is_refused(runs, capsys):
    run, other = runs
    shutil.rmtree(run / FOLDER / "5")
    shutil.copytree(other / FOLDER / "5", run / FOLDER / "5")
    with pytest.raises(ValueError, match="checkpoints/5 belongs to another run"):
        restore.read_record(run, 5)
    assert newest_step(run) == 3
    assert "belongs to another run" in capsys.readouterr().err


def test_a_lone_checkpoint_is_read_without_a_record(runs, tmp_path):
    lone = tmp_path / "lone"
    shutil.copytree(runs[0] / FOLDER / "3", lone / FOLDER / "3")
    assert workdir.load_config(lone).to_dict() == ALL_FIELDS
    assert newest_step(lone) == 3
    # It goes on as the run that it comes from.
    assert workdir.start_run(lone, CONFIG).id == identity.read_identity(runs[0]).id


def remove_ids(run):
    """Make a run look like one of a version without run.json and without ids in checkpoints."""
    (run / identity.RUN).unlink()
    for path in (run / FOLDER).glob("*/run/metadata"):
        content = json.loads(path.read_text())
        record = {name: value for name, value in content["record"].items() if name != "run"}
        path.write_text(json.dumps(seal_record(record)))


def test_a_run_of_an_older_version_gets_an_id_with_one_warning(runs, capsys):
    run, other = runs
    remove_ids(run)
    began = workdir.start_run(run, CONFIG, DATA)
    assert capsys.readouterr().err.count("warning: ") == 1
    assert began.id and began.data == DATA
    assert workdir.start_run(run, CONFIG, DATA).id == began.id
    assert newest_step(run) == 5  # its checkpoints have no id, and its config
    assert capsys.readouterr().err == ""
    changed = json.loads((run / FOLDER / "5" / "run" / "metadata").read_text())["record"]
    changed["config"]["batch_size"] = 7
    (run / FOLDER / "5" / "run" / "metadata").write_text(json.dumps(seal_record(changed)))
    with pytest.raises(ValueError, match=r"another config: batch_size \(64 there, 7 now\)"):
        restore.read_record(run, 5)


def test_a_run_keeps_the_order_of_its_data(runs, tmp_path):
    new, old = runs
    assert workdir.data_order(tmp_path / "not begun") == workdir.data_order(new) == NEWEST_ORDER
    assert restore.read_record(new)["run"]["order"] == NEWEST_ORDER
    remove_ids(old)
    assert workdir.data_order(old) == FIRST_ORDER
    workdir.start_run(old, CONFIG)
    assert workdir.data_order(old) == FIRST_ORDER  # by its new record
    for run, order in ((new, NEWEST_ORDER), (old, FIRST_ORDER)):
        (run / identity.RUN).unlink()
        assert workdir.start_run(run, CONFIG).order == order  # by its checkpoints


def test_an_edited_config_changes_nothing_and_is_named_once(runs, capsys):
    run = runs[0]
    edited = json.loads((run / "config.json").read_text())
    edited["evaluate"]["num_samples"], edited["path"]["name"] = 7, "ve"
    (run / "config.json").write_text(json.dumps(edited))
    for _ in range(2):
        assert workdir.load_config(run).to_dict() == ALL_FIELDS
    told = capsys.readouterr().err
    assert told.count("warning: ") == 1
    assert "evaluate.num_samples (1000 there, 7 now); path.name (linear there, ve now)" in told
    (run / identity.RUN).unlink()  # its checkpoints say so too
    assert workdir.load_config(run).to_dict() == ALL_FIELDS
    (run / "config.json").write_text("null")
    assert workdir.load_config(run).to_dict() == ALL_FIELDS
    assert "config.json" in capsys.readouterr().err


def test_a_record_that_was_edited_and_sealed_again_is_not_that_of_its_checkpoints(runs):
    record = identity.read_identity(runs[0])
    record.config["path"]["name"] = "vp_cosine"
    identity.write_identity(runs[0], record)
    with pytest.raises(
        ValueError, match=r"path.name \(vp_cosine there, linear now\). Move it .*run"
    ):
        restore.read_record(runs[0])
    record.config["path"]["name"], record.config["evaluate"]["num_samples"] = "linear", 7
    identity.write_identity(runs[0], record)  # fields that may change do not make it another run's
    assert restore.read_record(runs[0])["step"] == 5


def test_a_changed_field_that_may_change_is_sealed(runs, capsys):
    longer = small_config("flow_matching", steps=20, **{"evaluate.num_samples": 9})
    workdir.start_run(runs[0], with_network_fields(longer))
    assert workdir.load_config(runs[0]).evaluate.num_samples == 9
    assert "warning" not in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "{", "null", '{"record": {}, "crc32": 0}', "[" * 100_000])
def test_a_damaged_record_is_one_error_that_deleting_it_mends(runs, content):
    (runs[0] / identity.RUN).write_text(content)
    with pytest.raises(ValueError, match=r"run.json is not what was written .*; delete it"):
        workdir.load_config(runs[0])
    began = restore.read_record(runs[1])["run"]["id"]
    (runs[1] / identity.RUN).unlink()
    assert workdir.start_run(runs[1], CONFIG).id == began


def seal_as(record):
    return json.dumps({"record": record, "crc32": checksum(record)})


@pytest.mark.parametrize(
    "fields",
    [
        *({"config": None}, {"config": [1]}, {"config": {"seed": "x"}}, {"id": 7}),
        *({"order": "1"}, {"data": 5}, {"teacher": [1]}),
    ],
    ids=str,
)
def test_a_record_of_other_types_is_an_error_whatever_its_checksum(runs, fields):
    path = runs[0] / identity.RUN
    path.write_text(seal_as({**json.loads(path.read_bytes())["record"], **fields}))
    with pytest.raises(ValueError, match="run.json is not what was written"):
        workdir.start_run(runs[0], CONFIG)


@pytest.mark.in_turn("fields", 3)
@pytest.mark.parametrize(
    "fields",
    [
        *({"step": "5"}, {"run": "x"}, {"run": {"id": 7}}, {"config": 7}, {"fingerprints": [1]}),
        *({"unfinished": "x"}, {"unfinished": {"sums": {"loss": "a"}}}, None),
        {"unfinished": {"sums": {}, "images": 8, "seconds": 1.0, "steps": [[1.0]]}},
    ],
    ids=str,
)
def test_a_checkpoint_s_record_of_other_types_is_damage_whatever_its_checksum(runs, fields, capsys):
    path = runs[0] / FOLDER / "5" / "run" / "metadata"
    record = json.loads(path.read_bytes())["record"]
    path.write_text(seal_as({} if fields is None else {**record, **fields}))
    with pytest.raises(ValueError, match="checkpoints/5 cannot be read"):
        restore.read_record(runs[0], 5)
    assert newest_step(runs[0]) == 3
    assert "checkpoints/5 cannot be read" in capsys.readouterr().err


def test_data_and_teacher_are_those_that_the_run_was_begun_with(tmp_path, monkeypatch):
    workdir.start_run(tmp_path, CONFIG, DATA, TEACHER)
    monkeypatch.setattr(workdir.restore, "has_checkpoint", lambda folder: True)
    monkeypatch.setattr(workdir.restore, "saved_step", lambda folder: 5)
    workdir.start_run(tmp_path, CONFIG, DATA, TEACHER)
    workdir.start_run(tmp_path, CONFIG)  # neither is read this time
    smaller = {**DATA, "splits": {"train": {"count": 2, "sha256": "bb"}}}
    message = r"data set of .* has changed .*: splits.train.count \(3 recorded, 2 now\); "
    for start in (workdir.start_run, workdir.check_same_run):
        with pytest.raises(ValueError, match=message):
            start(tmp_path, CONFIG, smaller, TEACHER)
        with pytest.raises(ValueError, match=r"teacher of .* fingerprint \(7 recorded, 8 now\)"):
            start(tmp_path, CONFIG, DATA, {**TEACHER, "fingerprint": 8})
    assert identity.read_identity(tmp_path).stamp["teacher"] == TEACHER


def test_each_process_compares_the_data_on_its_own_disk(tmp_path, monkeypatch):
    run = workdir.start_run(tmp_path, CONFIG, DATA, TEACHER)
    monkeypatch.setattr(workdir.jax, "process_index", lambda: 1)
    monkeypatch.setattr(workdir, "broadcast", lambda _: {"run": run._asdict()})
    assert workdir.start_run(tmp_path, CONFIG, DATA, TEACHER) == run
    smaller = {**DATA, "splits": {"train": {"count": 2, "sha256": "bb"}}}
    with pytest.raises(ValueError, match=r"data set of .*: splits.train.count \(3 recorded, 2 now"):
        workdir.start_run(tmp_path, CONFIG, smaller, TEACHER)


def test_each_start_is_appended_and_other_code_is_named(tmp_path, capsys, monkeypatch):
    path = tmp_path / ENVIRONMENT
    workdir.start_run(tmp_path, CONFIG)
    workdir.start_run(tmp_path, CONFIG)
    first, second = json.loads(path.read_text())
    assert first["code"] == second["code"] and len(first["code"]["sources"]) == 12
    assert capsys.readouterr().err == ""
    other = {"commit": "abc", "package": "", "sources": "123456789012"}
    monkeypatch.setattr(environment, "code_version", lambda: other)
    monkeypatch.setattr(environment.metadata, "version", lambda name: "0.0.1")
    workdir.start_run(tmp_path, CONFIG)
    told = capsys.readouterr().err
    assert "goes on under another version: " in told and "commit abc, sources 123456789012" in told
    assert f"jax ({first['packages']['jax']} there, 0.0.1 now)" in told
    assert len(json.loads(path.read_text())) == 3
    path.write_text(json.dumps(first))  # as older versions wrote it
    workdir.start_run(tmp_path, CONFIG)
    assert len(json.loads(path.read_text())) == 2
    path.write_bytes(b"\xff")
    workdir.start_run(tmp_path, CONFIG)
    assert len(json.loads(path.read_text())) == 1
    (aside,) = tmp_path.glob("environment.unreadable-*.json")
    assert aside.read_bytes() == b"\xff"


def test_the_code_version_changes_with_any_file_that_runs(tmp_path, monkeypatch):
    from fewstep.training.storage import code_version

    others = ("tests/test_dit.py", "mine/plot.py", "plot.py")
    for name in ("main.py", "models/dit.py", *others):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("a = 1\n")
    monkeypatch.setattr(code_version, "ROOT", tmp_path)
    versions = [code_version.code_version()["sources"]]
    for name in (*others, "models/dit.py", "main.py"):
        (tmp_path / name).write_text("a = 2\n")
        versions.append(code_version.code_version()["sources"])
    assert len({*versions[:4]}) == 1 and len({*versions}) == 3
    own = {*code_version.ROOMS, *code_version.MODULES}
    assert own == {room.split("/")[0] for room in FLOORS} | {
        "configs",
        "main",
        "library",
        "fewstep",
    }
    assert code_version.git_commit() == ""


def test_fields_that_may_change_exist():
    fields = identity.flatten_fields(identity.as_dict(base.config()))
    for free in identity.CHANGEABLE:
        assert any(name.startswith(free) for name in fields), free


def test_a_record_is_written_before_what_it_explains(tmp_path, monkeypatch):
    monkeypatch.setattr(workdir, "write_json", lambda *_: os.abort())
    monkeypatch.setattr(os, "abort", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        workdir.start_run(tmp_path, CONFIG)
    assert identity.read_identity(tmp_path) is not None


def test_a_folder_that_hosts_do_not_share_is_found_at_the_start(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "VISIBLE", 0.2)
    id = workdir.start_run(tmp_path, CONFIG).id
    workdir.check_shared(tmp_path, id)
    monkeypatch.setattr(processes, "gather", lambda seen: [True, seen, False])
    with pytest.raises(ValueError, match="is another folder for process 2 than for process 0; put"):
        workdir.check_shared(tmp_path, id)
    for folder, sought in ((tmp_path / "elsewhere", id), (tmp_path, "of another run")):
        with pytest.raises(ValueError, match="for processes 1, 2 than"):
            workdir.check_shared(folder, sought)


def test_a_teacher_may_be_moved_as_it_is_known_by_its_parameters(tmp_path, monkeypatch):
    student = lambda folder: small_config("cd_flow", teacher=f"{folder}@5")
    workdir.start_run(tmp_path, student("old"), teacher=TEACHER)
    monkeypatch.setattr(workdir.restore, "has_checkpoint", lambda folder: True)
    monkeypatch.setattr(workdir.restore, "saved_step", lambda folder: 5)
    with pytest.raises(ValueError, match=r"teacher \(old@5 there, new@5 now\)"):
        workdir.start_run(tmp_path, student("new"), teacher={**TEACHER, "fingerprint": "another"})
    workdir.start_run(tmp_path, student("new"), teacher=TEACHER)
    assert workdir.load_config(tmp_path).teacher == "new@5"


def test_a_lone_checkpoint_is_sampled_by_its_own_config(runs, tmp_path):
    lone = tmp_path / "lone"
    shutil.copytree(runs[0] / FOLDER / "5", lone / FOLDER / "5")
    other = tmp_path / "other"
    save_run(other, "flow_matching", (3,), batch_size=32)
    shutil.copytree(other / FOLDER / "3", lone / FOLDER / "3")
    assert [workdir.load_config(lone, step).batch_size for step in (3, 5)] == [32, 64]


def test_a_record_of_a_newer_version_says_so(runs):
    record = identity.read_identity(runs[0])._asdict() | {"colour": "red"}
    (runs[0] / identity.RUN).write_text(json.dumps(seal_record(record)))
    with pytest.raises(ValueError, match=r"a newer version of Fewstep wrote it \(colour\)"):
        workdir.load_config(runs[0])


def test_a_file_system_without_locks_is_named_and_used(tmp_path, monkeypatch, capsys):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(workdir.fcntl, "flock", no_locks)
    with workdir.claim_workdir(tmp_path):
        pass
    assert "has no locks (No locks available): start no second run" in capsys.readouterr().err


def student_identity(name="folder:/a/pics", teacher="/a/teacher@5", data=DATA, fingerprint="f"):
    """The identity of a student. fingerprint: None if it no longer reads its teacher."""
    config = {"teacher": teacher, "data": {"name": name}}
    known = None if fingerprint is None else {"step": 5, "fingerprint": fingerprint}
    return identity.Identity("id", config, data, known)


@pytest.mark.parametrize(
    "moved",
    [
        {"name": "folder:/b/pics"},
        {"teacher": "/b/teacher@5"},
        {"teacher": "/b/teacher@5", "fingerprint": None},
        {"name": "folder:/b/pics", "teacher": "/b/teacher@5"},
    ],
)
def test_images_and_teacher_may_lie_elsewhere(tmp_path, moved):
    identity.check_same_identity(student_identity(), student_identity(**moved), tmp_path)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            {"name": "folder:/b/pics", "data": {**DATA, "count": 9}},
            "the data set of .* has changed",
        ),
        ({"name": "digits", "data": None}, "another config: data.name"),
        ({"teacher": "/b/teacher@5", "fingerprint": "g"}, "another config: teacher"),
        ({"teacher": "", "fingerprint": None}, "another config: teacher"),
    ],
)
def test_what_lies_elsewhere_must_be_the_same(tmp_path, other, message):
    with pytest.raises(ValueError, match=message):
        identity.check_same_identity(student_identity(), student_identity(**other), tmp_path)


def test_edited_data_are_refused_with_the_names_of_the_files(tmp_path, monkeypatch):
    files = [("c0/a.png", 5, 1), ("c1/b.png", 5, 1)]
    workdir.start_run(tmp_path, CONFIG, DATA, files=files)
    monkeypatch.setattr(workdir.restore, "has_checkpoint", lambda folder: True)
    with pytest.raises(ValueError, match="has changed since the run began: removed: c1/b.png"):
        workdir.start_run(tmp_path, CONFIG, {**DATA, "classes": []}, files=files[:1])
