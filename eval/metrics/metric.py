"""The contract of a metric: what it is computed from, and how its number is shown and compared.

`Inputs` is all that is known of one set of samples and of the real images. A metric names the
fields that it needs in the order in which its function takes them, so the function itself stays
mathematics on arrays. Several metrics may be parts of what one function returns.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from fewstep.eval.metrics.frechet import Statistics

# Which numbers are better: of a metric that is no judgement, neither.
LESS, MORE, NEITHER = "less", "more", ""
ARROWS = {LESS: "\u00a0↓", MORE: "\u00a0↑", NEITHER: ""}


class Inputs(NamedTuple):
    """What metrics are computed from; None where it is not known.

    statistics: of all samples. real_statistics: of all real images.
    features: [N, D] of the first samples. real_features: [M, D] of some real images.
    train_features, held_out_features: of both splits, to look for copies.
    logits: [N, classes] of the feature network. classes: [N] that a classifier of real images sees.
    labels: [N] that the samples were made for.
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


class Metric(NamedTuple):
    """A number of samples; its name in files and logs is its key in METRICS.

    compute: (the inputs that it needs) -> float, or what has the number as its field `part`.
    needs: field of Inputs, in the order of the arguments -> the fewest rows that it must have.
    heading: of its column. format: of its values, as `str.format` takes it.
    better: LESS, MORE or NEITHER.
    part: "" if compute returns the number itself. error: the field with its standard error, which
    results hold as NAME_error; "" for none.
    in_text: whether the narrow table in plain text has it. note: how a page says to read it.
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


def error_name(name: str) -> str:
    """What results call the standard error of a metric."""
    return f"{name}_error"


def logged_name(name: str, steps: int) -> str:
    """What the log calls a metric of samples in so many steps: frechet_4."""
    return f"{name}_{steps}"


def parse_logged_name(logged: str) -> tuple[str, str]:
    """The name of a metric and the number of steps in a name of `logged_name`."""
    name, _, steps = logged.rpartition("_")
    return name, steps


def measurements(metrics: Mapping[str, Metric], inputs: Inputs) -> dict[str, float]:
    """The metrics that the inputs allow, by name, and standard errors; each function runs once."""
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
    """Whether every field that is needed is known, and has enough rows."""
    given = ((getattr(inputs, field), fewest) for field, fewest in needs)
    return all(value is not None and len(value) >= fewest for value, fewest in given)
