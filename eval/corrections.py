"""Further rows of an evaluation on a density: a sampler's samples corrected, and tempered SMC.

weighted   samples as proposals, resampled by the weights of a flow (objectives/flow_weights.py)
hmc        ten steps of HMC from each sample (samplers/hmc.py)
smc        no network: adaptive tempered SMC (eval/smc.py), once for all numbers of steps

Each row has the metrics of points, where the density has exact samples, and how many evaluations of
the network and of the gradient of log rho a sample took.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from fewstep.densities.density import Density
from fewstep.eval.measure import Measures
from fewstep.eval.points import mode_metrics, point_metrics
from fewstep.eval.report.results import ROWS
from fewstep.eval.sampling import Wanted, evaluation_sampler, guidance_scale
from fewstep.eval.smc import check_installed, tempered_smc
from fewstep.messages import unknown_choice
from fewstep.objectives.base import Params
from fewstep.objectives.flow_weights import LARGEST, flow_numbers, weighted_rows
from fewstep.samplers.hmc import adapted_size, gradients, hmc
from fewstep.training.cost.sampling_cost import Counts, counts_per_sample
from fewstep.training.experiment import Experiment
from fewstep.training.generate import map_batches

HMC_STEPS = 10
SEED = 0
Numbers = dict[str, float]
# (parameters, sampling steps) -> numbers of each row, by its name
Correct = Callable[[Params, int], dict[str, Numbers]]


def check_rows(experiment: Experiment, config: ConfigDict) -> None:
    """Raises ValueError for rows of evaluate.rows that an evaluation of this run cannot have."""
    names, density = config.evaluate.rows, experiment.model.density
    for name in names:
        if name not in ROWS:
            raise ValueError(unknown_choice("evaluate.rows", name, ROWS))
    if names and density is None:
        raise ValueError(
            f"evaluate.rows={tuple(names)} needs a density, data.name=density:NAME, not "
            f"data.name={config.data.name}"
        )
    if "weighted" in names and density.dim > LARGEST:
        raise ValueError(
            f"evaluate.rows=weighted takes Jacobians of at most {LARGEST} dimensions, and "
            f"{config.data.name} has {density.dim}; leave it out"
        )
    if "smc" in names:
        check_installed("evaluate.rows=smc")


def corrector(
    experiment: Experiment,
    config: ConfigDict,
    mesh: Mesh,
    wanted: Wanted,
    measures: Measures | None,
) -> Correct:
    """The function that computes the rows of evaluate.rows. wanted: what is sampled."""
    names, density = tuple(config.evaluate.rows), experiment.model.density
    if not names:
        return lambda params, steps: {}
    compare = partial(compared, density, measures)
    tempered = smc_row(density, len(wanted.labels), compare) if "smc" in names else {}
    scale = guidance_scale(experiment, config)
    counts = counts_per_sample(config, config.evaluate.steps, scale)
    objective = experiment.objective
    weighing = objective._replace(sample=weighted_rows(density, objective.sample))
    made_by = {"weighted": experiment._replace(objective=weighing), "hmc": experiment}
    samplers = {
        (name, steps): evaluation_sampler(made_by[name], config, mesh, steps)
        for name in names
        if name in made_by
        for steps in config.evaluate.steps
    }

    def rows_of(name: str, params: Params, steps: int) -> Any:
        sampler, size = samplers[name, steps], config.evaluate.batch_size
        batches = map_batches(sampler, params, wanted.labels, size, f"{steps} steps, {name}")
        return jax.tree.map(lambda *parts: np.concatenate(parts), *batches)

    def correct(params: Params, steps: int) -> dict[str, Numbers]:
        rows = {"smc": tempered} if tempered else {}
        if "weighted" in names:
            rows["weighted"] = weighted_row(density, rows_of("weighted", params, steps), compare)
            rows["weighted"] |= counted(counts[steps], 1 + density.dim)
        if "hmc" in names:
            rows["hmc"], taken = hmc_row(density, rows_of("hmc", params, steps), compare)
            rows["hmc"] |= counted(counts[steps], 1, taken)
        return {name: rows[name] for name in names}

    return correct


def gradient_counts(experiment: Experiment, config: ConfigDict) -> dict[int, dict[str, float]]:
    """For a sampler of a density, the gradients of log rho that a sample takes, by steps."""
    if experiment.model.density is None:
        return {}
    counts = counts_per_sample(config, config.evaluate.steps, guidance_scale(experiment, config))
    return {steps: {"gradients": float(each.gradients)} for steps, each in counts.items()}


def counted(counts: Counts, times: int, more: int = 0) -> Numbers:
    """The evaluations of a row that takes `times` those of a sample, and `more` gradients."""
    network, gradient = (times * count for count in counts)
    return {"evaluations": float(network), "gradients": float(gradient + more)}


def compared(density: Density, measures: Measures | None, points: np.ndarray) -> Numbers:
    """The metrics of points against exact ones; without exact samples those of modes alone."""
    if measures is None:
        return mode_metrics(points, density)
    return point_metrics(points, measures.real.neighbourhood, density)


def weighted_row(
    density: Density, rows: Mapping[str, np.ndarray], compare: Callable[[np.ndarray], Numbers]
) -> Numbers:
    """The row of samples that are resampled by their weights. rows: of `weighted_rows`.

    A sample whose log weight is not finite has weight 0. `weightless` is the share of these, if
    there are any; it is the only number if no other sample is left.
    """
    log_w = np.asarray(rows["log_w"], np.float64)
    finite = np.isfinite(log_w)
    lost = {} if finite.all() else {"weightless": float(1.0 - finite.mean())}
    if not finite.any():
        return lost
    log_w = np.where(finite, log_w, -np.inf)
    points = resampled(density.scale * rows["x"], np.exp(log_w - log_w.max()), SEED)
    numbers = flow_numbers(density.log_z, {**rows, "log_w": log_w})
    return {**compare(points), **{name: float(x) for name, x in numbers.items()}, **lost}


def resampled(points: np.ndarray, weights: np.ndarray, seed: int) -> np.ndarray:
    """As many points of equal weight, by systematic resampling, in random order.

    points: [N, D]. weights: [N], not negative, of any sum above 0. Raises ValueError for weights
    that are not finite or whose sum is 0.
    """
    total = weights.sum()
    if not np.isfinite(total) or total <= 0.0:
        raise ValueError(f"the sum of weights is {total}; it must be finite and above 0")
    rng, count = np.random.default_rng(seed), len(points)
    marks = (np.arange(count) + rng.random()) / count
    chosen = np.searchsorted(np.cumsum(weights) / total, marks).clip(max=count - 1)
    return points[rng.permutation(chosen)]


def hmc_row(
    density: Density, samples: np.ndarray, compare: Callable[[np.ndarray], Numbers]
) -> tuple[Numbers, int]:
    """The row of samples after HMC, and the gradients that each took, of the search included.

    samples: [N, D], in units of the scale.
    """
    log_density = lambda y: density.scaled_log_density(y[None])[0]
    samples = np.asarray(samples)
    key_size, key_chain = jax.random.split(jax.random.key(SEED))
    size, trials = adapted_size(log_density, samples, key_size)
    moved = jax.jit(partial(hmc, log_density, steps=HMC_STEPS, size=size))(samples, key=key_chain)
    row = {**compare(density.scale * np.asarray(moved.x)), "accepted": float(moved.accepted)}
    return row, gradients(HMC_STEPS) + trials * gradients(1)


def smc_row(density: Density, count: int, compare: Callable[[np.ndarray], Numbers]) -> Numbers:
    """The row of tempered SMC with as many particles as there are samples."""
    found = tempered_smc(density, count, SEED)
    numbers = {**compare(found.points), "log_z": found.log_z}
    if density.log_z is not None:
        numbers["log_z_bias"] = found.log_z - density.log_z
    numbers |= {"accepted": found.accepted}
    return {**numbers, "evaluations": 0.0, "gradients": float(found.gradients)}
