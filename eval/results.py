"""Results of an evaluation as a JSON file.

A result is a dict of plain values: `id`, `metric`, `metrics` by name, the `protocol` they were
measured by (eval.protocol), and what else eval.evaluate knows of the run.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from training.files import write_json

Result = Mapping[str, Any]


def save_results(path: Path, results: Mapping[str, Any]) -> None:
    """Write results as JSON, whole or not at all; an older file is replaced in one move.

    Keys become strings, NumPy numbers and arrays plain ones. Raises ValueError, and leaves the
    older file alone, if a number is not finite or a value has no form in JSON, naming the field.
    """
    write_json(path, plain(results))


def load_results(path: Path) -> dict[str, Any]:
    """The results of `save_results`.

    Raises FileNotFoundError if there is no such file, ValueError if it is not a JSON object.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; evaluate the run first")
    try:
        results = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); evaluate the run again") from error
    if not isinstance(results, dict):
        raise ValueError(f"{path} holds no JSON object; evaluate the run again")
    return results


def plain(value: Any, field: str = "") -> Any:
    """`value` in the types of JSON; `field` is its dotted name in an error."""
    if isinstance(value, Mapping):
        return {str(key): plain(item, f"{field}.{key}".lstrip(".")) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist(), field)
    if isinstance(value, list | tuple):
        return [plain(item, f"{field}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{field} is {value}; results hold finite numbers only")
    if value is not None and not isinstance(value, bool | int | float | str):
        raise ValueError(f"{field} is a {type(value).__name__}, which JSON cannot hold")
    return value
