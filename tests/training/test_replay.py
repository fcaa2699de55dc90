"""A replay of a step that was not finite names what broke."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fewstep.models.network import Network
from fewstep.objectives.base import Mean, Objective, Player
from fewstep.training.optimizer import Optimizer
from fewstep.training.replay import (
    Findings,
    find_non_finite,
    non_finite_shares,
    read_newest_record,
    with_row_losses,
    write_record,
)
from fewstep.training.report import NonFiniteError
from fewstep.training.state import initial_state
from fewstep.training.step import train_step

SGD = Optimizer(optax.sgd(0.1), optax.constant_schedule(0.1))
BROKEN = [2, 5]  # rows
X = jnp.ones(8).at[jnp.array(BROKEN)].set(jnp.inf)


def player(reads):
    """A loss whose gradient is not finite in `scale` if a row of x is not, but is in `shift`."""

    def loss(params, networks, batch, key, step):
        rows = params["scale"] * reads(batch) + params["shift"]
        return rows, {"mean": Mean(jnp.sum(rows), jnp.float32(rows.size))}

    init = lambda key: {"scale": jnp.ones((2,)).sum(), "shift": jnp.zeros(())}
    return Player(Network(init, None), loss)


def findings_of_step(micro_batches):
    """Findings of a step in which the second of two players is not finite."""
    sound, broken = player(lambda batch: batch["y"]), player(lambda batch: batch["x"])
    objective = Objective({"sound": sound, "broken": broken}, {}, None, "sound", init_from={})
    optimizers = dict.fromkeys(objective.players, SGD)
    state = initial_state(objective, optimizers, 0, {})
    step = train_step(with_row_losses(objective), optimizers, 0, micro_batches, non_finite_shares)
    batch = {"x": X, "y": jnp.ones(8), "label": jnp.arange(8)}
    metrics = jax.device_get(jax.jit(step)(state, {}, batch)[1])
    return find_non_finite(metrics, list(objective.players), micro_batches)


def test_the_player_its_rows_and_its_arrays_are_named():
    assert findings_of_step(1) == {"broken": Findings(np.inf, np.inf, BROKEN, {"scale": 1.0})}


def test_a_row_of_micro_batches_stands_for_one_of_each():
    (finding,) = findings_of_step(2).values()
    # Rows 0 2 4 6 and 1 3 5 7: the second row of the first, the third of the second.
    assert finding.rows == [2, 3, 4, 5]


def test_the_record_of_the_last_broken_step_is_read(tmp_path):
    with pytest.raises(ValueError, match="no step of this run was not finite"):
        read_newest_record(tmp_path)
    for step in (9, 30, 4):
        error = NonFiniteError("broken", step, {"loss": np.inf})
        write_record(tmp_path, error, seed=3, indices=np.array([7, 8]))
    record = read_newest_record(tmp_path)
    assert record["step"] == 30 and record["values"] == {"loss": "inf"}
    assert record["indices"] == [7, 8]
    key = jax.random.wrap_key_data(jnp.array(record["key"], jnp.uint32))
    assert key == jax.random.fold_in(jax.random.key(3), 29)  # the state's step, before the update
    (tmp_path / "replay" / "notes.json").write_text("{")  # of the user
    assert read_newest_record(tmp_path) == record
    for content, message in (
        (b"{", "not valid JSON"),
        (b"\xff", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"null", "not the record of a step"),
        (b"[1]", "not the record of a step"),
        (b'{"step": "31", "message": ""}', "not the record of a step"),
        (b'{"step": 31, "message": "", "indices": ["a"]}', "not the record of a step"),
        (
            b'{"step": 30, "message": "", "indices": null}',
            "not the record of a step",
        ),  # another's, renamed
    ):
        (tmp_path / "replay" / "31.json").write_bytes(content)
        with pytest.raises(ValueError, match=f"31.json is {message}"):
            read_newest_record(tmp_path)
