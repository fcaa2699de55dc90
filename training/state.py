"""The state that a run starts from, and its streams of random numbers."""

import zlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from fewstep.objectives.base import Key, Objective, Params
from fewstep.training.optimizer import Optimizer
from fewstep.training.storage.train_state import TrainState


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
