"""The loop when its folder disappears, its disk fills up, or its parameters overflow."""

import errno
import shutil

import jax
import numpy as np
import optax
import pytest

from fewstep.diffusion.path import linear
from fewstep.objectives.denoising import denoising
from fewstep.training import metrics
from fewstep.training.cluster.preemption import Preemption
from fewstep.training.compiled_step import Training, abstract_state
from fewstep.training.loop import train
from fewstep.training.metrics import read_rows
from fewstep.training.optimizer import Optimizer
from fewstep.training.report import NonFiniteError
from fewstep.training.schedule import Schedule
from fewstep.training.session import Upkeep
from fewstep.training.sources import Stream
from fewstep.training.storage import checkpoint, restore
from tests.networks import affine_network, build_model
from tests.training.killed import saved_steps, wait_for
from tests.training.runs import small_config, synthetic_batches
from tests.training.test_sharding import mesh_of

CONFIG = small_config("flow_matching")
OBJECTIVE = denoising(build_model(affine_network(), linear()))._replace(init_from={})
STEPS, SAVE, EVALUATE = 8, 4, 6


def sgd(rate):
    return {"network": Optimizer(optax.sgd(rate), optax.constant_schedule(rate))}


def run(workdir, rate=0.1, at=None, act=None, evaluate=lambda state: {}):
    """Train a network of five numbers; calls `act` when it fetches the batch of step `at`.

    No save runs at that moment.
    """

    def batches(start):
        for step, batch in enumerate(synthetic_batches(CONFIG, start), start=start + 1):
            if step == at:
                wait_for(lambda: at <= SAVE or saved_steps(workdir))
                act()
            yield batch

    return train(
        Training(OBJECTIVE, sgd(rate), {}, mesh_of(1, 1), seed=0, batch_size=CONFIG.batch_size),
        Stream(batches, dict),
        Schedule(STEPS, 1, SAVE, EVALUATE),
        Upkeep(workdir, {}),
        evaluate,
    )


GONE = "was removed, moved or replaced while this run trained in it"


@pytest.mark.parametrize("at", [2, 6, 8])  # before a save, an evaluation, the end
def test_a_folder_that_was_removed_ends_the_run_and_is_not_made_again(tmp_path, at):
    workdir = tmp_path / "run"
    with pytest.raises(OSError, match=f"^{workdir} {GONE}"):
        run(workdir, at=at, act=lambda: shutil.rmtree(workdir))
    assert not workdir.exists()


def test_a_folder_that_another_has_replaced_is_left_alone(tmp_path):
    workdir = tmp_path / "run"

    def replace():
        workdir.rename(tmp_path / "moved")
        workdir.mkdir()

    with pytest.raises(OSError, match=GONE):
        run(workdir, at=6, act=replace)
    assert not list(workdir.iterdir()) and saved_steps(tmp_path / "moved") == [4]


def test_a_folder_that_goes_in_the_last_evaluation_is_no_success(tmp_path):
    workdir = tmp_path / "run"

    def evaluate(state):
        if int(state.step) == STEPS:
            wait_for(lambda: STEPS in saved_steps(workdir))
            shutil.rmtree(workdir)
        return {}

    with pytest.raises(OSError, match=GONE):
        run(workdir, evaluate=evaluate)
    assert not workdir.exists()


def test_a_full_disk_ends_the_run_with_what_is_saved(tmp_path, monkeypatch):
    append = metrics.append

    def append_or_fail(file, content):
        if b'"step": 7' in content:
            raise OSError(errno.ENOSPC, "No space left on device")
        append(file, content)

    with monkeypatch.context() as patched:
        patched.setattr(metrics, "append", append_or_fail)
        with pytest.raises(OSError, match=r"metrics.jsonl could not be written \(No space left"):
            run(tmp_path)
    assert saved_steps(tmp_path) == [4]
    run(tmp_path)
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows if "loss" in row] == [*range(1, 9)]


def test_a_stop_whose_save_fails_does_not_say_that_it_is_saved(tmp_path, monkeypatch):
    def fail(checkpoints):
        raise OSError("checkpoint 2 could not be written")

    stop = lambda: monkeypatch.setattr(checkpoint, "wait_for_save", fail)
    answers = iter((False, True))  # after the first and the second step
    monkeypatch.setattr(Preemption, "requested", lambda self: next(answers))
    monkeypatch.setattr(checkpoint, "save_state", lambda *_: stop())
    with pytest.raises(OSError, match="checkpoint 2 could not be written"):
        run(tmp_path)


def test_an_update_that_overflows_is_named_and_not_saved(tmp_path):
    with pytest.raises(NonFiniteError) as error:
        run(tmp_path, rate=3e38)
    assert "parameters or optimizer state of the network after its update" in str(error.value)
    assert "optimizer.learning_rate" in str(error.value) and error.value.step is not None
    assert all(map(np.isfinite, error.value.values.values()))
    abstract = abstract_state(OBJECTIVE, sgd(0.1), 0, {}, mesh_of(1, 1))
    state = restore.newest_state(tmp_path, abstract)
    assert state is None or all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
