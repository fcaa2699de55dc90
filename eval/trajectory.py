"""One image's way from noise to data, as its network sees it."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import Array
from ml_collections import ConfigDict

from fewstep.models.network import Network
from fewstep.objectives.base import Params
from fewstep.training.experiment import build, build_model
from fewstep.training.generate import SAMPLES, noise

# Of the states on the way, at most this many are shown, evenly spaced.
SHOWN = 8
SMALLEST = 1e-6  # deviation that is divided by, of an image of one colour

# parameters -> finished samples [n, ...]
Trajectory = Callable[[Params], np.ndarray]


def trajectory(config: ConfigDict, *, steps: int, guidance_scale: float, label: int) -> Trajectory:
    """The function that shows sample 0 of config.seed: inputs of the network on its way, and x_0.

    Inputs are in the order of evaluation, a solver's inner ones among them, and scaled to the
    deviation of x_0, since paths and predictions scale them each in another way. One device is
    used: only there is the order of observations kept.
    """
    states: list[np.ndarray] = []
    experiment = build(config, record_inputs(build_model(config).network, states))
    condition = {"label": np.array([label], np.int32)}

    @jax.jit
    def sample(params: Params) -> Array:
        eps, keys = noise(config.seed, np.zeros(1, np.int32), experiment.space.shape, SAMPLES)
        return experiment.objective.sample(
            params, eps, condition, keys, steps=steps, guidance_scale=guidance_scale
        )

    def show(params: Params) -> np.ndarray:
        states.clear()
        x_0 = jax.device_get(sample(jax.device_get(params)))
        jax.effects_barrier()
        chosen = np.unique(np.linspace(0, len(states) - 1, SHOWN).round().astype(int))
        way = [states[i] * (x_0.std() / max(states[i].std(), SMALLEST)) for i in chosen]
        return experiment.space.finish(np.stack([*way, x_0[0]]))

    return show


def record_inputs(network: Network, states: list[np.ndarray]) -> Network:
    """The network that appends the first image of each of its inputs to `states`."""

    def apply(params: Params, x: Array, *inputs: Any, **options: Any) -> Array:
        jax.debug.callback(lambda x: states.append(np.asarray(x)), x[0], ordered=True)
        return network.apply(params, x, *inputs, **options)

    return network._replace(apply=apply)
