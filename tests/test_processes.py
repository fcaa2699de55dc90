"""Several processes over loopback work like one process, and end together."""

import json
import os
import signal
import socket
import time
from functools import partial

import jax
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding
from PIL import Image

from fewstep.training.cluster import exits
from fewstep.training.metrics import read_rows
from fewstep.training.storage import checkpoint, restore
from tests import cli, faults
from tests.cli import end_together
from tests.networks import NO_BLOCKS
from tests.training.killed import saved_steps, wait_for
from tests.training.runs import largest_difference

SMALL = (
    "--config.model.size=nano",
    "--config.batch_size=64",
    "--config.optimizer.schedule=constant",
    "--config.optimizer.warmup_steps=0",
    "--config.evaluate.features=pixels",
    "--config.evaluate.agreement=False",
    "--config.evaluate.num_samples=22",
    "--config.evaluate.batch_size=12",
)
TRAIN = (
    "--config=configs/digits.py:flow_matching",
    "--config.steps=12",
    "--config.checkpoint.every=3",
    "--config.log.every=3",
    "--config.evaluate.steps=()",
    *SMALL,
)
STEPS = "--config.evaluate.steps=(1,2)"
run, run_together, start_together = (
    partial(function, nano=NO_BLOCKS)
    for function in (cli.run, cli.run_together, cli.start_together)
)
BOUND = 20.0  # seconds until the other processes must have ended


@pytest.fixture(scope="module")
def single_run(tmp_path_factory):
    """A run by one process on two devices."""
    workdir = tmp_path_factory.mktemp("alone")
    run(*TRAIN, f"--workdir={workdir}", devices=2)
    return workdir


@pytest.fixture(scope="module")
def shared_run(tmp_path_factory):
    """The same run by two processes; (folder, their outputs)."""
    workdir = tmp_path_factory.mktemp("shared")
    return workdir, run_together(2, *TRAIN, f"--workdir={workdir}")


def read_newest_state(workdir):
    """Return the step of the newest checkpoint and its arrays by item, on one device."""
    here = SingleDeviceSharding(jax.devices()[0])
    with restore.read_checkpoints(workdir) as checkpoints:
        step = checkpoints.latest_step()
        folder = workdir / checkpoint.FOLDER / str(step)
        names = [p.name for p in folder.iterdir() if p.is_dir() and p.name != checkpoint.RUN]
        arguments = {
            name: checkpoint.ocp.args.StandardRestore(fallback_sharding=here) for name in names
        }
        read = checkpoints.restore(step, args=checkpoint.ocp.args.Composite(**arguments))
        return step, {name: read[name] for name in names}


def read_losses(workdir):
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [[row["step"], row["loss"]] for row in rows if "loss" in row]


def assert_same_run(ours, theirs):
    np.testing.assert_allclose(read_losses(ours), read_losses(theirs), rtol=0.0, atol=1e-5)
    (step, state), (other_step, other) = read_newest_state(ours), read_newest_state(theirs)
    assert step == other_step
    assert largest_difference(state, other) < 1e-5


def test_two_processes_train_what_one_does_and_one_speaks(single_run, shared_run):
    workdir, (first, second) = shared_run
    assert_same_run(workdir, single_run)
    assert f"{workdir} is at step 12" in first.stdout and "\nstep 12 of 12, loss " in first.stderr
    assert second.stdout == second.stderr == ""
    names = {path.name for path in workdir.iterdir()}
    assert names == {path.name for path in single_run.iterdir()}
    assert json.loads((workdir / "environment.json").read_text())[-1]["processes"] == 2
    assert len(list((workdir / "tensorboard").iterdir())) == 1
    assert first.stdout.startswith(f"starts {workdir} for 12 steps on 2 devices (cpu) of 2 proces")
    assert {path.name for path in (workdir / "heartbeat").iterdir()} == {"0", "1"}
    for row in read_rows(workdir / "metrics.jsonl"):
        assert row["slowest_process"] in (0.0, 1.0) and row["step_seconds_slowest"] > 0.0


@pytest.mark.some_days(2)
def test_four_processes_train_what_one_does(single_run, tmp_path):
    run_together(4, *TRAIN, f"--workdir={tmp_path}/four")
    assert_same_run(tmp_path / "four", single_run)


def test_two_processes_evaluate_and_sample_what_one_does(shared_run, tmp_path):
    workdir, _ = shared_run
    evaluate = ("--mode=evaluate", f"--workdir={workdir}", TRAIN[0], *SMALL, STEPS)
    # Separate folders, so that each makes its own statistics of the real images.
    by_two, silent = run_together(2, *evaluate, f"--config.data.dir={tmp_path}/two")
    found = {path: json.loads(path.read_text()) for path in (workdir / "eval").glob("*.json")}
    by_one = run(*evaluate, f"--config.data.dir={tmp_path}/one", devices=2)
    assert len(found) == 2
    for path, result in found.items():
        again = json.loads(path.read_text())["metrics"]
        assert result["metrics"] == pytest.approx(again, rel=1e-4, abs=1e-6)
    assert by_two.stdout == by_one.stdout and "fd-pixels-22" in by_two.stdout
    assert silent.stdout == silent.stderr == ""
    assert len(list((tmp_path / "two" / "references").iterdir())) == 1
    sample = ("--mode=sample", f"--workdir={workdir}", "--steps=2", "--seeds=0-14")
    by_two, silent = run_together(2, *sample, f"--out={tmp_path}/two.npz")
    assert "15 samples" in by_two.stdout and silent.stdout == silent.stderr == ""
    run(*sample, f"--out={tmp_path}/one.npz", devices=2)
    ours, theirs = (np.load(tmp_path / f"{name}.npz")["x"] for name in ("two", "one"))
    # Another program may round a pixel the other way.
    assert np.abs(ours.astype(int) - theirs).max() <= 1


@pytest.mark.some_days(2)
def test_two_processes_compare_what_one_does(tmp_path):
    options = ("--config=configs/digits.py", "--mode=compare", "--methods=cd_flow", *SMALL)
    options += ("--config.steps=3", "--config.evaluate.steps=(1,)")
    first, second = run_together(2, *options, f"--workdir={tmp_path}/two")
    alone = run(*options, f"--workdir={tmp_path}/one", devices=2)
    assert first.stdout.count("[2/2] cd_flow, seed 0") == 1 and second.stdout == second.stderr == ""
    tables = [(tmp_path / name / "table.csv").read_text() for name in ("two", "one")]
    cells = [[line.split(",") for line in table.splitlines()] for table in tables]
    assert len(cells[0]) > 2 and [len(row) for row in cells[0]] == [len(row) for row in cells[1]]
    assert first.stdout.count("\n") == alone.stdout.count("\n")
    for method in ("flow_matching", "cd_flow"):
        assert_same_run(*(tmp_path / name / method / "seed_0" for name in ("two", "one")))


def kill_one(victim, workdir):
    """Kill one of two processes at a new checkpoint; return the seconds until the other ends."""
    before = {path.name for path in (workdir / "checkpoints").glob("*")}
    commands = start_together(2, *TRAIN, f"--workdir={workdir}")
    running = [command.process for command in commands]
    while all(process.is_alive() for process in running):
        found = {p.name for p in (workdir / "checkpoints").glob("*") if p.name.isdigit()}
        if found - before:
            break
        time.sleep(0.005)
    pid, start = running[victim].pid, time.monotonic()
    running[victim].kill()
    running[1 - victim].join(BOUND)
    seconds = time.monotonic() - start
    codes = (-9, exits.PEER_DIED) if victim == 0 else (exits.PEER_DIED, -9)
    result = end_together(commands, expect=list(codes))[1 - victim]
    assert f"process {victim} (host " in result.stderr and f", pid {pid}) died" in result.stderr
    return seconds


@pytest.mark.some_days(2)
def test_a_killed_process_ends_the_other_and_the_run_goes_on(shared_run, tmp_path):
    workdir, (uninterrupted, _) = tmp_path / "run", shared_run
    assert kill_one(1, workdir) < BOUND
    assert kill_one(0, workdir) < BOUND
    run_together(2, *TRAIN, f"--workdir={workdir}")
    assert read_losses(workdir) == read_losses(uninterrupted)
    (step, state), (other_step, other) = (
        read_newest_state(workdir),
        read_newest_state(uninterrupted),
    )
    assert step == other_step == 12 and largest_difference(state, other) == 0.0


@pytest.mark.some_days(2)
def test_a_frozen_process_is_named_and_ends_when_it_goes_on(tmp_path):
    before = dict.fromkeys((0, 1), partial(faults.short_limits, 6.0))
    workdir = tmp_path / "run"
    flags = ("--config.steps=100000", f"--workdir={workdir}")
    commands = start_together(2, *TRAIN, *flags, before=before)
    wait_for(lambda: (workdir / "checkpoints" / "3").exists())
    victim = commands[0].process
    os.kill(victim.pid, signal.SIGSTOP)
    start = time.monotonic()
    commands[1].process.join(BOUND)
    assert time.monotonic() - start < BOUND
    os.kill(victim.pid, signal.SIGCONT)
    first, second = end_together(commands, expect=[exits.PEER_DIED] * 2)
    silent = f"process 0 (host {socket.gethostname()}, pid {victim.pid}) gave no sign of life"
    assert silent in second.stderr
    assert "this process gave no sign of life for 6 s, so the others ended" in first.stderr
    assert "Traceback" not in first.stderr + second.stderr


@pytest.mark.some_days(2)
def test_a_disk_that_is_full_for_one_process_ends_all(tmp_path):
    split = ("--config.mesh.data=1", "--config.mesh.fsdp=2", "--config.steps=100000")
    workdir = tmp_path / "run"
    full = partial(faults.full_disk_after, workdir / "checkpoints" / "3", 16_000)
    commands = start_together(2, *TRAIN, *split, f"--workdir={workdir}", before={1: full})
    wait_for(lambda: (workdir / "checkpoints" / "3").exists())
    start = time.monotonic()
    first, second = end_together(commands, expect=[exits.PEER_DIED, exits.BAD_INPUT])
    assert time.monotonic() - start < 3 * BOUND
    error = f"could not be written to {workdir / 'checkpoints'} (File too large); "
    assert f"process 1 (host {socket.gethostname()}, pid " in first.stderr
    assert error in first.stderr and error in second.stderr


def test_a_process_that_does_not_come_is_named():
    address = cli.free_address()
    alone = [*cli.joined(address, 2, 0), "--join_timeout=1", "--workdir=/nowhere"]
    waited = run(*TRAIN, *alone, expect=exits.PEER_DIED)
    assert f"error: process 1 of 2 did not come to {address} in 1 s; start" in waited.stderr
    nobody = [*cli.joined(address, 2, 1), "--join_timeout=1", "--workdir=/nowhere"]
    lost = run(*TRAIN, *nobody, expect=exits.PEER_DIED)
    assert f"error: no process 0 at {address} in 1 s: start it there" in lost.stderr
    for wrong, message in (("0", "above 0"), ("nan", "above 0"), ("2", "add --distributed")):
        flags = alone if wrong != "2" else []
        refused = run(*TRAIN, *flags, f"--join_timeout={wrong}", expect=exits.BAD_INPUT)
        assert message in refused.stderr


@pytest.mark.some_days(2)
@pytest.mark.parametrize(
    ("dispatch", "question", "difference"),
    [(1, 4, 0.0), (2, 3, 1e-6)],  # two steps in one program round differently
)
def test_one_process_asked_to_stop_stops_all_after_the_same_step(
    shared_run, tmp_path, dispatch, question, difference
):
    workdir, (uninterrupted, _) = tmp_path / "run", shared_run
    together = f"--config.steps_per_dispatch={dispatch}"
    stop = {1: partial(faults.asked_to_stop, question)}
    commands = start_together(2, *TRAIN, f"--workdir={workdir}", together, before=stop)
    first, second = end_together(commands, expect=[exits.PREEMPTED] * 2)
    step = max(saved_steps(workdir))
    assert 4 <= step < 12 and f"preempted, resumable: stopped after step {step}" in first.stderr
    assert "preempted" not in second.stderr
    run_together(2, *TRAIN, f"--workdir={workdir}", together)
    (_, state), (_, other) = read_newest_state(workdir), read_newest_state(uninterrupted)
    assert largest_difference(state, other) <= difference


@pytest.mark.some_days(2)
def test_an_error_in_one_process_ends_all_and_one_of_all_is_said_once(tmp_path):
    workdir = f"--workdir={tmp_path}/run"
    images = tmp_path / "images"
    images.mkdir()
    Image.new("L", (8, 8)).save(images / "one.png")
    own = (f"--config.data.name=folder:{images}", "--config.data.image_size=8")
    places = {0: tmp_path, 1: images / "one.png"}
    own = {index: [*own, f"--config.data.dir={place}"] for index, place in places.items()}
    commands = start_together(2, *TRAIN, workdir, own=own)
    start = time.monotonic()
    first, second = end_together(commands, expect=[exits.PEER_DIED, exits.BAD_INPUT])
    assert time.monotonic() - start < 3 * BOUND
    assert second.stderr.startswith("error: ") and "one.png" in second.stderr
    assert "process 1 (host " in first.stderr
    assert "ended with an error: " in first.stderr and "one.png" in first.stderr
    message = "batch_size=63 is not divisible by the 2 devices"
    both = run_together(2, *TRAIN, workdir, "--config.batch_size=63", expect=exits.BAD_INPUT)
    assert [result.stderr.count(message) for result in both] == [1, 0]


def test_processes_with_different_flags_are_refused_before_anything_is_written(tmp_path):
    commands = start_together(
        2,
        *TRAIN,
        own={
            0: [f"--workdir={tmp_path}/run"],
            1: ["--config.optimizer.learning_rate=0.5", f"--workdir={tmp_path}/other"],
        },
    )
    both = end_together(commands, expect=exits.BAD_INPUT)
    (line,) = "".join(result.stderr for result in both).splitlines()
    assert "the processes were started with different flags: " in line
    assert "--config.optimizer.learning_rate (0.001, 0.5)" in line and "--workdir (" in line
    assert not (tmp_path / "run").exists() and not (tmp_path / "other").exists()


@pytest.mark.some_days(2)
def test_hosts_are_slices_that_data_spans(single_run, tmp_path):
    if not cli.hosts_can_be_made():
        pytest.skip("this user may not mount a boot id for each process")
    hosts = {"before": dict.fromkeys((0, 1), cli.become_a_host), "devices": 2}
    mesh = ("--config.mesh.data=2", "--config.mesh.fsdp=2")
    run_together(2, *TRAIN, *mesh, f"--workdir={tmp_path}/run", **hosts)
    assert_same_run(tmp_path / "run", single_run)
    across = ("--config.mesh.data=1", "--config.mesh.fsdp=4", f"--workdir={tmp_path}/across")
    refused, _ = run_together(2, *TRAIN, *across, **hosts, expect=exits.BAD_INPUT)
    assert "mesh.fsdp=4 does not fit into slices" in refused.stderr
    doctor, _ = run_together(
        2, "--mode=doctor", *TRAIN, *mesh, f"--workdir={tmp_path}/run", **hosts
    )
    assert "2 slice(s) of 2 device(s), 2 process(es) of 2" in doctor.stdout


def test_modes_for_one_process_refuse_the_flags_of_several():
    for flag in ("--distributed", "--process_id=1"):
        refused = run("--mode=describe", TRAIN[0], flag, expect=exits.BAD_INPUT)
        assert "is not used by --mode=describe" in refused.stderr
    nothing = run(*TRAIN, "--workdir=/nowhere", "--distributed", expect=exits.BAD_INPUT)
    assert "found no job of Slurm" in nothing.stderr and "--coordinator=" in nothing.stderr
