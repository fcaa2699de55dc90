"""Why distilling is easier than training from data: the gradient with and without a teacher.

    python -m examples.teacher --out=runs/teacher.png

Consistency training compares f(x_t, t) with f(x_s, s) at x_s = alpha_s x_0 + sigma_s eps, of the
data and noise of x_t. Consistency distillation takes x_s by a teacher's step from x_t, whose mean
over x_0 and eps it is. So the two gradients have one mean, if f is affine, and the first has the
variance of x_s given x_t on top (docs/consistency.md). On Gaussian data tests/examples compares
that variance with its closed form.

The data are a mixture of Gaussians whose denoiser, the teacher, is known in closed form. The
example draws the noise of the gradient in units of its mean by the number of points of the grid, at
the denoiser that both methods start from and at the network that distillation ends with, and the
distance to the teacher's end points while both train.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from examples import mixtures, picture
from examples.mixtures import (
    BATCH,
    EXACT,
    Mixture,
    adam,
    model_with_exact_teacher,
    point_batches,
    ring,
)
from fewstep.diffusion.spacing import uniform_spacing
from fewstep.diffusion.time_pairs import constant
from fewstep.models.model import Model
from fewstep.models.network import Params
from fewstep.objectives.base import Batch, Objective
from fewstep.objectives.consistency_distillation import consistency_distillation
from fewstep.objectives.consistency_training import consistency_training
from fewstep.objectives.denoising import denoising
from fewstep.samplers.grids import time_grid
from fewstep.samplers.ode import euler_step, heun
from fewstep.training.state import initial_state
from fewstep.training.step import train_step

POINTS = (5, 17, 65)  # of the grids whose gradients are compared
BATCHES = 64  # gradients that an estimate is of
DENOISER_STEPS, TRAINED_POINTS, EVERY = 500, 33, 100
ROWS = 4096  # samples whose distance to the teacher's is measured
TITLES = {"ct": "from data", "cd": "from a teacher"}
COLOURS = {"ct": "#0072b2", "cd": "#d55e00"}
# The networks that the gradient is measured at.
AT = {"start": "at the start", "end": "at the end"}


def objectives(model: Model, points: int) -> dict[str, Objective]:
    """Both methods on one grid of equal steps, each with the network itself as target."""
    shared = {"curriculum": constant(points), "spacing": uniform_spacing(model.path)}
    return {
        "ct": consistency_training(model, initial_decay=0.0, **shared),
        "cd": consistency_distillation(
            model, target_decay=0.0, teacher_solver=euler_step, **shared
        ),
    }


def gradient_moments(
    objective: Objective,
    params: Params,
    networks: Mapping[str, Params],
    draw: Callable[[Array], Batch],
    keys: Array,
) -> tuple[float, float]:
    """(squared norm of the mean, total variance) of the gradient of a batch's loss, over keys.

    draw: key -> batch.
    """
    loss = objective.players["network"].loss

    def gradient(key: Array) -> Params:
        key_batch, key_loss = jax.random.split(key)
        mean = lambda params: loss(params, networks, draw(key_batch), key_loss, jnp.int32(0))[0]
        return jax.grad(lambda params: mean(params).mean())(params)

    def body(sums: Params, key: Array) -> tuple[Params, None]:
        found = gradient(key)
        first, second = sums
        total = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(found))
        return (jax.tree.map(jnp.add, first, found), second + total), None

    start = jax.tree.map(jnp.zeros_like, params), jnp.zeros(())
    (first, second), _ = jax.jit(lambda keys: jax.lax.scan(body, start, keys))(keys)
    count = len(keys)
    mean = float(sum(jnp.sum((leaf / count) ** 2) for leaf in jax.tree.leaves(first)))
    # Unbiased: the mean of `count` gradients has their variance / count on top of its square.
    variance = max(float(second) / count - mean, 0.0) * count / (count - 1)
    return max(mean - variance / count, 0.0), variance


def relative_noise(moments: tuple[float, float]) -> float:
    """Deviation of the gradient of a batch in units of the norm of its mean."""
    mean, variance = moments
    return float(np.sqrt(variance / mean)) if mean > 0.0 else float("nan")


def train(
    objective: Objective,
    start: Params,
    batches: Iterator[Batch],
    steps: int,
    distance: Callable[[Params], float],
) -> tuple[Params, list[float]]:
    """The network after `steps`, and its distances to the teacher, every EVERY steps from 0 on."""
    objective = objective._replace(init_from={"network": "start"})
    frozen = {"start": start, "teacher": {EXACT: jnp.zeros(())}}
    frozen = {name: frozen[name] for name in ("start", *objective.frozen)}
    optimizers = {"network": adam(3e-4, steps)}
    state = initial_state(objective, optimizers, 0, frozen)
    step = jax.jit(train_step(objective, optimizers, 0))
    found = [distance(state.networks["network"])]
    for number in range(1, steps + 1):
        state, _ = step(state, frozen, next(batches))
        if number % EVERY == 0:
            found.append(distance(state.networks["network"]))
    return state.networks["network"], found


def teacher_distance(model: Model) -> Callable[[Params], float]:
    """The root mean square distance of one-step samples to the teacher's, of the same noise."""
    path, condition = model.path, {"label": jnp.full((ROWS,), -1)}
    eps = jax.random.normal(jax.random.key(3), (ROWS, 2))
    teacher = partial(model.endpoints, {EXACT: jnp.zeros(())}, condition=condition)
    times = time_grid(uniform_spacing(path), 128)
    ends = jax.jit(lambda eps: heun()(teacher, path, path.prior(eps), times, None))(eps)
    one = jnp.full((ROWS,), path.t_max)

    @jax.jit
    def distance(params: Params) -> Array:
        made = model.consistency(params, path.prior(eps), one, condition)
        return jnp.sqrt(jnp.mean((made - ends) ** 2))

    return lambda params: float(distance(params))


def write_picture(
    path: Path, noise: Mapping[tuple[str, str], list[float]], distances: Mapping[str, list[float]]
) -> None:
    """Draw the gradient's noise by the grid, and the distance by training step.

    noise: by method, and by the network that it is measured at, a key of AT.
    """
    figure = Figure((8.4, 3.4), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2)
    for (name, at), values in noise.items():
        title = f"{TITLES[name]}, {AT[at]}"
        style = {"color": COLOURS[name], "linestyle": "--" if at == "start" else "-"}
        left.loglog(POINTS, values, marker="o", markersize=4, label=title, **style)
    for name, values in distances.items():
        steps = EVERY * np.arange(len(values))
        right.semilogy(steps, values, color=COLOURS[name], label=TITLES[name])
    left.set(xlabel="points of the grid", ylabel="deviation / mean of the gradient")
    left.set_xticks(POINTS, list(map(str, POINTS)))
    right.set(xlabel="training steps", ylabel="distance to the teacher's samples")
    for axes in (left, right):
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter("{x:g}")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def gradient_noise(model: Model, mixture: Mixture, at: Params) -> dict[str, list[float]]:
    """The noise of both gradients on the grids of POINTS, at a network's parameters."""
    networks = {"network": at, "teacher": {EXACT: jnp.zeros(())}}
    label = jnp.full((BATCH,), -1)
    draw = lambda key: {"x": mixture.sample(key, BATCH), "label": label}
    keys = jax.random.split(jax.random.key(1), BATCHES)
    found: dict[str, list[float]] = {name: [] for name in TITLES}
    for points in POINTS:
        for name, objective in objectives(model, points).items():
            moments = gradient_moments(objective, at, networks, draw, keys)
            found[name].append(relative_noise(moments))
    return found


def compare(out: Path, steps: int) -> None:
    """Train both networks, measure both gradients, print the numbers and write the picture."""
    mixture = ring()
    model = model_with_exact_teacher(mixture)
    objective, points = denoising(model)._replace(init_from={}), point_batches(mixture, 0)
    learned = mixtures.train(
        objective, {"network": 1e-3}, {}, points, DENOISER_STEPS, 0, "denoiser"
    )
    start, distance = learned.networks["network"], teacher_distance(model)
    trained, distances = {}, {}
    for name, own in objectives(model, TRAINED_POINTS).items():
        batches = point_batches(mixture, 5)
        trained[name], distances[name] = train(own, start, batches, steps, distance)
    noise = {
        (name, at): values
        for at, params in (("start", start), ("end", trained["cd"]))
        for name, values in gradient_noise(model, mixture, params).items()
    }
    write_picture(out, noise, distances)
    for (name, at), values in noise.items():
        shown = ", ".join(f"{value:.2f}" for value in values)
        print(f"{TITLES[name]:15} gradient's noise {AT[at]} {shown}")
    for name, values in distances.items():
        print(f"{TITLES[name]:15} distance {values[-1]:.4f}")
    print(out)


if __name__ == "__main__":
    picture.main(compare, steps=picture.Count(1000, "training steps of each network"))
