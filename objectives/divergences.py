"""Divergences between a generator's law and a teacher's: what a one-step generator minimises.

At a point x_t = alpha x_g + sigma eps of the generated x_g, two denoisers say what the data were:

    fake     E[x_g | x_t], of the generator's law (exact once the fake score is trained)
    teacher  E[x_0 | x_t], of the teacher's law

Their difference is that of the scores but for a factor of t, on every path:

    s_fake - s_teacher = alpha / sigma^2 (fake - teacher)

so everything here is written on data. A divergence is a surrogate whose gradient in the generator's
parameters is that of the divergence. With y = fake - teacher and sg for a detached value:

    score_implicit_matching(d)        d'(y)^T (x_g - fake)                     Luo et al. 2024
    score_identity(alpha)             y^T (x_g - teacher - alpha y)            Zhou et al. 2024
    integral_kl                       sg(y)^T x_g                              Luo et al. 2023
    score_distillation                the same with fake = x_g                 Poole et al. 2023
    noise_free_score_distillation     sg(see there)^T x_g                      Katzir et al. 2024

In the first two the gradient also runs through x_t, in `fake` and `teacher`, never through their
parameters. Identities between them (tests): score_identity(1) is score_implicit_matching of
|| y ||^2 / 2; with x_t detached that is integral_kl; for a generator that is one point, fake = x_g,
and integral_kl is score_distillation.
"""

from collections.abc import Callable
from math import inf
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from fewstep.objectives.distances import DISTANCES, Distance, pseudo_huber
from fewstep.parts import Part

# sigma / alpha of DDPM at 200 of its 1,000 steps, below which NFSD takes the noise as it is.
LOW_NOISE = 0.72


class Point(NamedTuple):
    """A generated x_g, where it was noised to, and what denoisers make of it; all [B, ...].

    noise: sigma / alpha eps = x_t / alpha - x_g. rho: sigma / alpha, with trailing axes of one.
    fake: x_g itself where there is no fake score. teacher: guided. null: the teacher without a
    label, not guided.
    """

    x_g: Array
    noise: Array
    rho: Array
    fake: Array
    teacher: Array
    null: Array


class Divergence(NamedTuple):
    """A surrogate loss, [B] of a Point.

    has_fake_score: whether one is trained for it.
    through_scores: whether its gradient runs through x_t in `fake` and `teacher` too.
    """

    surrogate: Callable[[Point], Array]
    has_fake_score: bool = True
    through_scores: bool = True
    needs_guidance: bool = False


def inner_product(a: Array, b: Array) -> Array:
    """a^T b over all axes but the first, [B]."""
    return jnp.sum((a * b).reshape(a.shape[0], -1), axis=1)


def score_implicit_matching(
    distance: Annotated[Distance | None, Part(DISTANCES)] = None,
) -> Divergence:
    """SIM: E d(y), the measure of x_t held fixed (Luo et al. 2024, theorem 3.1).

    For every function u of x_t, E u(x_t)^T (x_g - E[x_g | x_t]) = 0 whatever the generator. Its
    derivative in the generator's parameters is 0 too, and with u = d'(y) turns the derivative of
    E[x_g | x_t], which nobody has, into terms that autodiff has. The loss is 0 in value at an exact
    fake score; only its gradient speaks. That needs a d' without jumps: raises ValueError for l1
    and, in one dimension, a plain norm.

    distance: pseudo-Huber by default, as there. y is a difference of data; the paper's is one of
    scores, a factor alpha / sigma^2 of t away, which a weight over t or the scale c takes up.
    """
    distance = distance or pseudo_huber()
    if distance.least_dimensions == inf:
        raise ValueError(
            f"objective.divergence.distance.name={distance.name} has a gradient that jumps where "
            "an entry is 0, and autodiff does not see the jumps: the gradient of the loss would "
            "not be that of the divergence; use pseudo_huber"
        )
    slope = jax.grad(lambda fake, teacher: jnp.sum(distance(fake, teacher)))

    def surrogate(point: Point) -> Array:
        if point.x_g[0].size < distance.least_dimensions:
            raise ValueError(
                f"objective.divergence.distance.name={distance.name} has a gradient that jumps at "
                "0, which matters in one dimension; use pseudo_huber"
            )
        return inner_product(slope(point.fake, point.teacher), point.x_g - point.fake)

    return Divergence(surrogate)


def score_identity(alpha: float = 1.2) -> Divergence:
    """SiD: the Fisher divergence E || y ||^2, its unknown part weighed by alpha (Zhou et al. 2024).

    (1 - alpha) times E || y ||^2 in value at an exact fake score. alpha 1 is SIM with a squared
    distance. Above 1 a generator whose noised variance is alpha / (alpha - 1) times the teacher's
    is stationary too, and a wider one diverges (docs/one_step.md).
    """

    def surrogate(point: Point) -> Array:
        y = point.fake - point.teacher
        return inner_product(y, point.x_g - point.teacher - alpha * y)

    return Divergence(surrogate)


def integral_kl() -> Divergence:
    """Diff-Instruct: E_t rho^2 KL_t(generator || teacher), rho = sigma / alpha (Luo et al. 2023).

    The gradient of KL_t, at one t, is E rho^-2 y^T of the gradient of x_g. Also variational score
    distillation (Wang et al. 2023) and, with `normalize`, DMD and DMD2. The direction is detached:
    the KL has no gradient through the scores.
    """

    def surrogate(point: Point) -> Array:
        return inner_product(jax.lax.stop_gradient(point.fake - point.teacher), point.x_g)

    return Divergence(surrogate, through_scores=False)


def score_distillation() -> Divergence:
    """SDS: the generator's law taken for a point at every x_g (Poole et al. 2023).

    x_g - teacher = sigma / alpha (eps_teacher - eps). It seeks the mode: minus the log-density of
    the teacher's noised law, without the entropy that `integral_kl` has from the fake score.
    """

    return integral_kl()._replace(has_fake_score=False)


def noise_free_score_distillation(low_noise: float = LOW_NOISE) -> Divergence:
    """NFSD: SDS with the noise of its direction left out (Katzir et al. 2024).

    Its direction is delta_D + w (eps_label - eps_null) for guidance w. At sigma / alpha below
    `low_noise` delta_D is eps_null; above, eps_null less the prediction for a negative prompt,
    which classes do not have: it is 0. Only of use with guidance.
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
