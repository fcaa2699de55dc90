"""--mode=doctor names each failure with its remedy, runs every check and leaves no files."""

import os
import re
from contextlib import nullcontext
from importlib import import_module
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image

from fewstep.modes.checks import ALONE
from fewstep.modes.doctor import run_checks
from fewstep.modes.joint_checks import TOGETHER
from fewstep.modes.next_job import NextJob
from fewstep.modes.prepare import prepare
from fewstep.modes.request import Request
from fewstep.training.cluster import exits, processes
from fewstep.training.experiment import build
from fewstep.training.networks import with_network_fields
from fewstep.training.profile import Window
from fewstep.training.storage import workdir
from tests.cli import run_together
from tests.modes.recorded import random_network
from tests.networks import NO_BLOCKS
from tests.training.runs import save_run, small_config

CHECKS, JOINT_CHECKS, DOCTOR = (
    import_module(f"fewstep.modes.{name}") for name in ("checks", "joint_checks", "doctor")
)
SMALL = ("--config.model.size=nano", "--config.batch_size=64", "--config.evaluate.features=pixels")


def make_config(method, **fields):
    return small_config(method, **{"data.name": "digits", "evaluate.steps": (1,), **fields})


def read_lines(printed):
    """Return {check: (status, text)} of the printed lines."""
    rows = [re.fullmatch(r"(\S+) +(first batch|\S+) +(.*)", line) for line in printed.splitlines()]
    return {row[2]: (row[1], row[3]) for row in rows}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return save_run(tmp_path_factory.mktemp("teacher"), "edm")


def test_a_codec_that_nothing_has_fitted_yet_is_fitted(tmp_path, capsys):
    config = make_config("flow_matching", **{"codec.name": "linear", "data.dir": str(tmp_path)})
    run_checks(Request(config=config, workdir=tmp_path / "run"))
    found = read_lines(capsys.readouterr().out)
    assert {status for status, _ in found.values()} == {"ok"}
    (kept,) = (path for path in tmp_path.rglob("*") if path.is_file())
    assert kept.parent.name == "codecs"


def test_a_job_that_can_run_passes_and_leaves_nothing(teacher, tmp_path, capsys):
    config = make_config("cd", teacher=teacher)
    run_checks(Request(config=config, workdir=tmp_path / "runs" / "cd"))
    found = read_lines(capsys.readouterr().out)
    assert list(found) == [*ALONE, *TOGETHER]
    assert {status for status, _ in found.values()} == {"ok"}
    assert found["batch"][1] == "64, 8 on each device"
    assert re.fullmatch(
        r"a training step needs about [\d.]+ GiB of memory, and this machine has [\d.]+ GiB",
        found["memory"][1],
    )
    assert found["teacher"][1] == f"{teacher} at step 5"
    assert found["run"][1] == "starts anew"
    count = re.search(r"([\d,]+) parameters", found["network"][1])[1]
    assert found["parameters"][1] == f"{count} are read"
    assert not list(tmp_path.iterdir())


def test_a_flipped_pixel_is_found_and_prepare_mends_it(tmp_path, capsys):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), np.uint8)
    for i, image in enumerate(pixels):
        (tmp_path / "set" / str(i % 2)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / "set" / str(i % 2) / f"{i}.png")
    fields = {"data.name": f"folder:{tmp_path / 'set'}", "data.dir": str(tmp_path / "data")}
    # Too few images for the other checks.
    config = make_config("flow_matching", **fields, **{"data.image_size": 8, "evaluate.steps": ()})
    job = NextJob(Request(config=config, workdir=tmp_path / "run"))
    assert ALONE["data"].run(job).startswith("20 training images of 8 x 8 x 1, hash ")
    (file,) = tmp_path.glob("data/arrays/*/train_images.npy")
    times, content = file.stat(), file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(ValueError, match=f"{file} holds other images than were decoded; run main"):
        ALONE["data"].run(job)
    prepare(Request(config=config, workdir=None))
    said = capsys.readouterr()
    assert f"{file} holds other images than were decoded; decoding again" in said.err
    assert said.out == f"{config.data.name} is ready in {file.parent}\n"
    assert file.read_bytes() == content
    prepare(Request(config=config, workdir=None))
    assert "train: 20 images verified" in capsys.readouterr().err


def test_all_failures_are_reported_at_once(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("FEWSTEP_INCEPTION", raising=False)
    full = CHECKS.shutil.disk_usage(tmp_path)._replace(free=2**20)
    monkeypatch.setattr(CHECKS.shutil, "disk_usage", lambda _: full)
    clocks = np.array([[100.0, 0.0], [101.0, 30.0]])
    others = SimpleNamespace(process_allgather=lambda _: clocks, sync_global_devices=lambda _: None)
    monkeypatch.setattr(JOINT_CHECKS, "multihost_utils", others)
    (tmp_path / "file").write_text("a file in the place of a folder")
    fields = {"batch_size": 63, "evaluate.features": "inception", "teacher": str(tmp_path)}
    request = Request(config=make_config("cd", **fields), workdir=tmp_path / "file" / "run")
    wrong = ("batch", "teacher", "evaluation", "disk", "clocks", "workdir")
    with pytest.raises(ValueError, match="6 of 20 checks failed: " + ", ".join(wrong)):
        run_checks(request)
    found = read_lines(capsys.readouterr().out)
    assert {name for name, (status, _) in found.items() if status == "FAILED"} == set(wrong)
    for name, remedy in {
        "batch": "use 56 or 64",
        "teacher": "set --config.teacher=WORKDIR",
        "evaluation": "evaluate.features=classifier or pixels",
        "disk": "lower checkpoint.keep",
        "clocks": "90 s apart; run NTP",
        "workdir": "use another --workdir",
    }.items():
        assert remedy in found[name][1]
    assert found["parameters"] == ("-", "not checked: it needs teacher")
    assert found["collective"][0] == found["network"][0] == "ok"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("broken", [0, 5, 7])
@pytest.mark.parametrize("check", ["computation", "collective"])
def test_a_device_that_computes_wrongly_is_found(check, broken, monkeypatch):
    put = {
        name: getattr(jax, name) for name in ("device_put", "make_array_from_process_local_data")
    }

    def on_one(x, device):
        return put["device_put"](x * 1.5 if device.id == broken else x, device)

    def on_all(sharding, x):
        rows = np.arange(len(x))[:, None]
        return put["make_array_from_process_local_data"](
            sharding, np.where(rows == broken, np.float32(1.5), x)
        )

    run = (ALONE | TOGETHER)[check].run
    assert "compute" in run(None)
    monkeypatch.setattr(jax, "device_put", on_one)
    monkeypatch.setattr(jax, "make_array_from_process_local_data", on_all)
    named = {"computation": f"{jax.devices()[broken]} computes", "collective": "together compute"}
    with pytest.raises(ValueError, match=re.escape(named[check])):
        run(None)


def make_job(tmp_path, method="flow_matching", **fields):
    """Return a job with a network of a few numbers."""
    job = NextJob(Request(config=make_config(method, **fields), workdir=tmp_path))
    job.experiment = build(job.config, random_network((8, 8, 1)))
    return job


def test_the_batch_is_that_of_the_config_in_its_parts(tmp_path):
    assert CHECKS.inspect_batch(make_job(tmp_path, batch_size=32)) == "32, 4 on each device"
    with pytest.raises(ValueError, match="8 devices of the mesh x 8 micro_batches"):
        CHECKS.inspect_batch(make_job(tmp_path, batch_size=32, micro_batches=8))
    # debug=True shrinks the batch, as in training.
    assert (
        CHECKS.inspect_batch(make_job(tmp_path, batch_size=256, debug=True))
        == "64, 8 on each device"
    )


@pytest.mark.parametrize(
    ("fields", "count"),
    [
        ({"steps": 100, "checkpoint.every": 10, "checkpoint.keep": 3}, 4),
        ({"steps": 100, "checkpoint.every": 10, "checkpoint.keep": 0}, 11),
        ({"steps": 25, "checkpoint.every": 10, "checkpoint.keep": 5}, 4),
        ({"steps": 100, "checkpoint.every": 0, "checkpoint.keep": 5}, 2),
    ],
)
def test_room_is_needed_for_the_checkpoints_that_stay_and_one_more(tmp_path, fields, count):
    assert f"{count} checkpoints need" in CHECKS.inspect_disk(make_job(tmp_path, **fields))


def test_the_first_batch_is_this_process_s_share(tmp_path):
    assert (
        JOINT_CHECKS.inspect_first_batch(make_job(tmp_path, batch_size=32))
        == "32 rows in each process"
    )


def test_no_images_are_put_on_the_devices_for_the_first_batch(tmp_path, monkeypatch):
    monkeypatch.setattr(import_module("fewstep.training.sources"), "load_images", None)
    job = make_job(tmp_path, batch_size=32, **{"data.on_device": True})
    assert TOGETHER["first batch"].run(job) == "32 rows in each process"
    assert job.config.data.on_device


@pytest.mark.some_days(3)
def test_a_folder_of_this_run_goes_on_and_of_another_is_refused(
    teacher, tmp_path, monkeypatch, capsys
):
    pinned = make_config("cd", teacher=f"{teacher}@5")
    workdir.start_run(tmp_path / "run", with_network_fields(pinned))
    run_checks(Request(config=make_config("cd", teacher=teacher), workdir=tmp_path / "run"))
    assert read_lines(capsys.readouterr().out)["run"] == ("ok", "starts again: nothing was saved")
    monkeypatch.setattr(workdir.restore, "has_checkpoint", lambda folder: True)
    with pytest.raises(ValueError, match="1 of 20 checks failed: run"):
        run_checks(
            Request(config=make_config("cd", teacher=teacher, seed=1), workdir=tmp_path / "run")
        )
    assert "seed (0 there, 1 now)" in read_lines(capsys.readouterr().out)["run"][1]


def test_images_of_a_run_that_has_begun_are_not_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr(CHECKS, "verify", lambda dataset: seen.append(dataset))
    seen, job = [], NextJob(Request(config=make_config("edm"), workdir=tmp_path))
    first = ALONE["data"].run(job)
    assert len(seen) == 1
    monkeypatch.setattr(CHECKS.restore, "has_checkpoint", lambda folder: True)
    again = ALONE["data"].run(job)
    assert len(seen) == 1 and again.replace(" (not read again: the run has begun)", "") == first


def test_the_flags_of_a_job_with_a_profile_are_those_of_its_doctor(tmp_path, capsys):
    config = make_config("edm", steps=20)
    for window, status in ((Window(5, 8), "ok"), (Window(30, 33), "FAILED")):
        request = Request(config=config, workdir=tmp_path / "run", profile=window)
        with nullcontext() if status == "ok" else pytest.raises(ValueError, match="failed: run"):
            run_checks(request)
        assert read_lines(capsys.readouterr().out)["run"][0] == status
    assert "profile" in DOCTOR.DOCTOR.flags


def test_what_a_process_has_is_checked_without_the_others(tmp_path, monkeypatch):
    """A check of `ALONE` may fail in one process, which would leave the others waiting."""
    together = SimpleNamespace(process_allgather=None, broadcast_one_to_all=None)
    monkeypatch.setattr(processes, "multihost_utils", together)
    here = []

    def ask(job):
        here.append((processes.true_everywhere(False), processes.first_process_says(True)))
        here.append((processes.broadcast({"a": 1}), processes.gather([2]), processes.decides()))
        return "asked"

    monkeypatch.setattr(DOCTOR, "ALONE", {"data": CHECKS.Check(ask)})
    monkeypatch.setattr(DOCTOR, "TOGETHER", {})
    monkeypatch.setattr(DOCTOR, "gather", lambda finding: [finding])
    run_checks(Request(config=make_config("edm"), workdir=tmp_path))
    assert here == [(False, True), ({"a": 1}, [[2]], True)]
    with pytest.raises(TypeError):
        processes.true_everywhere(True)


def test_a_check_runs_in_all_processes_or_in_none(tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(DOCTOR, "ALONE", {})
    made = {"data": CHECKS.Check(ran.append), "start": CHECKS.Check(ran.append, ("data",))}
    monkeypatch.setattr(DOCTOR, "TOGETHER", made)
    broken = DOCTOR.Finding("FAILED", "no such folder", "process 1")
    monkeypatch.setattr(DOCTOR, "gather", lambda here: [here, broken])
    monkeypatch.setattr(DOCTOR.jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match="2 of 2 checks failed: data, start"):
        run_checks(Request(config=make_config("edm"), workdir=tmp_path))
    assert len(ran) == 1


def make_findings(*texts):
    """Return one finding for each process."""
    return [DOCTOR.Finding("ok", text, f"process {i}") for i, text in enumerate(texts)]


@pytest.mark.parametrize(
    ("texts", "named"),
    [
        ("aaaa", ["a"]),
        ("aba", ["process 1: b", "the other 2 processes: a"]),
        ("ab", ["process 0: a", "process 1: b"]),
        ("abc", ["process 0: a", "process 1: b", "process 2: c"]),
        ("aabb", ["process 0: a", "process 1: a", "process 2: b", "process 3: b"]),
    ],
)
def test_a_process_whose_data_differ_from_those_of_most_is_named(texts, named):
    said = [text.split("data", 1) for text in DOCTOR.format_check("data", make_findings(*texts))]
    assert [text.strip() for _, text in said] == named
    assert {status.strip() for status, _ in said} == {"FAILED" if len(named) > 1 else "ok"}


def test_the_same_data_in_other_folders_of_each_host_are_the_same(tmp_path):
    pixels, seen = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), np.uint8), []
    for host in ("a", "b", "c"):
        folder = tmp_path / host / "set"
        folder.mkdir(parents=True)
        for i, image in enumerate(pixels if host != "c" else 255 - pixels):
            Image.fromarray(image).save(folder / f"{i}.png")
        fields = {"data.name": f"folder:{folder}", "data.dir": str(tmp_path / host / "data")}
        fields |= {"data.image_size": 8, "evaluate.steps": (), "data.local_dir": host}
        job = NextJob(Request(config=make_config("flow_matching", **fields), workdir=tmp_path))
        seen.append((ALONE["data"].run(job), CHECKS.inspect_config(job)))
    assert seen[0][0] == seen[1][0] != seen[2][0]  # the name and the number of images are the same
    same = [{"data.dir": "a", "data.local_dir": "x"}, {"data.dir": "b", "evaluate.weights": "w"}]
    jobs = [NextJob(Request(config=make_config("edm", **f), workdir=tmp_path)) for f in same]
    assert CHECKS.inspect_config(jobs[0]) == CHECKS.inspect_config(jobs[1])


@pytest.mark.some_days(2)
def test_processes_that_differ_are_named(tmp_path):
    command = ("--config=configs/digits.py:edm", "--mode=doctor", f"--workdir={tmp_path}/run")
    own = {1: ["--config.seed=1", "--config.mesh.fsdp=3"]}
    first, second = run_together(
        2, *command, *SMALL, own=own, expect=exits.BAD_INPUT, nano=NO_BLOCKS
    )
    failed = [line.split(None, 2)[1:] for line in first.stdout.splitlines() if "FAILED" in line]
    failed = [row for row in failed if row[0] != "code"]  # files may change during the test
    assert [name for name, _ in failed] == ["config", "config", "mesh"]
    assert failed[0][1].startswith("process 0 (host ") and "edm, hash" in failed[0][1]
    assert failed[1][1].startswith("process 1 (host ") and "do not fill 2" in failed[2][1]
    assert "2 devices compute together" in first.stdout
    assert "run is written and seen by every process" in first.stdout
    assert first.stderr.endswith("config, mesh\n") and first.stderr.count("\n") == 1
    assert second.stdout == second.stderr == ""
    assert not list(tmp_path.iterdir())
