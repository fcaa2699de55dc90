"""What is known of points in place of features: themselves, and the modes of their density."""

from collections import deque
from collections.abc import Iterable

import numpy as np

from fewstep.data import Dataset
from fewstep.densities.density import Density
from fewstep.densities.table import density_of
from fewstep.eval.metrics import METRICS
from fewstep.eval.metrics.metric import Inputs, compute_metrics
from fewstep.eval.metrics.transport import POINTS, collapsed
from fewstep.eval.reference import Reference

# Name of the feature network that is the identity.
FEATURES = "points"
SEED = 0


def density_measured(dataset: Dataset | None) -> Density | None:
    """The density whose exact samples a data set has, or None."""
    return None if dataset is None else density_of(dataset.name)


def point_inputs(points: np.ndarray, real: np.ndarray, density: Density | None) -> dict:
    """The inputs of metrics that compare points [N, D] with exact ones [M, D]."""
    known = mode_inputs(points[:POINTS], density)
    return {"points": points[:POINTS], "real_points": real[:POINTS], **known}


def mode_inputs(points: np.ndarray, density: Density | None) -> dict:
    """The inputs of metrics that count modes, of points [N, D]; {} if the modes are unknown."""
    if density is None or density.modes is None:
        return {}
    return {"modes": density.modes.assign(points), "mode_weights": density.modes.weight}


def mode_metrics(points: np.ndarray, density: Density | None) -> dict:
    """The metrics of points that need no exact ones, by name: of the modes, if they are known."""
    return compute_metrics(METRICS, Inputs(**mode_inputs(points, density)))


def modes_of_batches(batches: Iterable[np.ndarray], density: Density | None) -> dict:
    """`mode_metrics` of samples in batches, which are all made; kept if their modes are known."""
    if density is None or density.modes is None:
        deque(batches, maxlen=0)
        return {}
    return mode_metrics(np.concatenate(list(batches)), density)


def point_metrics(points: np.ndarray, real: np.ndarray, density: Density | None) -> dict:
    """The metrics of points alone, by name."""
    return compute_metrics(METRICS, Inputs(**point_inputs(points, real, density)))


def floor_metrics(reference: Reference, density: Density | None, samples: int) -> dict:
    """The metrics of exact points against others, as many as `samples`: the floor."""
    real, count = reference.neighbourhood, min(samples, POINTS)
    if len(real) < 2 * count:
        return {}
    return point_metrics(real[count : 2 * count], real[:count], density)


def prior_metrics(reference: Reference, density: Density | None, samples: int) -> dict:
    """The metrics of draws from the prior N(0, scale^2 I), as of a sampler that does nothing."""
    if density is None:
        return {}
    # Not the stream of the exact samples, which may begin with the same draws.
    rng = np.random.default_rng((SEED, 1))
    points = density.scale * rng.standard_normal((min(samples, POINTS), density.dim))
    return point_metrics(points, reference.neighbourhood, density)


def collapse_warnings(metrics: dict, floor: dict) -> list[str]:
    """Warnings of distances of a narrow set below those of two exact sets."""
    return [
        f"{name} {metrics[name]:.3f} is below the floor {floor[name]:.3f} of two exact sets: the "
        "samples have collapsed, which is no win; see narrowest_ratio"
        for name in collapsed(metrics, floor)
    ]
