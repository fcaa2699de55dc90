"""Results of an evaluation as a JSON file.

A result is a dict of plain values: `id`, `metric`, `metrics` by name, their `protocol`
(eval.metrics.protocol), and other facts about the run (eval.evaluate).

FIELDS says which values of a result are read, and what each must be. Files are checked, since they
may come from another version or another program, or be edited.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fewstep.files import write_json

Result = Mapping[str, Any]

# Larger numbers mean nothing, and neither a table nor a plot has room for them.
LARGEST_NUMBER, LARGEST_COUNT = 1e15, 2**53
ABSENT = object()  # the value of a field that a result lacks
SHOWN = 40  # letters of a value in an error
AGAIN = "delete it, and evaluate the run again"


class ValueKind(NamedTuple):
    """What a value must be, in words, and the function that checks it."""

    words: str
    holds: Callable[[Any], bool]


def is_usual_number(value: Any) -> bool:
    """Whether a value is a number of usual size."""
    return type(value) in (int, float) and abs(value) <= LARGEST_NUMBER


def is_count(value: Any) -> bool:
    """Whether a value is a whole number, 0 or more."""
    return type(value) is int and 0 <= value <= LARGEST_COUNT


TEXT = ValueKind("text", lambda value: isinstance(value, str))
TEXTS = ValueKind(
    "a list of texts",
    lambda value: isinstance(value, list) and all(isinstance(text, str) for text in value),
)
TRUTH = ValueKind("true or false", lambda value: isinstance(value, bool))
NUMBER = ValueKind(f"a number up to {LARGEST_NUMBER:g}", is_usual_number)
COUNT = ValueKind("a whole number, 0 or more", is_count)
SEED = ValueKind("a whole number", lambda value: type(value) is int and is_count(abs(value)))
STEPS = ValueKind("a whole number, 1 or more", lambda value: is_count(value) and value > 0)
OBJECT = ValueKind("an object", lambda value: isinstance(value, Mapping))

# Rows that an evaluation on a density may have beside its samples (eval/corrections.py), and what
# tables call them.
ROWS = {"weighted": "importance-weighted", "hmc": "after ten HMC steps", "smc": "tempered SMC"}
# dotted name -> kind of its value; a star stands for every name
FIELDS: dict[str, ValueKind] = {
    "id": TEXT,
    "data": TEXT,
    "images_seen": COUNT,
    "metric": TEXT,
    "protocol": OBJECT,
    "protocol.measurement": OBJECT,
    "protocol.sampling": OBJECT,
    "protocol.sampling.method": TEXT,
    "protocol.sampling.network": TEXT,
    "protocol.sampling.step": COUNT,
    "protocol.sampling.sampler": TEXT,
    "protocol.sampling.steps": STEPS,
    "protocol.sampling.guidance_scale": NUMBER,
    "protocol.sampling.seed": SEED,
    "metrics": OBJECT,
    "metrics.*": NUMBER,
    "real": OBJECT,
    "real.*": NUMBER,
    "prior": OBJECT,
    "prior.*": NUMBER,
    "rows": OBJECT,
    **{f"rows.{name}": OBJECT for name in ROWS},
    **{f"rows.{name}.*": NUMBER for name in ROWS},
    "warnings": TEXTS,
    "skipped": TEXT,
    "run": TEXT,
}
OPTIONAL = ("real", "prior", "rows", *(f"rows.{name}" for name in ROWS))
OPTIONAL += ("warnings", "skipped", "run")
# Further fields of results that have metrics.
MEASURED: dict[str, ValueKind] = {
    "protocol.measurement.features": TEXT,
    "protocol.measurement.weights": TEXT,
    "protocol.measurement.published_weights": TRUTH,
    "protocol.measurement.samples": STEPS,
    "protocol.measurement.labels": TEXT,
    "protocol.measurement.reference": TEXT,
    "protocol.measurement.reference_sha256": TEXT,
}


def save_results(path: Path, results: Mapping[str, Any]) -> None:
    """Writes results as JSON, whole or not at all, and replaces an older file in one move.

    Keys become strings, and NumPy numbers and arrays plain ones. Raises ValueError that names the
    field, and keeps the older file, if a number is not finite or JSON cannot hold a value.
    """
    write_json(path, to_json_types(results))


def load_results(path: Path) -> dict[str, Any]:
    """The results that `save_results` wrote.

    Raises FileNotFoundError if the file does not exist, and ValueError if it is not a JSON object
    of values that `save_results` writes.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; evaluate the run first")
    try:
        results = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}); {AGAIN}") from error
    if not isinstance(results, dict):
        raise ValueError(f"{path} holds no JSON object; {AGAIN}")
    try:
        return to_json_types(results)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {error}; {AGAIN}") from error


def load_result(path: Path) -> Result:
    """A result with the fields of FIELDS. Raises as `load_results`, and if a field is wrong."""
    result = load_results(path)
    faults = find_faults(result, FIELDS)
    if not faults and result["protocol"]["measurement"]:
        faults = find_faults(result, MEASURED)
    if faults:
        raise ValueError(f"{path} is no result of --mode=evaluate ({'; '.join(faults)}); {AGAIN}")
    return result


def find_faults(result: Result, fields: Mapping[str, ValueKind]) -> list[str]:
    """What is wrong with the fields of a result, in words; [] if nothing is."""
    found = {name: list(field_values(result, name)) for name in fields}
    wrong = [
        f"{field} is {short_json(value)}, not {fields[name].words}"
        for name, values in found.items()
        for field, value in values
        if value is not ABSENT and not fields[name].holds(value)
    ]
    missing = [
        field
        for name, values in found.items()
        for field, value in values
        if value is ABSENT and name not in OPTIONAL
    ]
    return wrong + [f"it lacks {', '.join(missing)}"] * bool(missing)


def field_values(result: Result, name: str) -> Iterator[tuple[str, Any]]:
    """Yields the field of a dotted name and its value; for a star, every field.

    Yields nothing if the parent of the field is no object, since that is a fault of the parent.
    """
    parent, _, last = name.rpartition(".")
    inside: Any = result
    for part in filter(None, parent.split(".")):
        inside = inside.get(part) if isinstance(inside, Mapping) else None
    if isinstance(inside, Mapping):
        for key in inside if last == "*" else [last]:
            yield f"{parent}.{key}".lstrip("."), inside.get(key, ABSENT)


def short_json(value: Any) -> str:
    """A value as JSON, cut short."""
    text = json.dumps(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def to_json_types(value: Any, field: str = "") -> Any:
    """The value in the types of JSON. field: its dotted name, for errors."""
    if isinstance(value, Mapping):
        return {
            str(key): to_json_types(item, f"{field}.{key}".lstrip("."))
            for key, item in value.items()
        }
    if isinstance(value, np.ndarray | np.generic):
        return to_json_types(value.tolist(), field)
    if isinstance(value, list | tuple):
        return [to_json_types(item, f"{field}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{field} is {value}; results hold only finite numbers")
    if isinstance(value, str) and not value.isascii():
        check_text(value, field)
    if value is not None and not isinstance(value, bool | int | float | str):
        raise ValueError(f"{field} is a {type(value).__name__}, which JSON cannot hold")
    return value


def check_text(text: str, field: str) -> None:
    """Raises ValueError for text that no file can hold, such as half a pair of UTF-16."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{field} is not Unicode ({error.reason})") from error
