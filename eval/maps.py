"""What map from noise to data a network has learned, beside the trajectories of a teacher.

A teacher's probability-flow ODE carries noise x_1 along a trajectory x_t to an end point x_0. A
network of any few-step method predicts the end from a point of it (`Objective.end_point`). By noise
level, in root mean squares per dimension over the rows,

    error      || f(x_t, t) - x_0 ||                 to the teacher's end point
    spread     || f(x_t, t) - mean_t f(x_t, t) ||    0 if a trajectory is mapped to one point

and for the map G from noise to samples, of the network and of the teacher,

    straightness    int E || dx/dt - (x_1 - x_0) ||^2 dt / D    of an ODE on the linear path, 0 if
                                                       its paths are straight (Liu et al. 2023)
    transport       E || G(eps) - eps ||^2 / D         the cost of carrying noise to data
    agreement       1 - E || G_i - H_i ||^2 / E || G_i - H_j ||^2   of two maps G and H, where j is
                                                       another sample with the label of i: 1 if
                                                       equal, 0 if independent given labels

Noise levels are the times of the linear path, tau = sigma / (alpha + sigma), on every path.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from fewstep.diffusion.guidance import Condition, Predict, guide
from fewstep.diffusion.path import Path, align, change_path, linear
from fewstep.diffusion.prediction import Denoise
from fewstep.objectives.base import EndPointFn, Params
from fewstep.objectives.sampling import condition_on_scale
from fewstep.samplers.ode import heun_step
from fewstep.training.experiment import Experiment
from fewstep.training.generate import initial_noise

LEVELS = 8  # equal steps of tau at which ends are predicted
SUBSTEPS = 16  # of Heun's method between two of them
# Rows that are samples: the teacher's end points, and what the network makes of the same noise.
END, MADE = "end", "made"

# (params, eps, condition, keys) -> samples like eps
Draw = Callable[[Params, Array, Condition, Array], Array]
Rows = Mapping[str, Array]


class Mapper(NamedTuple):
    """A network whose map is studied.

    end_point: with the scale bound, (params, x_t, t, condition) -> x_0; None if it has none. draw:
    its sampler. denoiser: (params, condition) -> its guided denoiser, None for no denoiser.
    """

    path: Path
    draw: Draw
    end_point: Callable[[Params, Array, Array, Condition], Array] | None
    denoiser: Callable[[Params, Condition], Denoise] | None


def mapper(experiment: Experiment, steps: int, scale: float, channels: int | None = None) -> Mapper:
    """The mapper of an experiment that samples in `steps` steps at a guidance scale.

    channels: how many leading channels a denoiser guides, as in its samples; None for all.
    """
    model, objective = experiment.model, experiment.objective

    def denoiser(params: Params, condition: Condition) -> Denoise:
        return model.denoiser(guided(experiment, params, scale, channels), condition)

    return Mapper(
        model.path,
        partial(objective.sample, steps=steps, guidance_scale=scale),
        at_scale(objective.end_point, scale),
        denoiser if objective.denoises else None,
    )


def at_scale(end_point: EndPointFn | None, scale: float) -> EndPointFn | None:
    """The function with its guidance scale bound; None for None."""
    return None if end_point is None else partial(end_point, guidance_scale=scale)


def guided(experiment: Experiment, params: Params, scale: float, channels: int | None) -> Predict:
    """A denoiser's prediction at a scale: its input, learned from its teacher, or by `guide`."""
    predict = partial(experiment.model.predict, params)
    if experiment.model.network.guidance_input:
        return condition_on_scale(predict, scale)
    objective = experiment.objective
    if objective.players[objective.generator].trained:  # the network is still its teacher
        return experiment.model.guide_teacher(predict, scale)
    return predict if objective.needs_teacher else guide(predict, scale, channels)


def level_times(path: Path, tau: Array) -> Array:
    """The path's times at noise levels tau, within the path."""
    return jnp.clip(path.time_at(tau / (1.0 - tau)), path.t_min, path.t_max)


def trajectory(denoise: Denoise, path: Path, eps: Array) -> tuple[Array, Array, Array]:
    """Heun's trajectory from noise: (times [L + 1], states [L + 1, B, ...], straightness [B])."""
    tau = jnp.linspace(1.0, 0.0, LEVELS * SUBSTEPS + 1)
    times = level_times(path, tau)
    rows = lambda time: jnp.broadcast_to(time, eps.shape[:1])

    def body(x: Array, interval: tuple[Array, Array]) -> tuple[Array, Array]:
        x = heun_step(denoise, path, x, *map(rows, interval))
        return x, x

    start = path.prior(eps)
    states = jax.lax.scan(body, start, (times[:-1], times[1:]))[1]
    states = jnp.concatenate([start[None], states])
    straight, at = jax.vmap(lambda x, t: change_path(path, linear(), x, rows(t)))(states, times)
    return times[::SUBSTEPS], states[::SUBSTEPS], straightness(straight, at)


def straightness(x: Array, t: Array) -> Array:
    """The integral of || dx/dt - its mean ||^2 / D over t, divided by its range: [B].

    x: [L + 1, B, ...] at times t: [L + 1, B], which fall, or stay where two levels lie beyond an
    end of their path.
    """
    lengths = t[:-1] - t[1:]
    whole = t[0] - t[-1]
    velocity = (x[:-1] - x[1:]) / align(jnp.where(lengths > 0.0, lengths, 1.0), x[1:])
    bend = velocity - (x[0] - x[-1]) / align(whole, x[0])
    return jnp.sum(lengths * jnp.mean(bend**2, axis=axes_of(x[0], 1)), axis=0) / whole


def axes_of(x: Array, before: int = 0) -> tuple[int, ...]:
    """The axes of an example in [B, ...] with `before` further axes in front."""
    return tuple(range(1 + before, x.ndim + before))


def mean_square(x: Array) -> Array:
    """The mean over the axes of an example: [B, ...] -> [B]."""
    return jnp.mean(x**2, axis=axes_of(x))


def map_rows(
    student: Mapper,
    teacher: Mapper,
    shape: tuple[int, ...],
    seed: int,
    params: tuple[Params, Params],
    indices: Array,
    labels: Array,
) -> Rows:
    """The values of each row: mean squares [B] and [B, L], and the ends [B, L, ...] themselves.

    params: of student and teacher.
    """
    own, taught = params
    eps, keys = initial_noise(seed, indices, shape)
    condition = {"label": labels}
    times, states, bend = trajectory(teacher.denoiser(taught, condition), teacher.path, eps)
    end, made = states[-1], student.draw(own, eps, condition, keys)
    rows = {
        END: end,
        MADE: made,
        "teacher_straightness": bend,
        "transport": mean_square(made - eps),
        "teacher_transport": mean_square(end - eps),
    }
    if student.denoiser:
        rows["straightness"] = trajectory(student.denoiser(own, condition), student.path, eps)[2]
    if student.end_point:
        ends = []
        for t, x in zip(times[:-1], states[:-1], strict=True):
            t = jnp.broadcast_to(t, labels.shape)
            x, t = change_path(teacher.path, student.path, x, t)
            ends.append(student.end_point(own, x, t, condition))
        ends = jnp.stack(ends, axis=1)
        per_level = jax.vmap(mean_square, in_axes=1, out_axes=1)
        rows["ends"] = ends
        rows["error"] = per_level(ends - end[:, None])
        rows["spread"] = per_level(ends - ends.mean(axis=1, keepdims=True))
    return rows


def next_of_label(labels: np.ndarray) -> np.ndarray:
    """For each row, the next row with its label, the first after the last: int [N]."""
    following = np.empty(len(labels), int)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        following[rows] = np.roll(rows, -1)
    return following


def agreement(one: np.ndarray, other: np.ndarray, labels: np.ndarray) -> float:
    """The agreement of two maps by their samples of the same noise: [N, ...] each.

    labels: [N]; each is that of two rows or more.
    """
    apart, others = (np.mean((one - x) ** 2) for x in (other, other[next_of_label(labels)]))
    return float(1.0 - apart / others)


def map_numbers(rows: Mapping[str, np.ndarray], labels: np.ndarray) -> dict[str, Any]:
    """The numbers of the module's docstring, from all rows and their labels."""
    numbers: dict[str, Any] = {
        name: float(np.mean(rows[name], dtype=np.float64))
        for name in ("straightness", "teacher_straightness", "transport", "teacher_transport")
        if name in rows
    }
    numbers["agreement"] = agreement(rows[MADE], rows[END], labels)
    if "ends" in rows:
        numbers["levels"] = np.linspace(1.0, 0.0, LEVELS + 1)[:-1].tolist()
        for name in ("error", "spread"):
            numbers[name] = np.sqrt(rows[name].mean(axis=0)).tolist()
            numbers[f"mean_{name}"] = float(np.sqrt(rows[name].mean()))
    return numbers
