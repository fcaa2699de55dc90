"""The two times that a consistency method compares: t and an earlier s, nearer the data.

A `PairSampler` maps (key, count, step) to (t, s), each [count], t_min <= s < t <= t_max (s = t only
at t_min). A `Curriculum` maps the training step to the number of grid points.
"""

from collections.abc import Callable
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from fewstep.diffusion.path import Path
from fewstep.diffusion.spacing import HIGHEST_RHO, Spacing
from fewstep.diffusion.time_sampling import TimeSampler
from fewstep.parts import RUN_LENGTH

# On larger grids some neighbours round to the same time.
MOST_POINTS = 20_000
# The gap of a pair whose times round to one: far below any grid's gaps, far above 0.
SMALLEST_GAP = 1e-8
# The gap of a pair shrinks at most by this factor. At a noise level of 80 a time near 1 changes by
# 80 / 81^2 of the relative gap, which must be above the resolution of float32, 6e-8, on every path.
MOST_SHRINKING = 2.0**16

PairSampler = Callable[[Array, int, Array], tuple[Array, Array]]
Curriculum = Callable[[Array], Array]


def constant(points: int = 18) -> Curriculum:
    """N points at every step (Song et al. 2023: 18 on CIFAR-10, 40 on larger images)."""
    check_points("points", points)
    return lambda step: jnp.int32(points)


def square_root(
    first: int = 2, last: int = 150, *, total_steps: Annotated[int, RUN_LENGTH]
) -> Curriculum:
    """N(k) = ceil(sqrt(k/K ((s_1 + 1)^2 - s_0^2) + s_0^2) - 1) + 1 (Song et al. 2023, app. C).

    first, last: s_0 and s_1; total_steps: K. Grows from s_0 to s_1 + 1 points. The paper has
    s_0 = 2 and s_1 = 150 (CIFAR-10) or 200.
    """
    check_range(first, last)
    check_length("objective.curriculum", total_steps)
    check_points("first", first)

    def points(step: Array) -> Array:
        progress = jnp.minimum(step / total_steps, 1.0)
        root = jnp.sqrt(progress * ((last + 1) ** 2 - first**2) + first**2)
        # The margin keeps integer roots exact in float32: at k = 0 the formula gives s_0.
        return (jnp.ceil(root - 1.0 - 1e-4) + 1.0).astype(jnp.int32)

    return points


def doubling(
    first: int = 10, last: int = 1280, *, total_steps: Annotated[int, RUN_LENGTH]
) -> Curriculum:
    """N(k) = min(s_0 2^floor(k/K'), s_1) + 1 in stages of K' = floor(K / (log2(s_1/s_0) + 1)).

    Song & Dhariwal 2023, section 3.4; the paper takes log2 of floor(s_1 / s_0).
    """
    check_range(first, last)
    check_length("objective.curriculum", total_steps)
    length = max(int(total_steps / (np.log2(last // first) + 1.0)), 1)
    most = int(np.ceil(np.log2(last / first)))

    def points(step: Array) -> Array:
        doublings = jnp.minimum(step // length, most)
        return jnp.minimum(first * 2**doublings, last).astype(jnp.int32) + 1

    return points


CURRICULA: dict[str, Callable[..., Curriculum]] = {
    "constant": constant,
    "square_root": square_root,
    "doubling": doubling,
}


def check_points(field: str, points: int) -> None:
    """Raises ValueError unless a grid has 2 to MOST_POINTS points."""
    if not 2 <= points <= MOST_POINTS:
        raise ValueError(
            f"objective.curriculum.{field}={points}: a grid has 2 to {MOST_POINTS} points"
        )


def last_points(curriculum: Curriculum) -> int:
    """The number of points at the end of a curriculum."""
    return int(curriculum(jnp.int32(2**30)))


def check_range(first: int, last: int) -> None:
    """Raises ValueError unless 1 <= first <= last < MOST_POINTS."""
    if not 1 <= first <= last:
        raise ValueError(
            f"objective.curriculum needs 1 <= first <= last, not first={first} and last={last}"
        )
    if last >= MOST_POINTS:
        raise ValueError(
            f"objective.curriculum.last={last} must be {MOST_POINTS - 1} or less: the last grid "
            "has one point more"
        )


def check_length(prefix: str, total_steps: int) -> None:
    """Raises ValueError for a schedule of fewer than 1 step."""
    if total_steps < 1:
        raise ValueError(f"{prefix}.total_steps={total_steps} must be 1 or more")


def grid_pairs(
    spacing: Spacing, curriculum: Curriculum, draw: TimeSampler | None = None, skip: int = 1
) -> PairSampler:
    """Points `skip` apart on the grid time(i / (N - 1)), i = 0 .. N - 1.

    t is the upper end of the cell that `draw` falls into; without `draw` all cells are equally
    likely. This discretises the distribution: P(i) is the mass between the ends of cell i. s lies
    `skip` points below t, or at the first point, so every point is trained. Raises ValueError for a
    skip larger than the grid.
    """
    most = last_points(curriculum) - 1
    if not 1 <= skip <= most:
        raise ValueError(
            f"objective.skip={skip} must be 1 to {most} on a grid of {most + 1} points"
        )

    def sample(key: Array, count: int, step: Array) -> tuple[Array, Array]:
        cells = curriculum(step) - 1
        if draw is None:
            drawn = jax.random.uniform(key, (count,))
        else:
            drawn = spacing.fraction(draw(key, count))
        upper = jnp.clip(jnp.floor(drawn * cells).astype(jnp.int32) + 1, 1, cells)
        lower = jnp.maximum(upper - skip, 0)
        return spacing.time(upper / cells), spacing.time(lower / cells)

    return sample


def shrinking_ratio(
    rho: Array, stage: Array | int, q: float = 2.0, k: float = 8.0, b: float = 1.0
) -> Array:
    """r / rho = max(0, 1 - n(rho) / q^(stage + 1)), n(rho) = 1 + k sigmoid(-b rho).

    Easy Consistency Tuning (Geng et al. 2024, eq. 16 and appendix A) compares noise level rho with
    the lower level r. At stage 0, with the paper's defaults, the ratio is 0 for rho <= log 7, where
    the method is denoising. It tends to 1 as stages pass.
    """
    n = 1.0 + k * jax.nn.sigmoid(-b * rho)
    return jnp.maximum(0.0, 1.0 - n / q ** (stage + 1.0))


def shrinking_pairs(
    path: Path,
    draw: TimeSampler,
    *,
    total_steps: int,
    stages: int = 8,
    q: float = 2.0,
    k: float = 8.0,
    b: float = 1.0,
) -> PairSampler:
    """Pairs of a drawn t and the s at noise level r(rho_t), nearer to t in each later stage.

    r is rho_t times `shrinking_ratio`; total_steps divide into `stages` equal stages. Where r is
    below the path's lowest level, s is t_min, and s = t only there. rho_t is at most 80, as on a
    grid, so that r is finite for pure noise. Raises ValueError for fields out of range.
    """
    check_length("objective", total_steps)
    if stages < 1 or q <= 1.0 or k < 0.0 or b <= 0.0:
        raise ValueError(
            f"objective needs stages >= 1, q > 1, k >= 0 and b > 0, not {stages}, {q}, {k}, {b}"
        )
    if stages * np.log(q) > np.log(MOST_SHRINKING):
        raise ValueError(
            f"objective.q={q} to the power objective.stages={stages} is above {MOST_SHRINKING:g}: "
            "the two times of a pair would round to one; take fewer stages"
        )

    def sample(key: Array, count: int, step: Array) -> tuple[Array, Array]:
        t = draw(key, count)
        stage = jnp.minimum(step * stages // total_steps, stages - 1)
        rho = jnp.minimum(path.rho(t), HIGHEST_RHO)
        s = path.time_at(rho * shrinking_ratio(rho, stage, q, k, b))
        return t, jnp.clip(s, path.t_min, t)

    return sample


def noise_gap(path: Path, t: Array, s: Array) -> Array:
    """rho_t - rho_s, rho = sigma / alpha: on `ve`, t - s. Positive and finite for s < t.

    For rho_t above 80, where paths run to infinity, it is 80 (1 - rho_s / rho_t): the same relative
    gap at 80, which continues the function without a jump.
    """
    high, low = path.rho(t), path.rho(s)
    gap = jnp.where(high <= HIGHEST_RHO, high - low, HIGHEST_RHO * (1.0 - low / high))
    return jnp.maximum(gap, SMALLEST_GAP)
