"""Reads the evaluations in a run's folder: results, and the first samples of each.

A result counts if its file has its name, if it has the expected fields (eval.report.results), and
if the run's config agrees with it. Its samples carry a seal (training.storage.seal) with a hash of
the result.
"""

from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from fewstep.data import short_hash, space_of
from fewstep.data.spaces.space import Space
from fewstep.eval.metrics.protocol import Protocol
from fewstep.eval.report.results import AGAIN, Result, load_result
from fewstep.messages import common_differences, shell_flags
from fewstep.training.cluster.processes import warn_once
from fewstep.training.storage.identity import as_dict, flatten_fields, read_identity
from fewstep.training.storage.seal import check_array, read_sealed
from fewstep.training.storage.workdir import load_config

FOLDER = "eval"
# Fields that a config and its results share.
IDENTITY = ("run", "method", "seed", "data.name")
CHANNELS = (1, 3)  # of images that have a picture


class Evaluation(NamedTuple):
    """A result and its file."""

    path: Path
    result: Result

    @property
    def space(self) -> Space:
        """The space of its samples, whatever their size."""
        return space_of(self.result["data"])

    @property
    def measurement(self) -> Mapping[str, Any]:
        """How it was measured."""
        return self.result["protocol"]["measurement"]

    @property
    def sampling(self) -> dict[str, Any]:
        """How it was sampled, without the number of sampling steps."""
        return {k: v for k, v in self.result["protocol"]["sampling"].items() if k != "steps"}

    @property
    def steps(self) -> int:
        """The number of sampling steps."""
        return self.result["protocol"]["sampling"]["steps"]


def load_evaluations(folder: Path, ids: Container[str] | None = None) -> list[Evaluation]:
    """The evaluations in a run's folder, the newest last.

    Leaves out, with a warning, results that are damaged or belong to another run. Raises ValueError
    if one of these is among `ids`, or if no result is left.
    """
    config = load_config(folder)
    paths = [p for p in (folder / FOLDER).glob("*.json") if ids is None or p.stem in ids]
    paths.sort(key=lambda p: (p.stat().st_mtime_ns, p.name))
    if not paths:
        raise ValueError(
            f"{folder} has not been evaluated; run {shell_flags('evaluate', workdir=folder)}"
        )
    run = read_identity(folder)
    found, errors = [], []
    for path in paths:
        try:
            evaluation = Evaluation(path, load_result(path))
            check_matches_run(evaluation, config, "" if run is None else run.id)
            found.append(evaluation)
        except ValueError as error:
            errors.append(error)
    if errors and (ids is not None or not found):
        raise errors[0]
    for error in errors:
        warn_once(f"{error}; left out")
    return found


def check_matches_run(evaluation: Evaluation, config: ConfigDict, run: str) -> None:
    """Raises ValueError unless a result belongs to its file and to a run of this config.

    run: the id of the run, "" if it is not known. Results of older versions have no id of a run.
    """
    path, result, sampling = *evaluation, evaluation.result["protocol"]["sampling"]
    protocol = Protocol(evaluation.measurement, sampling)
    if not path.stem == result["id"] == protocol.id or result["metric"] != protocol.metric:
        raise ValueError(
            f"{path} holds the result {result['id']} ({result['metric']}), but the protocol of "
            f"{protocol.id}; {AGAIN}"
        )
    own = {**flatten_fields(as_dict(config)), "run": run or result.get("run")}
    if run and run == result.get("run"):
        own.pop("data.name")  # images may have been moved since
    its = {**sampling, "data.name": result["data"], "run": result.get("run") or run or None}
    recorded = {field: own[field] for field in IDENTITY if field in own}
    found = [
        f"{field} {there}, not {here}" for field, here, there in common_differences(recorded, its)
    ]
    if found:
        raise ValueError(f"{path} is of another run ({'; '.join(found)}); {AGAIN}")


def sample_source(result: Result) -> dict[str, str]:
    """The source in the seal of a result's samples: a hash of the whole result."""
    return {"result": short_hash(result)}


def read_samples(evaluation: Evaluation) -> dict[str, np.ndarray]:
    """The arrays x, y and way (the trajectory) of an evaluation.

    Raises FileNotFoundError, or ValueError that names the file.
    """
    path = evaluation.path.with_suffix(".npz")
    remedy = f"delete it and {evaluation.path.name}, and evaluate the run again"
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; evaluate the run again")
    arrays = read_sealed(path, sample_source(evaluation.result), remedy)
    missing = {"x", "y", "way"} - arrays.keys()
    if missing:
        raise ValueError(f"{path} lacks {', '.join(sorted(missing))}; {remedy}")
    shown = ["x", "way"] if arrays["way"].size else ["x"]
    example = evaluation.space.example
    any_size = (None, *[None] * len(example.shape))
    for name in shown:
        check_array(path, name, arrays[name], example.dtype.type, any_size, remedy)
        seen = arrays[name].size > 0
        if evaluation.space.image and not (seen and arrays[name].shape[3] in CHANNELS):
            raise ValueError(f"{path}: {name} has no images of 1 or 3 channels; {remedy}")
        if not seen:
            raise ValueError(f"{path}: {name} has no samples; {remedy}")
    check_array(path, "y", arrays["y"], np.integer, arrays["x"].shape[:1], remedy)
    return arrays
