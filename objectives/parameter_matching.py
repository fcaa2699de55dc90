"""Moment matching in the parameters of the teacher (Salimans et al. 2024, algorithm 3).

Student, points z_s and sampler are those of moment_matching.py. In place of a fake score there are
the teacher's own parameters phi after one step of gradient descent on the student's samples, to
first order:

    nu = d/dphi E || prediction_phi(z_s) - its target at x_g ||^2
    y  = - dD_phi(z_s) / dphi Lambda nu,     by `jax.jvp`
    L  = E y^T x_g,     y detached

A teacher has nu = 0 on its own data, where its training has ended. L has the gradient in x_g, at
fixed z_s, of the distance nu^T Lambda nu / 2 between the moments of samples and of data, up to a
factor that depends on s (tests). The rows whose y is needed and the rows of nu are different halves
of the batch: otherwise the noise of nu would be part of its own square.

Lambda divides each array of parameters by its root mean square of nu over both halves. The paper
takes the second moments of the teacher's Adam, which no teacher here brings. The metric `gap` is
the share of nu that both halves have in common, 0 for a perfect student.
"""

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from jax import Array

from fewstep.diffusion.spacing import SPACINGS, Spacing, uniform_spacing
from fewstep.models.model import LEAST_ALPHA_ONE_STEP, Model, check_decoding
from fewstep.objectives.base import (
    SHARED,
    Batch,
    Key,
    LossFn,
    Mean,
    Metrics,
    Objective,
    Params,
    Player,
    batch_condition,
)
from fewstep.objectives.denoising import prediction_loss
from fewstep.objectives.derivatives import forward_derivative
from fewstep.objectives.divergences import inner_product
from fewstep.objectives.moment_matching import ancestral_sampler, share_steps
from fewstep.objectives.needs import needs
from fewstep.objectives.rows import merge_rows, split_rows
from fewstep.parts import Part

# Least mean square of nu.
LEAST_SQUARE = 1e-24


@needs()
def parameter_matching(
    model: Model,
    *,
    least_steps: int = 8,
    spacing: Annotated[Spacing | None, Part(SPACINGS, on_path=True)] = None,
) -> Objective:
    """Moment matching in the teacher's parameters; fields are those of `moment_matching`.

    Batches need an even number of rows. The teacher is not guided: its guided prediction has no
    training loss that is stationary on the data.
    """
    check_decoding(model, LEAST_ALPHA_ONE_STEP)
    spacing = spacing or uniform_spacing(model.path)
    return Objective(
        players={"network": Player(model.network, parameter_loss(model), headline="gap")},
        followers={},
        sample=ancestral_sampler(model, spacing, least_steps, 1.0),
        frozen=("teacher",),
        needs_teacher=True,
        share=share_steps(model, least_steps, spacing),
    )


def parameter_loss(model: Model) -> LossFn:
    """L: each half of the rows takes nu from the other half. Raises ValueError for odd rows."""

    def loss(
        params: Params, networks: Mapping[str, Params], batch: Batch, key: Key, step: Array
    ) -> tuple[Array, Metrics]:
        shared, teacher = batch[SHARED], networks["teacher"]
        if shared["t"].shape[0] % 2:
            raise ValueError(
                f"{shared['t'].shape[0]} rows, batch_size / micro_batches, do not divide into two "
                "halves; use an even number"
            )
        points = {name: shared[name] for name in ("x_g", "eps", "t")}
        halves = split_rows((jax.lax.stop_gradient(points), batch_condition(batch)), 2)
        gradients = [teacher_gradient(model, teacher, *half) for half in halves]
        directions, gap = precondition(*gradients)
        y = [
            first_order(model, teacher, *half, direction)
            for half, direction in zip(halves, directions[::-1], strict=True)
        ]
        rows = inner_product(jax.lax.stop_gradient(merge_rows(*y, 2)), points["x_g"])
        return rows, {"gap": gap}

    return loss


def teacher_gradient(model: Model, teacher: Params, points: Mapping, condition: Mapping) -> Params:
    """nu of these rows: the gradient of the teacher's training loss on the student's samples."""
    x_g, eps, s = (points[name] for name in ("x_g", "eps", "t"))
    z_s = model.path.interpolate(x_g, eps, s)

    def training_loss(phi: Params) -> Array:
        return prediction_loss(model, model.predict(phi, z_s, s, s, condition), x_g, eps, s)[
            0
        ].mean()

    return jax.grad(training_loss)(teacher)


def precondition(one: Params, other: Params) -> tuple[tuple[Params, Params], Mean]:
    """((- Lambda nu) of both halves, the metric `gap`)."""
    squares = jax.tree.map(
        lambda a, b: jnp.maximum(0.5 * jnp.mean(a**2 + b**2), LEAST_SQUARE), one, other
    )
    directions = tuple(
        jax.tree.map(lambda a, square: -a / jnp.sqrt(square), nu, squares) for nu in (one, other)
    )
    shares = jax.tree.map(lambda a, b, square: jnp.mean(a * b) / square, one, other, squares)
    leaves = jax.tree.leaves(shares)
    return directions, Mean(sum(leaves), jnp.float32(len(leaves)))


def first_order(
    model: Model, teacher: Params, points: Mapping, condition: Mapping, direction: Any
) -> Array:
    """dD_phi(z_s) / dphi along a direction of the teacher's parameters: [B, ...].

    Raises ValueError if the network has no forward derivative.
    """
    s = points["t"]
    z_s = model.path.interpolate(points["x_g"], points["eps"], s)

    def denoised(phi: Params) -> Array:
        return model.denoiser(partial(model.predict, phi), condition)(z_s, s).x_0

    return forward_derivative(denoised, (teacher,), (direction,))[1]
