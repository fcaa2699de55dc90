"""The initial state of a run, and its named random streams."""

import zlib
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import tree_leaves_with_path

from fewstep.objectives.base import Key, Objective, Params
from fewstep.training.optimizer import Optimizer
from fewstep.training.storage.train_state import TrainState

keystr = partial(jax.tree_util.keystr, simple=True, separator="/")


def named_key(key: Key, name: str) -> Key:
    """The key of a named random stream; every name has its own."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def start_from(own: Params, source: Params, error: str) -> Params:
    """A player's parameters, replaced by copies of the source's where the source has them.

    own: the player's initial parameters. error: beginning of an error message. Raises ValueError
    that names a parameter of the source that `own` lacks, or has in another shape.
    """
    places = {keystr(path): leaf.shape for path, leaf in tree_leaves_with_path(own)}
    for path, leaf in tree_leaves_with_path(source):
        if keystr(path) not in places:
            raise ValueError(f"{error}: it has no parameter {keystr(path)}")
        if places[keystr(path)] != leaf.shape:
            raise ValueError(
                f"{error}: its parameter {keystr(path)} has the shape "
                f"{places[keystr(path)]}, the source's has {leaf.shape}"
            )
    return replace_parts(own, jax.tree.map(jnp.copy, source))


def replace_parts(own: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """`own`, with every part that `given` has replaced by that of `given`."""
    return {
        name: replace_parts(part, given[name])
        if isinstance(part, Mapping) and name in given
        else given.get(name, part)
        for name, part in own.items()
    }


def initial_state(
    objective: Objective,
    optimizers: Mapping[str, Optimizer],
    seed: int,
    frozen: Mapping[str, Params],
) -> TrainState:
    """The state before the first step. Followers start as copies of their sources.

    They are copies, not references, because a buffer that appears twice cannot be donated. Raises
    ValueError for a player whose network cannot start from its teacher.
    """
    key = named_key(jax.random.key(seed), "init")
    networks = {}
    for name, player in objective.players.items():
        networks[name] = player.network.init(named_key(key, name))
        if name in objective.init_from:
            source = objective.init_from[name]
            error = f"{name} cannot start from {source}"
            networks[name] = start_from(networks[name], frozen[source], error)
    followers: dict[str, Params] = {}
    for name, follower in objective.followers.items():
        sources = networks | followers
        followers[name] = jax.tree.map(jnp.copy, sources[follower.source])
    return TrainState(
        step=jnp.int32(0),
        networks=networks,
        followers=followers,
        optimizers={name: optimizers[name].transform.init(networks[name]) for name in networks},
    )
