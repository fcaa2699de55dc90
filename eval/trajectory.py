"""The trajectory of one sample from noise to data, as the network sees it."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import Array
from ml_collections import ConfigDict

from fewstep.models.network import Network
from fewstep.objectives.base import Params
from fewstep.training.experiment import build, build_model
from fewstep.training.generate import SAMPLES, initial_noise

# A trajectory shows at most this many states, evenly spaced.
SHOWN = 8
SMALLEST = 1e-6  # bound below on the deviation to divide by; an image of one colour has 0

# parameters -> finished samples [n, ...]
Trajectory = Callable[[Params], np.ndarray]


def trajectory(config: ConfigDict, *, steps: int, guidance_scale: float, label: int) -> Trajectory:
    """The function that computes the trajectory of sample 0 of config.seed.

    The trajectory has the network's inputs in the order of evaluation, and x_0 as its last. Inputs
    of a solver's inner evaluations are among them. Each path and prediction scales inputs in its
    own way, so all are rescaled to the deviation of x_0. Sampling uses one device, since only that
    keeps the order of evaluations.
    """
    states: list[np.ndarray] = []
    experiment = build(config, record_inputs(build_model(config).network, states))
    condition = {"label": np.array([label], np.int32)}

    @jax.jit
    def sample(params: Params) -> Array:
        eps, keys = initial_noise(
            config.seed, np.zeros(1, np.int32), experiment.space.shape, SAMPLES
        )
        return experiment.objective.sample(
            params, eps, condition, keys, steps=steps, guidance_scale=guidance_scale
        )

    def show(params: Params) -> np.ndarray:
        states.clear()
        x_0 = jax.device_get(sample(jax.device_get(params)))
        jax.effects_barrier()
        chosen = np.unique(np.linspace(0, len(states) - 1, SHOWN).round().astype(int))
        scaled = [states[i] * (x_0.std() / max(states[i].std(), SMALLEST)) for i in chosen]
        return experiment.space.finish(np.stack([*scaled, x_0[0]]))

    return show


def record_inputs(network: Network, states: list[np.ndarray]) -> Network:
    """The network, which now appends the first example of each input to `states`."""

    def recorded(function: Callable[..., Any]) -> Callable[..., Any]:
        def evaluate(params: Params, x: Array, *inputs: Any, **options: Any) -> Any:
            jax.debug.callback(lambda x: states.append(np.asarray(x)), x[0], ordered=True)
            return function(params, x, *inputs, **options)

        return evaluate

    features = network.features and recorded(network.features)
    return network._replace(apply=recorded(network.apply), features=features)
