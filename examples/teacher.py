"""Why distilling is easier than training from data: the gradient with and without a teacher.

    python -m examples.teacher --out=runs/teacher.png

Consistency training compares f(x_t, t) with f(x_s, s) at x_s = alpha_s x_0 + sigma_s eps, of the
data and noise of x_t. Consistency distillation takes x_s by a teacher's step from x_t, whose mean
over x_0 and eps it is. So the two gradients have one mean, if f is affine, and the first has the
variance of x_s given x_t on top (docs/consistency.md). On Gaussian data tests/examples compares
that variance with its closed form.

The data are a mixture of Gaussians whose denoiser, the teacher, is known in closed form. The
example draws, for networks that start from one and the same denoiser, the noise of the gradient in
units of its mean by the number of points of the grid, and the distance to the teacher's end points
while both train.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from jax import Array
from matplotlib.figure import Figure

from examples.mixtures import EXACT, adam, model_with_exact_teacher, point_batches, ring
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
) -> list[float]:
    """The distances of a network to the teacher, every EVERY training steps from the start."""
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
    return found


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


def pretrained(model: Model, steps: int) -> Params:
    """Parameters of a network that has learned to denoise for some steps."""
    objective = denoising(model)._replace(init_from={})
    optimizers = {"network": adam(1e-3, steps)}
    state = initial_state(objective, optimizers, 0, {})
    step = jax.jit(train_step(objective, optimizers, 0))
    batches = point_batches(ring(), 0)
    for _ in range(steps):
        state, _ = step(state, {}, next(batches))
    return state.networks["network"]


def write_picture(
    path: Path, noise: Mapping[str, list[float]], distances: Mapping[str, list[float]]
) -> None:
    """Draw the gradient's noise by the grid, and the distance by training step."""
    figure = Figure((8.4, 3.4), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2)
    for (name, values), colour in zip(noise.items(), ("#0072b2", "#d55e00"), strict=True):
        left.loglog(POINTS, values, "o-", color=colour, label=TITLES[name], markersize=4)
        steps = EVERY * np.arange(len(distances[name]))
        right.semilogy(steps, distances[name], color=colour, label=TITLES[name])
    left.set(xlabel="points of the grid", ylabel="deviation / mean of the gradient")
    left.set_xticks(POINTS, list(map(str, POINTS)))
    left.minorticks_off()
    right.set(xlabel="training steps", ylabel="distance to the teacher's samples")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def compare(out: Path, steps: int) -> None:
    """Measure both gradients, train both networks, print the numbers and write the picture."""
    mixture = ring()
    model = model_with_exact_teacher(mixture)
    start = pretrained(model, DENOISER_STEPS)
    networks = {"network": start, "teacher": {EXACT: jnp.zeros(())}}
    label = jnp.full((512,), -1)
    draw = lambda key: {"x": mixture.sample(key, 512), "label": label}
    keys = jax.random.split(jax.random.key(1), BATCHES)
    noise: dict[str, list[float]] = {name: [] for name in TITLES}
    for points in POINTS:
        for name, objective in objectives(model, points).items():
            noise[name].append(
                relative_noise(gradient_moments(objective, start, networks, draw, keys))
            )
    distance = teacher_distance(model)
    distances = {
        name: train(objective, start, point_batches(mixture, 5), steps, distance)
        for name, objective in objectives(model, TRAINED_POINTS).items()
    }
    write_picture(out, noise, distances)
    for name, title in TITLES.items():
        values = ", ".join(f"{value:.2f}" for value in noise[name])
        print(f"{title:15} gradient's noise {values}; distance {distances[name][-1]:.4f}")
    print(out)


def main(_: list[str]) -> None:
    """Check --out, which exits with 2 on an error, and compare."""
    logging.set_verbosity(logging.ERROR)
    out = Path(OUT.value)
    if out.suffix != ".png":
        print(f"error: --out={out} must end in .png", file=sys.stderr)
        sys.exit(2)
    compare(out, STEPS.value)


if __name__ == "__main__":
    # Defined here because flag names are global to a process.
    OUT = flags.DEFINE_string("out", None, "a .png file for the picture", required=True)
    STEPS = flags.DEFINE_integer("steps", 2000, "training steps of each network", lower_bound=1)
    app.run(main)
