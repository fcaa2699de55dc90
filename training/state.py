"""The initial state of a run, and its named random streams."""

import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from fewstep.objectives.base import Key, Objective, Params
from fewstep.training.optimizer import Optimizer, with_moments
from fewstep.training.storage.train_state import TrainState
from fewstep.training.trees import leaves_by_path, put_leaves

# Name among the frozen networks of what a run starts from (training/start.py), and its parts:
# leaves of players and followers, and moments of optimizers.
START, NETWORKS, MOMENTS = "start", "networks", "moments"


def named_key(key: Key, name: str) -> Key:
    """The key of a named random stream; every name has its own."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def start_from(own: Params, source: Params, error: str) -> Params:
    """A player's parameters, replaced by copies of the source's where the source has them.

    own: the player's initial parameters. error: beginning of an error message. Raises ValueError
    that names a parameter of the source that `own` lacks, or has in another shape.
    """
    places = {path: leaf.shape for path, leaf in leaves_by_path(own).items()}
    for path, leaf in leaves_by_path(source).items():
        if path not in places:
            raise ValueError(f"{error}: it has no parameter {path}")
        if places[path] != leaf.shape:
            raise ValueError(
                f"{error}: its parameter {path} has the shape {places[path]}, the source's has "
                f"{leaf.shape}"
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

    They are copies, not references, because a buffer that appears twice cannot be donated. What
    frozen[START] has replaces the rest. Raises ValueError for a player whose network cannot start
    from its teacher.
    """
    started, moments = (frozen.get(START, {}).get(part, {}) for part in (NETWORKS, MOMENTS))
    key = named_key(jax.random.key(seed), "init")
    networks = {}
    for name, player in objective.players.items():
        networks[name] = player.network.init(named_key(key, name))
        if name in objective.init_from:
            source = objective.init_from[name]
            error = f"{name} cannot start from {source}"
            networks[name] = start_from(networks[name], frozen[source], error)
        networks[name] = put_leaves(networks[name], started.get(name, {}))
    followers: dict[str, Params] = {}
    for name, follower in objective.followers.items():
        sources = networks | followers
        copy = jax.tree.map(jnp.copy, sources[follower.source])
        followers[name] = put_leaves(copy, started.get(name, {}))
    return TrainState(
        step=jnp.int32(0),
        networks=networks,
        followers=followers,
        optimizers={
            name: with_moments(
                optimizers[name].transform.init(player.part(networks[name])), moments.get(name)
            )
            for name, player in objective.players.items()
        },
    )
