"""Where the two points (x_t, x_s) of consistency distillation come from.

    data           x_t is an image with noise; x_s one step of the teacher from x_t
    samples        the same, with a stored set of the teacher's samples in place of images
    rollout        x_t and x_s lie on a trajectory of the teacher's ODE, which starts at the prior
    trajectories   the same, with all pairs of each trajectory

The last three read no data, so they distil samplers of a density, and image teachers whose data are
not at hand. On a trajectory of the teacher the points have its marginals, not those of the data.

rollout is the algorithm of Jutras-Dube et al. (2024, 2025). A trajectory ends at its pair. On an
accelerator the rows of a batch end together, so rows are put in `groups` with one end each, which
run one after another: on average they cost half a trajectory. An end for each row would save
nothing. The number of groups does not depend on devices, and no more do the results.
trajectories costs each row one cell of a trajectory, but its rows belong together.

Nothing is differentiated through the teacher.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from fewstep.diffusion.guidance import Condition, draw_scale
from fewstep.diffusion.spacing import Spacing
from fewstep.diffusion.time_pairs import Curriculum, grid_pairs, last_points
from fewstep.models.model import Model
from fewstep.objectives.base import Batch, Key, Params
from fewstep.objectives.consistency import Draw, PairPoints, SecondPoint, noised_points


class PairParts(NamedTuple):
    """What pairs are made with. step: one solver step of the teacher.

    spacing, curriculum, skip: the grid, and the cells between the times of a pair. guidance_range:
    as for `noised_points`.
    """

    model: Model
    step: SecondPoint
    spacing: Spacing
    curriculum: Curriculum
    skip: int
    guidance_range: tuple[float, ...] = ()

    def noised(self, **rows: Callable) -> PairPoints:
        """Pairs of noised rows of a batch."""
        pairs = grid_pairs(self.spacing, self.curriculum, skip=self.skip)
        return noised_points(self.model, self.step, pairs, self.guidance_range, **rows)


class PairSource(NamedTuple):
    """A kind of pairs. reads: sources of its batches. points: makes the pairs of its parts."""

    reads: tuple[str, ...]
    points: Callable[[PairParts], PairPoints]


def data_source() -> PairSource:
    """Pairs at the images of a batch (Song et al. 2023)."""
    return PairSource(("images",), lambda parts: parts.noised())


def sample_source() -> PairSource:
    """Pairs at stored samples of the teacher."""

    def rows_of(batch: Batch) -> tuple[Array, Condition]:
        return batch["pairs"]["x_0"], {"label": batch["pairs"]["label"]}

    return PairSource(("pairs",), lambda parts: parts.noised(rows_of=rows_of))


def rollout_source(groups: int = 4, substeps: int = 3) -> PairSource:
    """Pairs at the ends of partial trajectories, one end for each group of rows.

    substeps: solver steps of the teacher in each cell of the grid.
    """
    return PairSource(("labels",), lambda parts: grouped_rollouts(parts, groups, substeps))


def trajectory_source(substeps: int = 3) -> PairSource:
    """All pairs of each trajectory. substeps: as for `rollout_source`."""
    return PairSource(("labels",), lambda parts: whole_trajectories(parts, substeps))


PAIR_SOURCES: dict[str, Callable[..., PairSource]] = {
    "data": data_source,
    "samples": sample_source,
    "rollout": rollout_source,
    "trajectories": trajectory_source,
}


def on_trajectory(x_t: Array, t: Array, s: Array, condition: Condition) -> Draw:
    """A draw of points of trajectories, which have no data and noise."""
    return Draw(None, None, x_t, t, s, condition)


def roll(
    parts: PairParts,
    networks: Mapping[str, Params],
    x: Array,
    condition: Condition,
    position: Array,
    count: Array,
    fine: Array,
) -> Array:
    """x after `count` solver steps of the teacher, from `position` of `fine` equal cells: [B, ...].

    position, count, fine: whole numbers; 0 is the data end of the grid.
    """

    def step(done: Array, x: Array) -> Array:
        ends = position - done - jnp.arange(2)
        t, s = jnp.split(jnp.float32(parts.spacing.time(ends / fine)), 2)
        return parts.step(networks, on_trajectory(x, t, s, condition))

    return jax.lax.fori_loop(0, count, step, x)


def start_rows(parts: PairParts, key: Key, labels: Array) -> tuple[Array, Condition]:
    """(draws from the prior [B, ...], their condition)."""
    key_eps, key_scale = jax.random.split(key)
    eps = jax.random.normal(key_eps, (labels.shape[0], *parts.model.network.shape))
    condition = draw_scale(key_scale, {"label": labels}, parts.guidance_range)
    return parts.model.path.prior(eps), condition


def grouped_rollouts(parts: PairParts, groups: int, substeps: int) -> PairPoints:
    """The pairs of `rollout_source`. Row i belongs to the group i modulo `groups`."""

    def points(
        networks: Mapping[str, Params], batch: Batch, key: Key, step: Array
    ) -> tuple[Draw, Array]:
        key_cell, key_start = jax.random.split(key)
        rows = batch["label"].shape[0]
        check_multiple(rows, groups, "source.groups")
        x, condition = start_rows(parts, key_start, batch["label"])
        cells = parts.curriculum(step) - 1
        upper = jax.random.randint(key_cell, (groups,), 1, cells + 1)
        lower = jnp.maximum(upper - parts.skip, 0)

        def pair(given: tuple[Array, ...]) -> tuple[Array, Array]:
            upper, lower, x, condition = given
            high, low, fine = upper * substeps, lower * substeps, cells * substeps
            x_t = roll(parts, networks, x, condition, fine, fine - high, fine)
            return x_t, roll(parts, networks, x_t, condition, high, high - low, fine)

        split = lambda a: jnp.moveaxis(a.reshape(-1, groups, *a.shape[1:]), 1, 0)
        merge = lambda a: jnp.moveaxis(a, 0, 1).reshape(rows, *a.shape[2:])
        pairs = jax.lax.map(pair, (upper, lower, split(x), jax.tree.map(split, condition)))
        x_t, x_s = map(merge, pairs)
        t, s = (jnp.tile(parts.spacing.time(end / cells), rows // groups) for end in (upper, lower))
        return on_trajectory(x_t, t, s, condition), x_s

    return points


def whole_trajectories(parts: PairParts, substeps: int) -> PairPoints:
    """The pairs of `trajectory_source`: each trajectory gives the rows of all its cells.

    Raises ValueError for a grid that grows.
    """
    cells = last_points(parts.curriculum) - 1
    if int(parts.curriculum(jnp.int32(0))) - 1 != cells:
        raise ValueError(
            "objective.source.name=trajectories needs a grid that does not grow: "
            "objective.curriculum.name=constant"
        )

    def points(
        networks: Mapping[str, Params], batch: Batch, key: Key, step: Array
    ) -> tuple[Draw, Array]:
        rows, fine = batch["label"].shape[0], cells * substeps
        check_multiple(rows, cells, "curriculum.points - 1")
        x, condition = start_rows(parts, key, batch["label"].reshape(-1, cells)[:, 0])

        def cell(x: Array, upper: Array) -> tuple[Array, Array]:
            after = roll(parts, networks, x, condition, upper * substeps, substeps, fine)
            return after, after

        _, states = jax.lax.scan(cell, x, jnp.arange(cells, 0, -1))
        states = jnp.concatenate([x[None], states])[::-1]  # by the point of the grid
        upper = jnp.arange(1, cells + 1)
        lower = jnp.maximum(upper - parts.skip, 0)
        join = lambda a: jnp.moveaxis(a, 0, 1).reshape(rows, *a.shape[2:])
        t, s = (jnp.tile(parts.spacing.time(end / cells), rows // cells) for end in (upper, lower))
        repeated = jax.tree.map(lambda a: jnp.repeat(a, cells, axis=0), condition)
        return on_trajectory(join(states[upper]), t, s, repeated), join(states[lower])

    return points


def check_multiple(rows: int, divisor: int, field: str) -> None:
    """Raises ValueError that names the field unless it divides the rows."""
    if rows % divisor:
        raise ValueError(
            f"{rows} rows, batch_size / micro_batches, are no multiple of objective.{field}, "
            f"{divisor}; take {-(-rows // divisor) * divisor}"
        )
