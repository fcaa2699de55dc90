"""What a method is: players that are trained, followers that copy them, networks that stay frozen.

An objective never sees a config, a device or an optimizer. The differentiated parameters are the
first argument of a loss, so gradients reach one network by construction; `stop_gradient` stands
only where a network is its own target, or a derivative is left out of an estimate.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import Array

from fewstep.diffusion.guidance import Condition
from fewstep.diffusion.path import Path
from fewstep.models.network import Network
from fewstep.objectives.stages import ONE_STAGE, Stage

Key = Array
Params = Any
Batch = Mapping[str, Array]

# Bins of the logged loss, equal in the angle arctan(sigma / alpha) from data to noise.
NOISE_LEVEL_BINS = 8
# The name in a batch of what the losses share.
SHARED = "shared"


class Mean(NamedTuple):
    """A mean that can be accumulated over steps: total / count. A count of 0 is not reported."""

    total: Array
    count: Array


Metrics = Mapping[str, Mean]
# (parameters of the players by name, batch, key) -> what all losses of a step read, of [B, ...]
Share = Callable[[Mapping[str, Params], Batch, Key], Mapping[str, Array]]
# (trained, every network by name, batch, key, step) -> (loss [B], unreduced, and metrics)
LossFn = Callable[[Params, Mapping[str, Params], Batch, Key, Array], tuple[Array, Metrics]]


class Player(NamedTuple):
    """A network that is trained, with its own optimizer, updated when step % every == 0.

    headline: the one of its metrics that a progress bar shows. Where the value of a loss says
        nothing, as where its rows are normalised, it is another metric of the loss.
    """

    network: Network
    loss: LossFn
    every: int = 1
    headline: str = "loss"


class Follower(NamedTuple):
    """A network that copies the player or follower `source`: an EMA, a target, a staged teacher.

    update: (follower, source, step) -> follower, after every update of the player that it follows
        in the end; step counts these from 0.
    restarts: whether it becomes a copy of its source when a stage begins, and counts from there.
    """

    source: str
    update: Callable[[Params, Params, Array], Params]
    restarts: bool = False


class SampleFn(Protocol):
    """Images from noise in `steps` steps; steps and guidance_scale are static under jit."""

    def __call__(
        self,
        params: Params,
        eps: Array,
        condition: Condition,
        keys: Array,
        *,
        steps: int,
        guidance_scale: float,
    ) -> Array:
        """eps: [B, ...] standard normal; keys: [B], for methods that draw more noise.

        Returns x_0 like eps. Raises ValueError where the method cannot sample in that many steps or
        at that scale.
        """
        ...


class RowsFn(Protocol):
    """Values of each sample, from the noise that it starts from; static arguments as `SampleFn`."""

    def __call__(
        self,
        params: Params,
        eps: Array,
        condition: Condition,
        keys: Array,
        *,
        steps: int,
        guidance_scale: float,
    ) -> Mapping[str, Array]:
        """Arrays [B, ...] by name, such as log weights; arguments as those of `SampleFn`."""
        ...


class Diagnostics(NamedTuple):
    """What a method tells of its own network in an evaluation, beside its samples.

    rows: values of each sample, made on the devices in batches.
    numbers: these values of all samples, NumPy arrays [N, ...] by name -> numbers by name, such as
        an effective sample size. Results, log and report have them like metrics.
    """

    rows: RowsFn
    numbers: Callable[[Mapping[str, Any]], Mapping[str, float]]


class Objective(NamedTuple):
    """A training method.

    players: updated in this order; each sees the earlier updates.
    followers: updated after the players, in this order.
    share: what the losses share, if anything, as batch["shared"]: floating arrays, evaluated once
        per step (of micro-batches once by every player), before any update. The gradient of a
        player's loss in it goes on to that player's own parameters, through the forward pass that
        made it, and to no others.
    sample: how this method generates with the network of the player `generator` or a copy of it.
    guidance_scale: the scale at which it samples unless told otherwise.
    frozen: teachers that the losses read, loaded from a checkpoint, never saved again.
    init_from: {"network": "teacher"}: the players that start from a teacher if the run has one.
        What a player has beside the teacher's parameters, such as a head, starts as its own.
    needs_teacher: whether the method is nothing without a teacher, be it frozen, or what makes its
        pairs, or where it must start.
    denoises: whether the generator predicts data and noise at every time, and so can teach.
    reads: what a batch is made of, names of training/sources.py. "images": {"x", "label"};
        "labels": {"label"}; "pairs": {"pairs": {"eps", "x_0", "label"}} of a teacher's sampler.
    diagnostics: what it tells of its network in an evaluation, if anything.
    stages: parts of the training, in order, the first from step 0. When one begins the optimizers
        and the followers that restart start anew.
    """

    players: Mapping[str, Player]
    followers: Mapping[str, Follower]
    sample: SampleFn
    generator: str = "network"
    guidance_scale: float = 1.0
    frozen: tuple[str, ...] = ()
    share: Share | None = None
    init_from: Mapping[str, str] = {"network": "teacher"}
    needs_teacher: bool = False
    denoises: bool = False
    reads: tuple[str, ...] = ("images",)
    diagnostics: Diagnostics | None = None
    stages: tuple[Stage, ...] = ONE_STAGE


def batch_condition(batch: Batch) -> Condition:
    """A batch's own arrays but the images: its labels. What is nested is of other rows."""
    return {
        name: value
        for name, value in batch.items()
        if name != "x" and not isinstance(value, Mapping)
    }


def per_example(elementwise: Array) -> Array:
    """Mean over all axes but the first: [B, ...] -> [B], in float32."""
    return jnp.mean(elementwise.astype(jnp.float32).reshape(elementwise.shape[0], -1), axis=1)


def mean_metric(values: Array) -> Mean:
    """The mean of an array, as a metric."""
    return Mean(jnp.sum(values), jnp.float32(values.size))


def noise_level_means(name: str, values: Array, t: Array, path: Path) -> dict[str, Mean]:
    """Mean values in bins of arctan(sigma / alpha) / (pi / 2), from data (0) to noise (1).

    values, t: [B]. The angle is the same coordinate on every path, so bins compare across paths.
    """
    angle = jnp.arctan2(path.sigma(t), path.alpha(t)) / (0.5 * jnp.pi)
    bins = jnp.clip((angle * NOISE_LEVEL_BINS).astype(jnp.int32), 0, NOISE_LEVEL_BINS - 1)
    member = jax.nn.one_hot(bins, NOISE_LEVEL_BINS, axis=0)
    totals, counts = member @ values, jnp.sum(member, axis=1)
    return {f"{name}_noise_{i}": Mean(totals[i], counts[i]) for i in range(NOISE_LEVEL_BINS)}
