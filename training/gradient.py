"""The gradient of one player's loss, through shared arrays and over micro-batches.

Shared arrays are a function of all players' parameters, z = share(theta_1, ..., theta_n), evaluated
once for all losses. The loss of player i is l(theta_i, z), and its gradient is

    d l / d theta_i + (d z / d theta_i)^T d l / d z

The gradient reaches theta_i alone: what other players contribute to z is data. For a generator G
and its fake score F, z = G(theta_1, noise) are the samples. The loss of G depends on theta_1 only
through z, so its gradient is the second term. The gradient of F is the first term; the second is 0,
since z does not depend on theta_2. `jax.vjp` runs the forward pass of `share` once and keeps its
pullback, d l / d z -> (d z / d theta_1)^T d l / d z, ..., of which each player takes its own part.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from fewstep.objectives.base import SHARED, Batch, Key, Metrics, Objective, Params, Share

# parameters -> the mean loss, its gradient, and metrics
Gradient = Callable[[Params], tuple[Array, Params, Metrics]]


class MicroBatch(NamedTuple):
    """A batch, or a part of it, with the arrays that losses share.

    shared: {"shared": arrays}, or {} if losses share nothing. pullback: gradient with respect to
    `shared` -> (gradients with respect to the players' parameters, by name,).
    """

    batch: Batch
    shared: Mapping[str, Any]
    pullback: Callable[[Mapping[str, Any]], tuple[Mapping[str, Params]]]


def player_gradient(
    objective: Objective,
    name: str,
    others: Mapping[str, Params],
    part: Callable[[Array], MicroBatch],
    key: Key,
    step: Array,
    micro_batches: int,
) -> Gradient:
    """A function that returns the gradient of a player's mean loss, shared arrays included.

    It is the gradient in the parameters that are trained (`Player.part`).
    """
    player = objective.players[name]

    def gradient(params: Params, rows: MicroBatch, key: Key) -> tuple[Array, Params, Metrics]:
        def mean_loss(part: Params, shared: Mapping[str, Any]) -> tuple[Array, Metrics]:
            own, given = player.whole(params, part), {**rows.batch, **shared}
            loss, metrics = player.loss(own, others, given, key, step)
            return jnp.mean(loss), metrics

        value_and_grads = jax.value_and_grad(mean_loss, (0, 1), has_aux=True)
        (loss, metrics), (grads, shared_grads) = value_and_grads(player.part(params), rows.shared)
        (through_shared,) = rows.pullback(shared_grads)
        return loss, jax.tree.map(jnp.add, grads, player.part(through_shared[name])), metrics

    if micro_batches == 1:
        return lambda params: gradient(params, part(0), key)
    return lambda params: accumulate(
        lambda i: gradient(params, part(i), jax.random.fold_in(key, i)), micro_batches
    )


def micro_batch(
    objective: Objective,
    networks: Mapping[str, Params],
    batch: Batch,
    key: Key,
    micro_batches: int,
) -> Callable[[Array], MicroBatch]:
    """i -> the i-th micro-batch with its shared arrays.

    A single micro-batch is evaluated here, once for all players.
    """
    if micro_batches == 1:
        whole = evaluate_shared(objective.share, networks, batch, key)
        return lambda i: whole

    def part(i: Array) -> MicroBatch:
        # Rows i::micro_batches: every device already holds an equal share of them.
        rows = jax.tree.map(lambda a: a.reshape(-1, micro_batches, *a.shape[1:])[:, i], batch)
        return evaluate_shared(objective.share, networks, rows, jax.random.fold_in(key, i))

    return part


def evaluate_shared(
    share: Share | None, networks: Mapping[str, Params], batch: Batch, key: Key
) -> MicroBatch:
    """A batch, its shared arrays, and their pullback."""
    evaluate = lambda networks: {SHARED: share(networks, batch, key)} if share else {}
    return MicroBatch(batch, *jax.vjp(evaluate, networks))


def accumulate(
    gradient: Callable[[Array], tuple[Array, Params, Metrics]], micro_batches: int
) -> tuple[Array, Params, Metrics]:
    """Mean loss, mean gradient and summed metrics of the micro-batches, computed in turn."""
    shapes = jax.eval_shape(gradient, jnp.int32(0))
    zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)

    def add(sums: tuple, i: Array) -> tuple[tuple, None]:
        return jax.tree.map(jnp.add, sums, gradient(i)), None

    (loss, grads, metrics), _ = jax.lax.scan(add, zeros, jnp.arange(micro_batches))
    loss, grads = jax.tree.map(lambda total: total / micro_batches, (loss, grads))
    return loss, grads, metrics
