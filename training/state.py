"""The state of a run: all that the next step depends on, besides data and frozen networks."""

import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from objectives.base import Key, Objective, Params
from training.optimizer import Optimizer


class TrainState(NamedTuple):
    """step: updates done. networks: the players' parameters. All float32 but step."""

    step: Array
    networks: dict[str, Params]
    followers: dict[str, Params]
    optimizers: dict[str, Any]


def named_key(key: Key, name: str) -> Key:
    """The random stream of a name: a key that no other name shares."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def initial_state(
    objective: Objective,
    optimizers: Mapping[str, Optimizer],
    seed: int,
    frozen: Mapping[str, Params],
) -> TrainState:
    """State before the first step. Followers start as copies of their sources.

    Copies, not references: a buffer that stands in the state twice could not be donated.
    """
    key = named_key(jax.random.key(seed), "init")
    networks = {
        name: jax.tree.map(jnp.copy, frozen[objective.init_from[name]])
        if name in objective.init_from
        else player.init(named_key(key, name))
        for name, player in objective.players.items()
    }
    followers: dict[str, Params] = {}
    for name, follower in objective.followers.items():
        source = networks | followers
        followers[name] = jax.tree.map(jnp.copy, source[follower.source])
    return TrainState(
        step=jnp.int32(0),
        networks=networks,
        followers=followers,
        optimizers={name: optimizers[name].transform.init(networks[name]) for name in networks},
    )
