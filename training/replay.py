"""Diagnoses a step that was not finite: its record, WORKDIR/replay/STEP.json, and its replay.

The record has the step, its key, the images of its batch and the values that were not finite. It
needs no state: a run is a function of its last checkpoint, so the replay trains from there.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from fewstep.files import write_json
from fewstep.objectives.base import Batch, Key, LossFn, Mean, Metrics, Objective, Params
from fewstep.training.report import NonFiniteError
from fewstep.training.step import column_name
from fewstep.training.storage.fields import LARGEST_INT32

FOLDER = "replay"
# Names of metrics that a replayed step has in addition.
ROWS, GRADIENT = "rows", "gradient of "


class Findings(NamedTuple):
    """What was not finite in one player's step.

    rows: rows of the batch whose loss is not finite. gradients: by path of an array, the share of
    its elements that are not finite.
    """

    loss: float
    gradient_norm: float
    rows: list[int]
    gradients: dict[str, float]


def write_record(
    workdir: Path, error: NonFiniteError, *, seed: int, indices: Sequence[int] | None
) -> Path:
    """Write the record of the step that an error names; returns the file.

    indices: indices of the batch's images in the data set, None if it has none.
    """
    key = jax.random.fold_in(jax.random.key(seed), error.step - 1)
    path = workdir / FOLDER / f"{error.step}.json"
    path.parent.mkdir(exist_ok=True)  # fails if the run's folder is gone
    record = {
        "step": error.step,
        "message": str(error),
        "values": {name: repr(value) for name, value in error.values.items()},
        "seed": seed,
        "key": np.asarray(jax.random.key_data(key)).tolist(),
        "indices": None if indices is None else [int(index) for index in indices],
    }
    write_json(path, record)
    return path


def read_newest_record(workdir: Path) -> dict[str, Any]:
    """The record of the last step that was not finite. Raises ValueError if none is readable."""
    paths = [path for path in (workdir / FOLDER).glob("*.json") if path.stem.isdecimal()]
    paths.sort(key=lambda path: int(path.stem))
    if not paths:
        raise ValueError(f"{workdir / FOLDER} has no record: no step of this run was not finite")
    try:
        record = json.loads(paths[-1].read_bytes().decode())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{paths[-1]} is not valid JSON ({error}); delete it") from error
    if not is_record(record) or record["step"] != int(paths[-1].stem):
        raise ValueError(f"{paths[-1]} is not the record of a step; delete it")
    return record


def is_record(content: Any) -> bool:
    """Whether JSON content has what a replay needs: step, message and images."""
    if not isinstance(content, dict):
        return False
    step, indices = content.get("step"), content.get("indices")
    whole = isinstance(indices, list) and all(type(index) is int for index in indices)
    return (
        type(step) is int
        and 0 < step <= LARGEST_INT32
        and isinstance(content.get("message"), str)
        and (indices is None or whole)
    )


def with_row_losses(objective: Objective) -> Objective:
    """The objective, whose players' metrics also have the loss of every row."""
    players = {
        name: player._replace(loss=add_row_metric(player.loss))
        for name, player in objective.players.items()
    }
    return objective._replace(players=players)


def add_row_metric(loss: LossFn) -> LossFn:
    """The loss function, whose metrics also have the loss of every row."""

    def loss_with_rows(
        params: Params, networks: Mapping[str, Params], batch: Batch, key: Key, step: Array
    ) -> tuple[Array, Metrics]:
        rows, metrics = loss(params, networks, batch, key, step)
        return rows, {**metrics, ROWS: Mean(rows, jnp.ones_like(rows))}

    return loss_with_rows


def non_finite_shares(gradient: Params) -> Metrics:
    """For every array of a gradient, the share of elements that are not finite, as metrics."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(gradient)
    return {
        GRADIENT + jax.tree_util.keystr(path, simple=True, separator="/"): Mean(
            jnp.mean(~jnp.isfinite(leaf), dtype=jnp.float32), jnp.float32(1)
        )
        for path, leaf in leaves
    }


def find_non_finite(
    metrics: Metrics, players: Sequence[str], micro_batches: int
) -> dict[str, Findings]:
    """Findings by player, for the players that are not finite in a replayed step.

    metrics: on the host. With micro-batches, one row of the metrics stands for one row of each
    micro-batch; the findings name all of these.
    """
    found = {}
    for player in players:
        prefix = column_name("", player, players)
        own = {k.removeprefix(prefix): m for k, m in metrics.items() if k.startswith(prefix)}
        if own["finite"].total >= own["finite"].count:
            continue
        broken = np.flatnonzero(~np.isfinite(own[ROWS].total))
        gradients = {k.removeprefix(GRADIENT): m for k, m in own.items() if k.startswith(GRADIENT)}
        found[player] = Findings(
            loss=float(own["loss"].total),
            gradient_norm=float(own["gradient_norm"].total),
            rows=[int(r) * micro_batches + i for r in broken for i in range(micro_batches)],
            gradients={k: float(m.total) for k, m in gradients.items() if m.total > 0.0},
        )
    return found
