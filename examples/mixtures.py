"""Which modes a one-step generator keeps: SIM, SiD and Diff-Instruct with an exact teacher.

    python -m examples.mixtures --out=runs/mixtures.png

The data are a mixture of eight Gaussians on a ring in two dimensions, with weights of 1/36 to 8/36.
The teacher is the mixture's denoiser in closed form. So if a generator misses modes, the divergence
or the training is at fault, not the teacher. Generators start from

    same       a network that has learned to denoise the mixture, as in published distillations
    disjoint   one that has learned to denoise a single Gaussian away from every mode

and the fake score starts from the same network. The example draws the samples of each generator,
and how strongly the divergences see three wrong distributions at each noise level, computed
exactly. It prints how far the weights of the modes are from the teacher's.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from matplotlib.figure import Figure

from examples import picture
from fewstep.data.mixtures import MIXTURES
from fewstep.diffusion.path import Path as DiffusionPath
from fewstep.diffusion.path import linear
from fewstep.diffusion.prediction import KINDS, Endpoints, coefficients
from fewstep.diffusion.time_sampling import log_normal_times
from fewstep.models.mlp import mlp
from fewstep.models.model import Model
from fewstep.models.network import Condition, Network, Params
from fewstep.objectives.base import Objective
from fewstep.objectives.denoising import denoising
from fewstep.objectives.distances import pseudo_huber
from fewstep.objectives.distribution_matching import distribution_matching
from fewstep.objectives.divergences import (
    Divergence,
    integral_kl,
    score_identity,
    score_implicit_matching,
)
from fewstep.progress import progress_bar
from fewstep.training.optimizer import build_optimizer
from fewstep.training.state import initial_state
from fewstep.training.step import train_step
from fewstep.training.storage.train_state import TrainState

# Key of parameters that select the teacher in closed form.
EXACT = "mixture"
BATCH, SAMPLES = 512, 10_000
PRETRAINING, RATES = 3000, {"generator": 3e-4, "fake_score": 1e-3}
# Noise levels sigma / alpha: from well inside a mode to twice the ring's radius, where modes merge.
LEVELS = {"mean": -0.6, "std": 1.6}
RHO = np.geomspace(0.02, 10.0, 25)
# A sample is outside if it is more than this many deviations away from every mode.
OUTSIDE = 4.0


class Mixture(NamedTuple):
    """sum_k weight_k N(mean_k, deviation^2 I). weight: [K]; mean: [K, 2]."""

    weight: Array
    mean: Array
    deviation: float

    def sample(self, key: Array, count: int) -> Array:
        """Draws [count, 2]."""
        key_mode, key_eps = jax.random.split(key)
        modes = jax.random.choice(key_mode, len(self.weight), (count,), p=self.weight)
        return self.mean[modes] + self.deviation * jax.random.normal(key_eps, (count, 2))

    def endpoints(self, path: DiffusionPath, x: Array, t: Array) -> Endpoints:
        """E[x_0 | x_t] and E[eps | x_t]: the modes' means, weighted by their posteriors."""
        alpha, sigma = path.alpha(t)[:, None, None], path.sigma(t)[:, None, None]
        variance = (alpha * self.deviation) ** 2 + sigma**2
        offset = x[:, None] - alpha * self.mean
        logits = jnp.log(self.weight) - 0.5 * jnp.sum(offset**2 / variance, axis=-1)
        share = jax.nn.softmax(logits, axis=1)[..., None]
        x_0 = self.mean + alpha * self.deviation**2 / variance * offset
        return Endpoints(
            jnp.sum(share * x_0, axis=1), jnp.sum(share * sigma / variance * offset, axis=1)
        )


def ring() -> Mixture:
    """The mixture of `data.name=mixture:ring`."""
    weight, mean, deviation = MIXTURES["ring"]
    return Mixture(jnp.asarray(weight), jnp.asarray(mean), deviation)


def model_with_exact_teacher(mixture: Mixture) -> Model:
    """A network on points which, with EXACT for parameters, is the mixture's own denoiser."""
    network, path, kind = mlp((2,)), linear(), KINDS["velocity"]

    def apply(
        params: Params, x: Array, t: Array, s: Array, condition: Condition, **mode: object
    ) -> Array:
        if EXACT in params:
            return kind.encode(mixture.endpoints(path, x, t), x, coefficients(path, t, x))
        return network.apply(params, x, t, s, condition, **mode)

    return Model(Network(network.init, apply, shape=network.shape), path, kind)


def adam(rate: float, updates: int):
    """The optimizer of SiD and SIM, with a learning rate that falls to 0."""
    return build_optimizer(
        name="adam",
        learning_rate=rate,
        schedule="cosine",
        warmup_steps=0,
        b1=0.0,
        b2=0.999,
        eps=1e-8,
        weight_decay=0.0,
        clip_norm=0.0,
        updates=updates,
    )


def train(
    objective: Objective,
    rates: Mapping[str, float],
    frozen: Mapping[str, Params],
    batches: Iterator[Mapping[str, Array]],
    steps: int,
    seed: int,
    name: str,
) -> TrainState:
    """The state after `steps` training steps. name: of the progress bar."""
    optimizers = {player: adam(rates[player], steps) for player in objective.players}
    state = initial_state(objective, optimizers, seed, frozen)
    step = jax.jit(train_step(objective, optimizers, seed), donate_argnums=0)
    for _ in progress_bar(range(steps), desc=name, unit="step"):
        state, _ = step(state, frozen, next(batches))
    return state


def point_batches(mixture: Mixture, seed: int) -> Iterator[Mapping[str, Array]]:
    """Batches of the mixture's points, without labels."""
    draw = jax.jit(partial(mixture.sample, count=BATCH))
    for step in range(2**31):
        key = jax.random.fold_in(jax.random.key(seed), step)
        yield {"x": draw(key), "label": jnp.full((BATCH,), -1)}


def train_denoiser(model: Model, mixture: Mixture, seed: int, name: str) -> Params:
    """Parameters of a network that has learned to denoise a mixture."""
    objective = denoising(model, time_sampler=log_normal_times(model.path, **LEVELS))
    objective = objective._replace(init_from={})
    batches, rates = point_batches(mixture, seed), {"network": 1e-3}
    state = train(objective, rates, {}, batches, PRETRAINING, seed, name)
    return state.networks["network"]


def generator_samples(
    model: Model, divergence: Divergence, start: Params, steps: int, seed: int, name: str
) -> np.ndarray:
    """Samples [SAMPLES, 2] of a generator trained by a divergence."""
    levels = log_normal_times(model.path, **LEVELS)
    objective = distribution_matching(
        model, divergence=divergence, time_sampler=levels, fake_time_sampler=levels
    )
    # Both players start from `start`; the teacher that the losses read has no parameters to copy.
    objective = objective._replace(init_from=dict.fromkeys(objective.players, "start"))
    frozen = {"teacher": {EXACT: jnp.zeros(())}, "start": start}
    labels = iter(lambda: {"label": jnp.full((BATCH,), -1)}, None)
    state = train(objective, RATES, frozen, labels, steps, seed, name)
    eps = jax.random.normal(jax.random.key(seed + 1), (SAMPLES, 2))
    condition = {"label": jnp.full((SAMPLES,), -1)}
    generator = state.networks["generator"]
    return np.asarray(
        objective.sample(generator, eps, condition, None, steps=1, guidance_scale=1.0)
    )


class Found(NamedTuple):
    """The modes in a set of samples.

    weights: [K], shares of the samples inside modes. outside: share of the samples in no mode.
    entropy: of the weights, in nats. wrong: total variation between the weights and the mixture's.
    """

    weights: np.ndarray
    outside: float
    entropy: float
    wrong: float


def modes_of(samples: np.ndarray, mixture: Mixture) -> Found:
    """The modes that samples [N, 2] lie in."""
    distance = np.linalg.norm(samples[:, None] - np.asarray(mixture.mean), axis=-1)
    inside = distance.min(axis=1) < OUTSIDE * mixture.deviation
    counts = np.bincount(distance.argmin(axis=1)[inside], minlength=len(mixture.weight))
    weights = counts / max(counts.sum(), 1)
    held = weights[weights > 0.0]
    return Found(
        weights,
        outside=float(1.0 - inside.mean()),
        entropy=float(-np.sum(held * np.log(held))),
        wrong=float(0.5 * np.abs(weights - np.asarray(mixture.weight)).sum()),
    )


def squared_difference(wrong: Mixture, right: Mixture, rho: float) -> float:
    """E |fake - teacher|^2 of two exact denoisers at one noise level: SIM's and SiD's y.

    rho: noise level, sigma / alpha. The mean is over x_t of the wrong mixture, as of a generator.
    """
    path, key = linear(), jax.random.key(0)
    t = jnp.full((SAMPLES,), path.time_at(jnp.float32(rho)))
    key_x, key_eps = jax.random.split(key)
    x_0 = wrong.sample(key_x, SAMPLES)
    x_t = path.interpolate(x_0, jax.random.normal(key_eps, x_0.shape), t)
    difference = wrong.endpoints(path, x_t, t).x_0 - right.endpoints(path, x_t, t).x_0
    return float(jnp.mean(jnp.sum(difference**2, axis=-1)))


def wrong_distributions(mixture: Mixture) -> dict[str, Mixture]:
    """Three distributions that a generator could learn instead of the mixture."""
    count = len(mixture.weight)
    kept = jnp.where(jnp.arange(count) == count - 1, 0.0, mixture.weight)
    return {
        "all weights equal": mixture._replace(weight=jnp.full(count, 1.0 / count)),
        "the heaviest mode missing": mixture._replace(weight=kept / kept.sum()),
        "modes 1.5 times as wide": mixture._replace(deviation=1.5 * mixture.deviation),
    }


def write_picture(path: Path, samples: Mapping[str, np.ndarray], mixture: Mixture) -> None:
    """Draw samples of each generator, and what each noise level sees of wrong distributions."""
    columns = 4
    rows = -(-(len(samples) + 1) // columns)
    figure = Figure((3.2 * columns, 3.3 * rows), dpi=110, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, (name, points) in zip(axes, samples.items(), strict=False):
        axis.plot(*points[:3000].T, ".", markersize=1.5, color="#0072b2")
        axis.set(xlim=(-2, 2), ylim=(-2, 2), aspect="equal", title=name, xticks=(), yticks=())
    last = axes[len(samples)]
    for name, wrong in wrong_distributions(mixture).items():
        last.loglog(RHO, [squared_difference(wrong, mixture, rho) for rho in RHO], label=name)
    last.set(xlabel="noise level sigma / alpha", title="E |fake - teacher|^2, both exact")
    last.set_ylim(1e-7)
    last.legend(fontsize=7)
    for axis in axes[len(samples) + 1 :]:
        axis.set_axis_off()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def compare(out: Path, steps: int, seed: int) -> None:
    """Train all generators, print what each has learned, and write the picture."""
    mixture = ring()
    far = Mixture(jnp.ones(1), jnp.array([[0.0, 1.8]]), 0.06)
    model = model_with_exact_teacher(mixture)
    starts = {
        "same": train_denoiser(model, mixture, seed, "denoiser of the mixture"),
        "disjoint": train_denoiser(model, far, seed, "denoiser of one Gaussian"),
    }
    divergences = {
        "SIM": score_implicit_matching(pseudo_huber(0.1)),
        "SiD": score_identity(1.2),
        "Diff-Instruct": integral_kl(),
    }
    samples = {"the mixture": np.asarray(mixture.sample(jax.random.key(seed + 2), SAMPLES))}
    for start, params in starts.items():
        for method, divergence in divergences.items():
            name = f"{method}, {start} start"
            samples[name] = generator_samples(model, divergence, params, steps, seed, name)
    write_picture(out, samples, mixture)
    print(f"{'':28} weights wrong by  entropy  outside  weights of the modes")
    for name, those in samples.items():
        found = modes_of(those, mixture)
        weights = " ".join(f"{weight:.3f}" for weight in found.weights)
        print(f"{name:28} {found.wrong:16.3f} {found.entropy:8.3f} {found.outside:8.3f}  {weights}")
    print(out)


if __name__ == "__main__":
    picture.main(
        compare,
        steps=picture.Count(3000, "updates of each generator"),
        seed=picture.Count(0, "seed of all random numbers", least=0),
    )
