"""Files of an evaluation: the result with its first samples, and pictures of these."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from fewstep.data import Dataset
from fewstep.data.spaces.space import Space
from fewstep.eval.report.evaluation import sample_source
from fewstep.eval.report.results import Result, save_results, to_json_types
from fewstep.eval.sampling import Wanted
from fewstep.files import write_png
from fewstep.training.storage.seal import write_sealed

GRID_COLUMNS = 10


def save_evaluation(
    folder: Path, result: Result, space: Space, *, x: np.ndarray, **others: np.ndarray
) -> None:
    """Writes a result as JSON, and its first samples as arrays and as a picture.

    x: the samples [n, ...], finished. others: further arrays of the file.
    """
    path = folder / f"{result['id']}.json"
    write_sealed(path.with_suffix(".npz"), sample_source(to_json_types(result)), x=x, **others)
    write_png(path.with_suffix(".png"), space.show(x, GRID_COLUMNS))
    save_results(path, result)


def save_comparison(
    path: Path,
    samples: Mapping[int, np.ndarray],
    real: Mapping[str, np.ndarray],
    config: ConfigDict,
    space: Space,
) -> None:
    """Writes one picture of the first samples at each number of steps, and of real examples.

    All samples start from the same noise and labels. real: real examples by title, or {}.
    """
    rows = {
        f"{config.method}, {steps} step{'s' if steps > 1 else ''}": made[: space.compared]
        for steps, made in samples.items()
    }
    write_png(path, space.compare({**rows, **real}))


def originals(wanted: Wanted, dataset: Dataset | None, count: int) -> dict[str, np.ndarray]:
    """The first images that were reconstructed, else real examples of the samples' classes."""
    if wanted.images is not None:
        return {"original": wanted.images[:count]}
    return real_examples(dataset, wanted.labels[:count])


def real_examples(dataset: Dataset | None, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Real examples of the classes `labels` [N], by title; {} if a class has too few."""
    if dataset is None or not dataset.has_pictures:
        return {}
    own = dataset.train.labels if np.any(labels >= 0) else np.full(len(dataset.train.labels), -1)
    members = {c: np.flatnonzero(own == c).tolist() for c in set(labels.tolist())}
    if any(len(members[c]) < np.count_nonzero(labels == c) for c in members):
        return {}
    return {"real": dataset.train.images[np.array([members[c].pop(0) for c in labels.tolist()])]}
