"""The cost of sampling, counted from the sampler before it is compiled."""

from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import Jaxpr
from ml_collections import ConfigDict

from fewstep.models.network import Network, Params
from fewstep.training.cost.traced import programs_in
from fewstep.training.experiment import build, build_model
from fewstep.training.networks import with_network_fields

ROWS = 1  # of the sampler that is counted


@jax.jit
def network_input(x: Array) -> Array:
    """x as it is. Its name marks the evaluations of a network in a program."""
    return x


MARK = network_input.__name__
GRADIENT = "gradient_of_density"  # as densities/density.py names it in a program


class Counts(NamedTuple):
    """What a sample takes: evaluations of the network, and of the gradient of a density."""

    network: int
    gradients: int


def evaluations_per_sample(
    config: ConfigDict, steps: Iterable[int], guidance_scale: float
) -> dict[int, int]:
    """The network evaluations of `counts_per_sample`."""
    found = counts_per_sample(config, steps, guidance_scale)
    # A codec reconstructs without the network.
    return {steps: counts.network for steps, counts in found.items() if counts.network}


def counts_per_sample(
    config: ConfigDict, steps: Iterable[int], guidance_scale: float
) -> dict[int, Counts]:
    """By number of sampling steps, what a sample takes.

    Heun's steps take two evaluations, and guidance by two conditions doubles them. Raises
    ValueError if the method cannot sample so.
    """
    config = with_network_fields(config)
    if "attention" in config.model:
        config.model.attention = "xla"  # which every machine has
    experiment = build(config, stand_in(build_model(config).network))
    objective = experiment.objective
    params = jax.eval_shape(objective.players[objective.generator].network.init, jax.random.key(0))
    noise = jax.ShapeDtypeStruct((ROWS, *experiment.space.shape), jnp.float32)
    condition = {"label": jax.ShapeDtypeStruct((ROWS,), jnp.int32)}
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), ROWS))

    def counts(steps: int) -> Counts:
        sample = partial(objective.sample, steps=steps, guidance_scale=guidance_scale)
        program = jax.make_jaxpr(sample)(params, noise, condition, keys).jaxpr
        return Counts(*(count_rows(program, mark) // ROWS for mark in (MARK, GRADIENT)))

    return {count: counts(count) for count in steps}


def stand_in(network: Network) -> Network:
    """The network with its input as output, since only the number of evaluations matters.

    Its hidden features are its own.
    """

    def features(params: Params, x: Array, *inputs: Any, **options: Any) -> Any:
        return network.features(params, network_input(x), *inputs, **options)

    apply = lambda params, x, *inputs, **options: network_input(x)
    return network._replace(apply=apply, features=features)


def count_rows(program: Jaxpr, mark: str = MARK) -> int:
    """The rows of all inputs with a mark in a program; of a branch, those of the costliest."""
    total = 0
    for equation in program.eqns:
        inside = [count_rows(part, mark) for part in programs_in(equation.params.values())]
        if equation.params.get("name") == mark:
            total += equation.invars[0].aval.shape[0]
        elif equation.primitive.name == "cond":
            total += max(inside)
        else:
            total += sum(inside) * equation.params.get("length", 1)
    return total
