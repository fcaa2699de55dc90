import resource
import shutil
import threading
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import PreservationContext

from fewstep.training.cluster import processes
from fewstep.training.compiled_step import abstract_state, compile_step, create_state
from fewstep.training.sharding import put_batch
from fewstep.training.storage import checkpoint, restore
from tests.training.runs import (
    largest_difference,
    perturb,
    small_experiment,
    synthetic_batches,
    untrained_teacher,
)
from tests.training.test_sharding import mesh_of

CONFIG, EXPERIMENT = small_experiment()
OBJECTIVE, OPTIMIZERS = EXPERIMENT.objective, EXPERIMENT.optimizers
EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
CONFIG_RECORD = {"method": "shortcut", "seed": 0}


def run_steps(state, mesh, steps, start):
    step = compile_step(OBJECTIVE, OPTIMIZERS, 0, mesh)
    source = synthetic_batches(CONFIG, start)
    for _ in range(steps):
        state, metrics = step(state, {}, put_batch(next(source), mesh))
    return state, float(metrics["loss"].total)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(folder with a state after two steps on 8 devices, that state, state and loss after four)."""
    workdir, mesh = tmp_path_factory.mktemp("run"), mesh_of(2, 4)
    state, _ = run_steps(create_state(OBJECTIVE, OPTIMIZERS, 0, {}, mesh), mesh, 2, 0)
    with checkpoint.open_checkpoints(workdir) as checkpoints:
        checkpoint.save_state(checkpoints, state, CONFIG_RECORD)
    host = jax.device_get(state)
    return workdir, host, *run_steps(state, mesh, 2, 2)


def test_a_save_leaves_it_to_the_loop_to_ask_whether_to_stop(saved, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        multihost_utils, "reached_preemption_sync_point", lambda step: asked.append(step)
    )
    with checkpoint.open_checkpoints(tmp_path) as checkpoints:
        checkpoint.save_state(checkpoints, saved[2], CONFIG_RECORD)
    assert restore.has_checkpoint(tmp_path) and not asked


def restore_newest(workdir, mesh):
    return restore.newest_state(workdir, abstract_state(OBJECTIVE, OPTIMIZERS, 0, {}, mesh))


def test_the_same_mesh_goes_on_bit_for_bit(saved):
    workdir, host, final, loss = saved
    state = restore_newest(workdir, mesh_of(2, 4))
    assert largest_difference(host, state) == 0.0
    again, loss_again = run_steps(state, mesh_of(2, 4), 2, 2)
    assert largest_difference(final, again) == 0.0
    assert loss_again == loss


@pytest.mark.in_turn("sizes", 2)
@pytest.mark.parametrize("sizes", [(1, 1), (4, 1)])
def test_another_mesh_goes_on_with_the_same_numbers(saved, sizes):
    workdir, host, _, loss = saved
    mesh = mesh_of(*sizes)
    state = restore_newest(workdir, mesh)
    assert largest_difference(host, state) == 0.0
    assert run_steps(state, mesh, 2, 2)[1] == pytest.approx(loss, rel=1e-5)


def test_a_single_network_is_read_alone(saved):
    workdir, host, *_ = saved
    shapes = jax.eval_shape(EXPERIMENT.model.network.init, jax.random.key(0))
    params, step = restore.restore_network(workdir, "target", shapes)
    assert (largest_difference(host.followers["target"], params), step) == (0.0, 2)


def test_an_empty_folder_has_nothing_to_restore(tmp_path):
    assert restore_newest(tmp_path, mesh_of(1, 1)) is None


def test_a_step_is_never_written_twice(saved, tmp_path):
    workdir = shutil.copytree(saved[0], tmp_path / "run")
    other = jax.tree.map(lambda leaf: leaf + 1, saved[1])._replace(step=np.int32(2))
    with checkpoint.open_checkpoints(workdir) as checkpoints:
        checkpoint.save_state(checkpoints, other, CONFIG_RECORD)
    assert largest_difference(saved[1], restore_newest(workdir, mesh_of(1, 1))) == 0.0


def test_errors_name_the_folder_and_the_cause(saved, tmp_path):
    workdir = shutil.copytree(saved[0], tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints" / "2" / "network")
    with pytest.raises(ValueError, match="checkpoints/2 cannot be read"):
        restore_newest(workdir, mesh_of(1, 1))
    shapes = jax.eval_shape(EXPERIMENT.model.network.init, jax.random.key(0))
    with pytest.raises(ValueError, match="has no step 5; it has 2"):
        restore.restore_network(workdir, "target", shapes, step=5)
    with pytest.raises(ValueError, match="no checkpoints"):
        restore.restore_network(tmp_path, "target", shapes)


@pytest.mark.some_days(2)
def test_resuming_with_a_teacher_and_a_target_equals_not_stopping(tmp_path):
    config, experiment = small_experiment("cd")
    mesh = mesh_of(1, 1)
    objective, optimizers = experiment.objective, experiment.optimizers
    frozen = {name: perturb(p) for name, p in untrained_teacher(experiment).items()}
    compiled = compile_step(objective, optimizers, 0, mesh)

    def advance(state, start):
        source = synthetic_batches(config, start)
        for _ in range(2):
            state, _ = compiled(state, frozen, put_batch(next(source), mesh))
        return state

    state = advance(create_state(objective, optimizers, 0, frozen, mesh), 0)
    with checkpoint.open_checkpoints(tmp_path) as checkpoints:
        checkpoint.save_state(checkpoints, state, CONFIG_RECORD)
    uninterrupted = jax.device_get(advance(state, 2))
    names = {p.name for p in (tmp_path / "checkpoints" / "2").iterdir() if p.is_dir()}
    assert names >= {"network", "target", "ema_0.999", "run"} and "teacher" not in names
    abstract = abstract_state(objective, optimizers, 0, frozen, mesh)
    resumed = advance(restore.newest_state(tmp_path, abstract), 2)
    assert largest_difference(uninterrupted, resumed) == 0.0
    moved = uninterrupted.networks["network"], frozen["teacher"]
    assert largest_difference(*moved) > 0.0
    assert largest_difference(uninterrupted.followers["target"], moved[0]) > 0.0


def test_the_newest_step_or_one_that_is_there(saved, tmp_path):
    assert restore.saved_step(saved[0]) == restore.saved_step(saved[0], 2) == 2
    with pytest.raises(ValueError, match="has no step 3; it has 2"):
        restore.saved_step(saved[0], 3)
    with pytest.raises(ValueError, match="no checkpoints"):
        restore.saved_step(tmp_path)


def kept_steps(retention, steps=range(1, 9), hours_apart=1.0):
    """The steps that a retention keeps, of checkpoints saved `hours_apart`."""
    infos = [
        SimpleNamespace(step=step, time=EPOCH + timedelta(hours=step * hours_apart), metrics=None)
        for step in steps
    ]
    answers = checkpoint.preservation_policy(retention).should_preserve(
        infos, context=PreservationContext()
    )
    return [info.step for info, answer in zip(infos, answers, strict=True) if answer]


def test_checkpoints_are_kept_by_count_age_name_and_score():
    keep = checkpoint.Retention
    assert kept_steps(keep()) == list(range(1, 9))
    assert kept_steps(keep(newest=2)) == [7, 8]
    assert kept_steps(keep(newest=1, hours=3.0)) == [1, 4, 7, 8]
    assert kept_steps(keep(newest=1, steps=(3, 20))) == [3, 8]
    assert kept_steps(keep(newest=1, scores=lambda: {2: 0.5, 5: 0.1, 6: 0.3, 30: 0.0})) == [5, 8]


def test_the_best_checkpoint_stays_while_newer_ones_go(saved, tmp_path):
    scores = {}
    retention = checkpoint.Retention(newest=1, scores=lambda: scores)
    with checkpoint.open_checkpoints(tmp_path, retention) as checkpoints:
        for step, score in enumerate((3.0, 1.0, 2.0, 4.0), start=1):
            checkpoint.save_state(
                checkpoints, saved[1]._replace(step=np.int32(step)), CONFIG_RECORD
            )
            scores[step] = score  # an evaluation follows the save
    assert sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir()) == [2, 4]
    assert restore.read_record(tmp_path)["config"] == CONFIG_RECORD


def test_a_save_that_cannot_be_written_says_what_is_left(saved, tmp_path):
    with (
        pytest.raises(OSError, match=r"could not be written to .*; 1 is the newest whole one") as e,
        checkpoint.open_checkpoints(tmp_path) as checkpoints,
    ):
        checkpoint.save_state(checkpoints, saved[1]._replace(step=np.int32(1)), CONFIG_RECORD)
        checkpoint.wait_for_save(checkpoints)
        with largest_file(2**10):
            checkpoint.save_state(checkpoints, saved[1]._replace(step=np.int32(2)), CONFIG_RECORD)
            checkpoint.wait_for_save(checkpoints)
    assert "start the same command again" in str(e.value)
    assert int(restore_newest(tmp_path, mesh_of(1, 1)).step) == 1


def test_one_of_several_processes_ends_where_it_cannot_write(saved, tmp_path, monkeypatch):
    # To return would be to wait for the others in Orbax's barrier, who wait for this one.
    def fail(code, text):
        raise SystemExit(f"{code}: {text}")

    monkeypatch.setattr(processes, "has_peers", lambda: True)
    monkeypatch.setattr(processes, "exit_with_error", fail)
    with (
        pytest.raises(SystemExit, match=r"2: error: checkpoint 2 could not be written to"),
        checkpoint.open_checkpoints(tmp_path) as checkpoints,
        checkpoint.raise_write_errors(Path(checkpoints.directory), 2),
    ):
        raise RuntimeError("anything")


@pytest.mark.parametrize(
    ("error", "ends"),
    [
        (RuntimeError("No space left on device"), ("exit_with_error", 2)),
        (TimeoutError(), ("abort", 77)),
    ],
)
def test_a_failed_part_of_a_save_does_not_wait_for_the_others(tmp_path, monkeypatch, error, ends):
    ended, waited = [], []
    monkeypatch.setattr(processes, "has_peers", lambda: True)

    def end(name, code, text):
        ended.append((name, code))
        raise SystemExit

    for name in ("exit_with_error", "abort"):
        monkeypatch.setattr(processes, name, partial(end, name))
    monkeypatch.setattr(checkpoint, "get_barrier_sync_fn", lambda: lambda **key: waited.append(key))
    barrier = checkpoint.make_barrier(tmp_path)

    def finalize():
        try:
            raise error
        finally:
            barrier(key="saved", timeout_ms=1000)

    with pytest.raises(type(error)):
        finalize()  # in the main thread an error may be another's, such as a request to stop
    assert len(waited) == 1 and not ended
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    thread = threading.Thread(target=finalize)
    thread.start()
    thread.join()
    assert ended == [ends] and len(waited) == 1


@contextmanager
def largest_file(size):
    """Limits files of this process to `size` bytes, as if the disk were full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
