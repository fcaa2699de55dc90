"""The contract of a metric: its inputs, and how its number is shown and compared.

`Inputs` has everything that is known about a set of samples and the real images. A metric names the
fields that it needs, in the order of its function's arguments, so the function stays mathematics on
arrays. Several metrics may be fields of one function's result.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from fewstep.eval.metrics.frechet import Statistics

# Which values are better; NEITHER for a metric that does not rank.
LESS, MORE, NEITHER = "less", "more", ""
ARROWS = {LESS: "\u00a0↓", MORE: "\u00a0↑", NEITHER: ""}


class Inputs(NamedTuple):
    """The inputs of metrics; None if unknown.

    statistics: of all samples. real_statistics: of all real images.
    features: [N, D], of some samples. real_features: [M, D], of some real images.
    train_features, held_out_features: of both splits, to find copies.
    logits: [N, classes], of the feature network. classes: [N], predicted by a classifier of real
    images. labels: [N], requested of the sampler.
    points, real_points: [N, D] and [M, D], samples that are points, and real ones. modes: [N], the
    mode of each sample. mode_weights: [K], the true weights of the modes.
    """

    statistics: Statistics | None = None
    real_statistics: Statistics | None = None
    features: np.ndarray | None = None
    real_features: np.ndarray | None = None
    train_features: np.ndarray | None = None
    held_out_features: np.ndarray | None = None
    logits: np.ndarray | None = None
    classes: np.ndarray | None = None
    labels: np.ndarray | None = None
    points: np.ndarray | None = None
    real_points: np.ndarray | None = None
    modes: np.ndarray | None = None
    mode_weights: np.ndarray | None = None


class Metric(NamedTuple):
    """A metric of samples. Files and logs call it by its key in METRICS.

    compute: (the inputs that it needs) -> a number, or a tuple with the number as its field `part`.
    needs: field of Inputs -> the fewest rows that it must have, in the order of the arguments.
    heading: of its column. format: of its values, for `str.format`.
    better: LESS, MORE or NEITHER.
    part: "" if compute returns the number itself. error: the field with its standard error, which
    results call NAME_error; "" if there is none.
    in_text: whether the narrow table in plain text shows it. note: how to read it, for pages.
    """

    compute: Callable[..., Any]
    needs: Mapping[str, int]
    heading: str
    format: str
    better: str
    part: str = ""
    error: str = ""
    in_text: bool = False
    note: str = ""

    @property
    def of_points(self) -> bool:
        """Whether it compares points as they are, and so says nothing of images."""
        return "points" in self.needs or "modes" in self.needs


def error_name(name: str) -> str:
    """Name of a metric's standard error in results."""
    return f"{name}_error"


def logged_name(name: str, steps: int) -> str:
    """Name of a metric at a number of sampling steps in the log, such as frechet_4."""
    return f"{name}_{steps}"


def parse_logged_name(logged: str) -> tuple[str, str]:
    """Metric and number of steps of a `logged_name`: ("frechet", "4")."""
    name, _, steps = logged.rpartition("_")
    return name, steps


def compute_metrics(metrics: Mapping[str, Metric], inputs: Inputs) -> dict[str, float]:
    """All metrics whose inputs are known, and their standard errors. Runs each function once."""
    results: dict[Callable[..., Any], Any] = {}
    found = {}
    for name, metric in metrics.items():
        if not has_inputs(inputs, metric.needs.items()):
            continue
        if metric.compute not in results:
            given = (getattr(inputs, field) for field in metric.needs)
            results[metric.compute] = metric.compute(*given)
        result = results[metric.compute]
        found[name] = getattr(result, metric.part) if metric.part else result
        if metric.error:
            found[error_name(name)] = getattr(result, metric.error)
    return found


def has_inputs(inputs: Inputs, needs: Iterable[tuple[str, int]]) -> bool:
    """Whether all needed fields are known and have enough rows."""
    given = ((getattr(inputs, field), fewest) for field, fewest in needs)
    return all(value is not None and len(value) >= fewest for value, fewest in given)
