"""The cost of sampling, counted from the sampler before it is compiled."""

from collections.abc import Iterable
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import Jaxpr
from ml_collections import ConfigDict

from fewstep.models.network import Network
from fewstep.training.cost.traced import programs_in
from fewstep.training.experiment import build, build_model

ROWS = 1  # of the sampler that is counted


@jax.jit
def network_input(x: Array) -> Array:
    """x as it is. Its name marks the evaluations of a network in a program."""
    return x


MARK = network_input.__name__


def evaluations_per_sample(
    config: ConfigDict, steps: Iterable[int], guidance_scale: float
) -> dict[int, int]:
    """By number of sampling steps, how many network evaluations a sample takes.

    Heun's steps take two, and guidance by two conditions doubles them. Raises ValueError if the
    method cannot sample so.
    """
    config = config.copy_and_resolve_references()
    if "attention" in config.model:
        config.model.attention = "xla"  # which every machine has
    experiment = build(config, stand_in(build_model(config).network))
    objective = experiment.objective
    params = jax.eval_shape(objective.players[objective.generator].network.init, jax.random.key(0))
    noise = jax.ShapeDtypeStruct((ROWS, *experiment.space.shape), jnp.float32)
    condition = {"label": jax.ShapeDtypeStruct((ROWS,), jnp.int32)}
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), ROWS))

    def evaluations(steps: int) -> int:
        sample = partial(objective.sample, steps=steps, guidance_scale=guidance_scale)
        return count_rows(jax.make_jaxpr(sample)(params, noise, condition, keys).jaxpr) // ROWS

    return {count: evaluations(count) for count in steps}


def stand_in(network: Network) -> Network:
    """The network with its input as output, since only the number of evaluations matters."""
    return network._replace(apply=lambda params, x, *inputs, **options: network_input(x))


def count_rows(program: Jaxpr) -> int:
    """The rows of all marked inputs in a program; of a branch, those of the costliest."""
    total = 0
    for equation in program.eqns:
        inside = [count_rows(part) for part in programs_in(equation.params.values())]
        if equation.params.get("name") == MARK:
            total += equation.invars[0].aval.shape[0]
        elif equation.primitive.name == "cond":
            total += max(inside)
        else:
            total += sum(inside) * equation.params.get("length", 1)
    return total
