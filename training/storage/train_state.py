"""The state of a run: all that its next step depends on, besides data and frozen networks."""

from typing import Any, NamedTuple

from jax import Array

from fewstep.objectives.base import Params


class TrainState(NamedTuple):
    """The state after `step` training steps; all arrays are float32, except counts.

    networks: the players' parameters. followers: the followers' parameters. optimizers: the
    players' optimizer states.
    """

    step: Array
    networks: dict[str, Params]
    followers: dict[str, Params]
    optimizers: dict[str, Any]
