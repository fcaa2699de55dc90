"""The state of a run: all that the next step depends on, besides data and frozen networks."""

from typing import Any, NamedTuple

from jax import Array

from fewstep.objectives.base import Params


class TrainState(NamedTuple):
    """step: updates done. networks: the players' parameters. All float32 but step."""

    step: Array
    networks: dict[str, Params]
    followers: dict[str, Params]
    optimizers: dict[str, Any]
