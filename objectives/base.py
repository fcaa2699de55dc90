"""The contract of a training method: an `Objective` of players, followers and frozen networks.

Players are trained, followers copy players, and frozen networks never change. An objective never
sees a config, a device or an optimizer. The differentiated parameters are the first argument of a
loss, so gradients reach one network by construction. A loss calls `stop_gradient` only where a
network is its own target, or where an estimate leaves out a derivative.
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

# Number of bins of the logged loss, equal in the angle arctan(sigma / alpha) from data to noise.
NOISE_LEVEL_BINS = 8
# Batch key for arrays that all losses share.
SHARED = "shared"


class Mean(NamedTuple):
    """A mean that accumulates over steps: total / count. The log leaves out a count of 0."""

    total: Array
    count: Array


Metrics = Mapping[str, Mean]
# (parameters of the players by name, batch, key) -> arrays [B, ...] that all losses of a step read
Share = Callable[[Mapping[str, Params], Batch, Key], Mapping[str, Array]]
# (trained parameters, every network's by name, batch, key, step) -> (unreduced loss [B], metrics)
LossFn = Callable[[Params, Mapping[str, Params], Batch, Key, Array], tuple[Array, Metrics]]


class Player(NamedTuple):
    """A network that is trained, with an optimizer of its own.

    network: the network.
    loss: the loss that it minimises.
    every: the player is updated in training steps with step % every == 0.
    headline: the metric that the progress bar shows. It is "loss", or another metric of the loss
        where the value of the loss says nothing, for example because its rows are normalised.
    trained: entries of its parameters that the loss is differentiated in, such as a head; () for
        all. No gradient, optimizer state or weight decay reaches the others.
    """

    network: Network
    loss: LossFn
    every: int = 1
    headline: str = "loss"
    trained: tuple[str, ...] = ()

    def part(self, params: Params) -> Params:
        """The parameters that are trained."""
        return {name: params[name] for name in self.trained} if self.trained else params

    def whole(self, params: Params, part: Params) -> Params:
        """All parameters, with `part` in place of those that are trained."""
        return {**params, **part} if self.trained else part


class Follower(NamedTuple):
    """A network computed from another one: an EMA, a bootstrap target, the teacher of a stage.

    source: name of the player or follower that it follows.
    update: (follower, source, step) -> follower. It runs after each update of the player at the
        start of the chain of sources; step counts these updates from 0.
    restarts: whether the beginning of a stage makes it a copy of its source and restarts its count.
    """

    source: str
    update: Callable[[Params, Params, Array], Params]
    restarts: bool = False


class SampleFn(Protocol):
    """Generates samples from noise in `steps` sampling steps.

    steps and guidance_scale are static under jit.
    """

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
        """Samples x_0, of the shape of eps.

        eps: [B, ...] standard normal. keys: [B], for methods that draw more noise, at most once per
        step; or that noise, [steps, B, ...]. Raises ValueError if the method cannot sample in that
        number of steps or at that scale.
        """
        ...


class EndPointFn(Protocol):
    """Predicts where the trajectory through x_t ends, at the data."""

    def __call__(
        self, params: Params, x_t: Array, t: Array, condition: Condition, *, guidance_scale: float
    ) -> Array:
        """x_0 like x_t: [B, ...]. t: [B]. Raises ValueError as `SampleFn` for a scale."""
        ...


class RowsFn(Protocol):
    """Computes values of each sample; its arguments are those of `SampleFn`."""

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
        """Arrays [B, ...] by name, such as log weights."""
        ...


class Diagnostics(NamedTuple):
    """Numbers about its own network that a method adds to an evaluation.

    rows: computes values of each sample, on the devices and in batches.
    numbers: NumPy arrays [N, ...] of the values of all samples, by name -> numbers by name, such as
        an effective sample size. Results, log and report show them like metrics.
    """

    rows: RowsFn
    numbers: Callable[[Mapping[str, Any]], Mapping[str, float]]


class Objective(NamedTuple):
    """A training method.

    players: networks that are trained, in the order of their updates. Each sees the earlier ones.
    followers: networks computed from players, updated after them in this order.
    sample: generates samples with the parameters of the player `generator`, or of a copy of it.
    generator: name of the player that generates samples.
    guidance_scale: default guidance scale of sampling.
    frozen: names of the teachers that the losses read. A checkpoint provides them; the run never
        saves them again.
    fixed: names of other networks that the losses read and that nothing trains, such as that of a
        perceptual distance (training/fixed_networks.py). The run never saves them.
    share: computes batch["shared"], floating arrays that all losses read. It runs once per step,
        before any update; with micro-batches it runs once for each player. The gradient of a
        player's loss in these arrays flows through this pass into that player's own parameters,
        and into no others.
    init_from: player -> teacher that it starts from, if the run has a teacher. Parameters that the
        teacher lacks, such as those of a head, keep their own initialization.
    needs_teacher: whether the method requires a teacher: in its losses, for its pairs, or to start
        from.
    denoises: whether the generator predicts data and noise at every time, and so can teach.
    reads: names of the sources of a batch (training/sources.py). "images": {"x", "label"};
        "labels": {"label"}; "pairs": {"pairs": {"eps", "x_0", "label"}} of a teacher's sampler.
    end_point: predicts the end of the trajectory through x_t, or None for a method whose network
        does so at no time, or at that of pure noise alone.
    reconstructs: whether `sample` reconstructs images, which it then gets in place of noise.
    diagnostics: numbers that the method adds to an evaluation, or None.
    stages: parts of the training, in order; the first begins at step 0. The beginning of a later
        stage resets the optimizers and the followers with `restarts`.
    """

    players: Mapping[str, Player]
    followers: Mapping[str, Follower]
    sample: SampleFn
    generator: str = "network"
    guidance_scale: float = 1.0
    frozen: tuple[str, ...] = ()
    fixed: tuple[str, ...] = ()
    share: Share | None = None
    init_from: Mapping[str, str] = {"network": "teacher"}
    needs_teacher: bool = False
    denoises: bool = False
    reads: tuple[str, ...] = ("images",)
    end_point: EndPointFn | None = None
    reconstructs: bool = False
    diagnostics: Diagnostics | None = None
    stages: tuple[Stage, ...] = ONE_STAGE

    @property
    def read_only(self) -> tuple[str, ...]:
        """Names of all networks that the losses read and that nothing changes."""
        return (*self.frozen, *self.fixed)


def batch_condition(batch: Batch) -> Condition:
    """The condition of a batch's images: its arrays except "x". Nested arrays have other rows."""
    return {
        name: value
        for name, value in batch.items()
        if name != "x" and not isinstance(value, Mapping)
    }


def per_example(elementwise: Array) -> Array:
    """The mean over all axes but the first, in float32: [B, ...] -> [B]."""
    return jnp.mean(elementwise.astype(jnp.float32).reshape(elementwise.shape[0], -1), axis=1)


def mean_metric(values: Array) -> Mean:
    """The mean of all values, as a metric."""
    return Mean(jnp.sum(values), jnp.float32(values.size))


def noise_level_means(name: str, values: Array, t: Array, path: Path) -> dict[str, Mean]:
    """The mean of the values in each bin of arctan(sigma / alpha) / (pi / 2), as metrics.

    values, t: [B]. Bin 0 is next to the data, the last one next to the noise. The angle does not
    depend on how a path scales its time, so bins compare across paths.
    """
    angle = jnp.arctan2(path.sigma(t), path.alpha(t)) / (0.5 * jnp.pi)
    bins = jnp.clip((angle * NOISE_LEVEL_BINS).astype(jnp.int32), 0, NOISE_LEVEL_BINS - 1)
    member = jax.nn.one_hot(bins, NOISE_LEVEL_BINS, axis=0)
    totals, counts = member @ values, jnp.sum(member, axis=1)
    return {f"{name}_noise_{i}": Mean(totals[i], counts[i]) for i in range(NOISE_LEVEL_BINS)}
