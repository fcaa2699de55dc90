"""Divergences between the distributions of a generator and of a teacher.

A one-step generator minimises such a divergence. At x_t = alpha x_g + sigma eps, for a generated
x_g, two denoisers predict the data:

    fake     E[x_g | x_t], of the generator's distribution (exact once the fake score is trained)
    teacher  E[x_0 | x_t], of the teacher's distribution

On every path their difference is that of the scores up to a factor that depends on t:

    s_fake - s_teacher = alpha / sigma^2 (fake - teacher)

This file therefore uses denoised data in place of scores. A `Divergence` is a surrogate loss, whose
gradient in the generator's parameters is that of the divergence. With y = fake - teacher and sg for
a detached value:

    score_implicit_matching(d)        d'(y)^T (x_g - fake)                     Luo et al. 2024
    score_identity(alpha)             y^T (x_g - teacher - alpha y)            Zhou et al. 2024
    integral_kl                       sg(y)^T x_g                              Luo et al. 2023
    score_distillation                the same with fake = x_g                 Poole et al. 2023
    noise_free_score_distillation     sg(see there)^T x_g                      Katzir et al. 2024

In the first two the gradient also flows through x_t into `fake` and `teacher`, but never into their
parameters. Tests hold these identities: score_identity(1) is score_implicit_matching of
|| y ||^2 / 2; with x_t detached, that is integral_kl; for a generator whose distribution is one
point, fake = x_g and integral_kl is score_distillation.
"""

from collections.abc import Callable
from math import inf
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from fewstep.objectives.distances import (
    DISTANCES,
    Distance,
    check_compares_any,
    pseudo_huber,
)
from fewstep.parts import Part

# sigma / alpha of DDPM at step 200 of 1,000. Below it NFSD uses the noise prediction as it is.
LOW_NOISE = 0.72


class Point(NamedTuple):
    """A generated x_g, its noise, and the denoised data at x_t; all [B, ...].

    x_g: the generated sample.
    noise: sigma / alpha eps = x_t / alpha - x_g.
    rho: the noise level sigma / alpha, [B, 1, ...].
    fake: the fake score's prediction, or x_g if there is no fake score.
    teacher: the guided teacher's prediction.
    null: the teacher's prediction for the null class, without guidance.
    """

    x_g: Array
    noise: Array
    rho: Array
    fake: Array
    teacher: Array
    null: Array


class Divergence(NamedTuple):
    """A surrogate loss of points.

    surrogate: Point -> [B].
    has_fake_score: whether it needs a trained fake score.
    through_scores: whether its gradient also flows through x_t into `fake` and `teacher`.
    needs_guidance: whether it needs a guidance scale other than 1.
    """

    surrogate: Callable[[Point], Array]
    has_fake_score: bool = True
    through_scores: bool = True
    needs_guidance: bool = False


def inner_product(a: Array, b: Array) -> Array:
    """a^T b over all axes but the first: [B]."""
    return jnp.sum((a * b).reshape(a.shape[0], -1), axis=1)


def score_implicit_matching(
    distance: Annotated[Distance | None, Part(DISTANCES)] = None,
) -> Divergence:
    """SIM: E d(y), with the distribution of x_t held fixed (Luo et al. 2024, theorem 3.1).

    For every function u of x_t and every generator, E u(x_t)^T (x_g - E[x_g | x_t]) = 0. Its
    derivative in the generator's parameters is therefore 0 too. With u = d'(y) this replaces the
    derivative of E[x_g | x_t], which is unknown, by terms that autodiff computes. At an exact fake
    score the value of the loss is 0; only its gradient carries information. The gradient is right
    only if d' has no jumps.

    distance: d, pseudo-Huber by default, as in the paper. Here y is a difference of data; in the
    paper it is one of scores, alpha / sigma^2 times ours. A weight over t or the scale c absorbs
    this factor.

    Raises ValueError for l1 and, in one dimension, for a plain norm.
    """
    distance = distance or pseudo_huber()
    check_compares_any(distance, "objective.divergence.distance", "data predictions at any noise")
    if distance.least_dimensions == inf:
        raise ValueError(
            f"objective.divergence.distance.name={distance.name} has a gradient that jumps where "
            "an entry is 0; autodiff misses these jumps, so the loss would not have the gradient "
            "of the divergence; use pseudo_huber"
        )
    gradient = jax.grad(lambda fake, teacher: jnp.sum(distance(fake, teacher)))

    def surrogate(point: Point) -> Array:
        if point.x_g[0].size < distance.least_dimensions:
            raise ValueError(
                f"objective.divergence.distance.name={distance.name} has a gradient that jumps at "
                "0, which autodiff misses in one dimension; use pseudo_huber"
            )
        return inner_product(gradient(point.fake, point.teacher), point.x_g - point.fake)

    return Divergence(surrogate)


def score_identity(alpha: float = 1.2) -> Divergence:
    """SiD: E || y ||^2, the Fisher divergence, its unknown part weighted by alpha.

    Zhou et al. 2024. With an exact fake score its value is (1 - alpha) E || y ||^2. alpha = 1 is
    SIM with a squared distance. For alpha above 1 a generator whose noised variance is
    alpha / (alpha - 1) times the teacher's is stationary too, and a wider one diverges
    (docs/one_step.md).
    """

    def surrogate(point: Point) -> Array:
        y = point.fake - point.teacher
        return inner_product(y, point.x_g - point.teacher - alpha * y)

    return Divergence(surrogate)


def integral_kl() -> Divergence:
    """Diff-Instruct: E_t rho^2 KL_t(generator || teacher), rho = sigma / alpha (Luo et al. 2023).

    At one t the gradient of KL_t is E rho^-2 y^T dx_g / dtheta. The same loss is variational score
    distillation (Wang et al. 2023) and, with `normalize`, DMD and DMD2. The direction is detached,
    because the KL has no gradient through the scores.
    """

    def surrogate(point: Point) -> Array:
        return inner_product(jax.lax.stop_gradient(point.fake - point.teacher), point.x_g)

    return Divergence(surrogate, through_scores=False)


def score_distillation() -> Divergence:
    """SDS: treats the generator's distribution as a single point at every x_g (Poole et al. 2023).

    x_g - teacher = sigma / alpha (eps_teacher - eps). It minimises minus the log-density of the
    teacher's noised distribution, without the entropy term that the fake score adds to
    `integral_kl`, so it seeks a mode.
    """

    return integral_kl()._replace(has_fake_score=False)


def noise_free_score_distillation(low_noise: float = LOW_NOISE) -> Divergence:
    """NFSD: SDS without the noise in its direction (Katzir et al. 2024).

    Its direction is delta_D + w (eps_label - eps_null) for guidance w. At sigma / alpha below
    `low_noise` delta_D is eps_null. Above, the paper subtracts the prediction for a negative prompt
    from eps_null; classes have no negative prompt, so delta_D is 0 here. It needs guidance.
    """

    def surrogate(point: Point) -> Array:
        guidance = point.null - point.teacher
        low = point.rho < low_noise
        direction = guidance + jnp.where(low, point.x_g + point.noise - point.null, 0.0)
        return inner_product(jax.lax.stop_gradient(direction), point.x_g)

    return Divergence(surrogate, has_fake_score=False, through_scores=False, needs_guidance=True)


DIVERGENCES: dict[str, Callable[..., Divergence]] = {
    function.__name__: function
    for function in (
        score_implicit_matching,
        score_identity,
        integral_kl,
        score_distillation,
        noise_free_score_distillation,
    )
}
