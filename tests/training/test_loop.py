"""The loop passes its arguments to the step, the log, the checkpoints and the watchdog."""

from inspect import signature
from itertools import count

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fewstep.models.network import Network
from fewstep.objectives.base import Follower, Mean, Objective, Player
from fewstep.objectives.followers import constant_ema
from fewstep.objectives.stages import Stage
from fewstep.training import loop, session
from fewstep.training.cluster.watchdog import Patience
from fewstep.training.compiled_step import Training
from fewstep.training.loop import train
from fewstep.training.metrics import read_rows
from fewstep.training.optimizer import Optimizer
from fewstep.training.report import logged_evaluations
from fewstep.training.schedule import Schedule
from fewstep.training.session import Upkeep
from fewstep.training.sources import Stream
from fewstep.training.state import initial_state
from fewstep.training.step import train_step
from fewstep.training.storage import restore
from fewstep.training.storage.checkpoint import Retention
from tests.training.runs import largest_difference
from tests.training.test_sharding import mesh_of

BATCH, SEED = 8, 3
OPTIMIZERS = {"network": Optimizer(optax.adam(0.1), optax.constant_schedule(0.1))}
FROZEN = {"teacher": {"w": jnp.float32(2.0)}}


def loss(params, networks, batch, key, step):
    noise = jax.random.normal(key, batch["x"].shape)
    rows = (params["w"] - batch["x"] * networks["teacher"]["w"] - noise) ** 2
    return rows, {"rows": Mean(jnp.sum(rows), jnp.float32(len(rows)))}


OBJECTIVE = Objective(
    players={"network": Player(Network(lambda key: {"w": jax.random.normal(key)}, None), loss)},
    followers={"average": Follower("network", constant_ema(0.9))},
    sample=None,
    frozen=("teacher",),
    init_from={},
)


def batches(start):
    """Step numbers, which `complete` turns into what the loss reads."""
    return ({"number": np.full(BATCH, step, np.float32)} for step in count(start))


def complete(batch):
    rows = jnp.arange(BATCH, dtype=jnp.float32)
    return {"x": 0.1 * batch["number"] + rows, "label": jnp.zeros_like(batch["number"], int)}


TRAINING = Training(OBJECTIVE, OPTIMIZERS, FROZEN, mesh_of(1, 1), SEED, BATCH, micro_batches=2)


def run(folder, schedule, batches=batches, evaluate=None, training=None, **upkeep):
    """`train`, with no argument equal to its default."""
    return train(
        training or TRAINING._replace(frozen=dict(FROZEN)),
        Stream(batches, complete),
        schedule,
        Upkeep(folder, {"method": "made"}, **upkeep),
        evaluate or (lambda state: {"frechet_1": float(state.step)}),
    )


@pytest.mark.parametrize("dispatch", [1, 3])
def test_the_loop_is_the_training_step_again_and_again(tmp_path, dispatch):
    final = run(tmp_path, Schedule(steps=7, log=1, dispatch=dispatch))
    state = initial_state(OBJECTIVE, OPTIMIZERS, SEED, FROZEN)
    step = jax.jit(train_step(OBJECTIVE, OPTIMIZERS, SEED, 2))
    losses = []
    for number in range(7):
        batch = complete({"number": jnp.full(BATCH, number, jnp.float32)})
        state, metrics = step(state, FROZEN, batch)
        losses.append(float(metrics["loss"].total))
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 8))
    assert [row["loss"] for row in rows if "loss" in row] == pytest.approx(losses, rel=1e-5)
    assert largest_difference(final, state) < 1e-6
    assert int(final.step) == 7


def test_each_thing_is_done_at_its_own_period(tmp_path):
    starts, seen = [], []

    def noted(start):
        starts.append(start)
        return batches(start)

    def evaluate(state):
        seen.append(int(state.step))
        return {"frechet_1": float(state.step)}

    own = {"batches": noted, "evaluate": evaluate, "retention": Retention(newest=2, steps=(4,))}
    run(tmp_path, Schedule(steps=13, log=5, save=4, evaluate=6), **own)
    assert (starts, seen) == ([0], [6, 12, 13])
    # A save and an evaluation end a row too.
    rows = [row["step"] for row in read_rows(tmp_path / "metrics.jsonl") if "loss" in row]
    assert rows == [4, 5, 6, 8, 10, 12, 13]
    assert logged_evaluations(tmp_path) == {step: {"frechet_1": step} for step in (6, 12, 13)}
    kept = sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    assert kept == [4, 12, 13]
    assert restore.read_record(tmp_path)["config"] == {"method": "made"}
    run(tmp_path, Schedule(steps=14, log=5, save=4, evaluate=6), **own)
    assert (starts, seen) == ([0, 13], [6, 12, 13, 14])


def test_the_report_and_the_watchdog_get_their_arguments(tmp_path, monkeypatch):
    given = {}

    def note(module, name):
        made = getattr(module, name)

        def noted(*arguments, **named):
            given[name] = signature(made).bind(*arguments, **named).arguments
            return made(*arguments, **named)

        monkeypatch.setattr(module, name, noted)

    note(loop, "Report")
    note(session, "Watchdog")
    patience = Patience(seconds=70.0, factor=11.0, exit_after=0.0)
    schedule = Schedule(steps=2, log=5, save=6, evaluate=7)
    final = run(tmp_path, schedule, patience=patience)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(final))
    assert given["Watchdog"] == {"workdir": tmp_path, "patience": patience, "size": size}
    assert given["Report"] == {
        "workdir": tmp_path,
        "start": 0,
        "schedule": schedule,
        "optimizers": OPTIMIZERS,
        "batch_size": BATCH,
        "headlines": ("loss",),
        "stages": OBJECTIVE.stages,
        "unfinished": None,
        "least_seconds": None,
        "log_to": ("tensorboard",),
    }


def test_teachers_that_only_start_a_run_are_freed(tmp_path):
    objective = OBJECTIVE._replace(init_from={"network": "starts"})
    frozen = FROZEN | {"starts": {"w": jnp.float32(5.0)}}
    training = TRAINING._replace(objective=objective, frozen=frozen)
    final = run(tmp_path, Schedule(steps=1), training=training)
    assert set(frozen) == {"teacher"}
    assert abs(float(final.networks["network"]["w"]) - 5.0) < 0.2


def test_the_end_of_a_stage_is_saved_evaluated_and_a_row_of_the_log(tmp_path):
    stages = (Stage(0, (4,)), Stage(4, (2,)), Stage(7), Stage(20))
    objective = OBJECTIVE._replace(stages=stages)
    training = TRAINING._replace(objective=objective, frozen=dict(FROZEN))
    run(tmp_path, Schedule(steps=9, log=3, dispatch=2), training=training)
    assert sorted(logged_evaluations(tmp_path)) == [4, 7, 9]
    with restore.read_checkpoints(tmp_path) as saved:
        assert sorted(saved.all_steps()) == [4, 7, 9]
    rows = [row for row in read_rows(tmp_path / "metrics.jsonl") if "loss" in row]
    found = [(row["step"], row["stage"]) for row in rows]
    assert found == [(3, 1), (4, 1), (6, 2), (7, 2), (9, 3)]


def test_a_run_of_one_stage_says_nothing_of_stages(tmp_path):
    run(tmp_path, Schedule(steps=2, log=1))
    assert all("stage" not in row for row in read_rows(tmp_path / "metrics.jsonl"))
