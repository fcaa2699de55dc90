"""References: the features of real images that samples are measured against.

A reference is the training split, the held-out split, both, the training split of another data set
of the same size (`folder:PATH`), or a file (eval/published.py). A file
that has only statistics allows only the Frechet distance. Each reference is computed once and kept
in the data folder, in a file whose name hashes all that the reference depends on.
"""

import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from fewstep.data import (
    Dataset,
    Selection,
    Split,
    load_selection,
    protocol_name,
    selection_of,
    short_hash,
)
from fewstep.data.spaces.space import Space
from fewstep.eval.features.feature_network import Extract, FeatureNetwork
from fewstep.eval.metrics.frechet import Statistics, frechet_distance
from fewstep.eval.metrics.memorisation import fewest_held_out
from fewstep.eval.metrics.moments import (
    Moments,
    empty_moments,
    final_statistics,
    merge_moments,
    update_moments,
)
from fewstep.eval.published import (
    check_published,
    choose_part,
    published_statistics,
    read_published,
)
from fewstep.progress import progress_bar
from fewstep.training.cluster.processes import true_everywhere
from fewstep.training.storage.seal import (
    check_array,
    find_kept_file,
    read_sealed,
    warn_if_unwritable,
    write_sealed,
)
from fewstep.weights.tensors import file_sha256

FOLDER = "references"
SPLITS = ("train", "test", "all")
STATISTICS = ".npz"
# Real images, and samples, that metrics use whose cost is a product of counts.
LARGEST_NEIGHBOURHOOD = 5_000
# Training images that samples are compared with to find copies; of more, a fixed random part.
LARGEST_MEMORY = 60_000
CHUNK = 8_192  # images whose features are in memory at once
SEED = 0
HASH_BYTES = 2**26  # read at once
AGAIN = "delete it, and it is computed again"


class Reference(NamedTuple):
    """What samples are measured against.

    statistics: of all images of the reference; the count is 0 if a file does not say it.
    neighbourhood: features [N, D] of some of these images; N is 0 if only statistics are known.
    train, held_out: features of both splits, to find copies; without rows if they cannot be used.
    floor: Frechet distance between two parts of the reference; NaN if unknown.
    """

    statistics: Statistics
    neighbourhood: np.ndarray
    train: np.ndarray
    held_out: np.ndarray
    floor: float


def measured_against(
    config: ConfigDict, dataset: Dataset | None, writable: bool = True
) -> tuple[Dataset | None, str]:
    """The data set and the split that samples are measured against, or the file of statistics.

    dataset: that of the run. If `evaluate.reference` names another data set, opens it, at the size
    of the run's pictures and by the run's rules. writable: whether it may be decoded into data.dir.
    Raises as `load_selection` does.
    """
    reference = config.evaluate.reference
    if ":" not in reference or reference.endswith(STATISTICS):
        return dataset, reference
    chosen = selection_of(config.data)._replace(name=reference, posterior="")
    return reference_dataset(chosen, f"evaluate.reference={reference}", writable), SPLITS[0]


def reference_dataset(selection: Selection, field: str, writable: bool = True) -> Dataset:
    """The data set of a reference, which `field` names. Raises as `load_selection` does."""
    try:
        return load_selection(selection, writable)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{field}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{field}: {error}") from error


def check_reference(reference: str, dataset: Dataset | None, features: str, space: Space) -> None:
    """Raises ValueError or FileNotFoundError for a reference that cannot be used."""
    if reference.endswith(STATISTICS):
        if not Path(reference).is_file():
            raise FileNotFoundError(
                f"evaluate.reference={reference} does not exist; check the path"
            )
        check_published(Path(reference), features, space)
    elif reference not in SPLITS:
        raise ValueError(
            f"evaluate.reference={reference} is none of {', '.join(SPLITS)}, nor another data set "
            "such as folder:PATH, nor an .npz of statistics or images"
        )
    elif dataset is not None and not dataset.has_pictures:
        raise ValueError(
            f"evaluate.reference={reference}: {dataset.name} has latents and no pictures; measure "
            "against a folder of pictures (evaluate.reference=folder:PATH), against an .npz of "
            "statistics or pictures, or draw samples only (evaluate.features=none)"
        )
    elif reference == "test" and dataset is not None and dataset.test is None:
        raise ValueError(
            f"evaluate.reference=test: {dataset.name} has no held-out split; use train or all"
        )


def reference_name(reference: str, dataset: Dataset | None) -> str:
    """The name of a reference in a protocol: a file's name, or a data set and its split."""
    if reference.endswith(STATISTICS):
        return Path(reference).name
    # The protocol has the hash of the images, not the place where they lie.
    part = "all images" if reference == "all" else f"{reference} split"
    return f"{protocol_name(dataset.name)}, {part}"


def reference_splits(reference: str, dataset: Dataset) -> list[Split]:
    """The splits of a reference."""
    splits = {"train": [dataset.train], "test": [dataset.test]}
    both = [dataset.train] + ([dataset.test] if dataset.test is not None else [])
    return splits.get(reference, both)


def reference_sha256(reference: str, dataset: Dataset | None) -> str:
    """sha256 of the images of a reference, or of its file."""
    if reference.endswith(STATISTICS):
        return file_sha256(reference)
    total = hashlib.sha256()
    for split in reference_splits(reference, dataset):
        rows = max(HASH_BYTES // split.images[0].nbytes, 1)
        for start in range(0, len(split.images), rows):
            total.update(np.ascontiguousarray(split.images[start : start + rows]))
    return total.hexdigest()


def load_reference(
    reference: str,
    dataset: Dataset | None,
    network: FeatureNetwork,
    extract: Extract,
    measurement: Mapping[str, Any],
    root: Path,
    read_only: Path | None = None,
) -> Reference:
    """The reference of a measurement, read from its file under root, or computed and written there.

    read_only: another folder like root, where the file may be instead. Raises ValueError, and does
    not change the file, if it cannot be read or belongs to another measurement.
    """
    if reference.endswith(STATISTICS):
        return published_reference(Path(reference), network, extract)
    readable = re.sub(r"[^A-Za-z0-9]+", "_", dataset.name).strip("_")[-60:]
    # Features of the split that is not the reference are in the file too.
    key = {**measurement, "all_sha256": reference_sha256("all", dataset)}
    for free in ("labels", "agreement"):
        key.pop(free, None)
    source = {"key": short_hash(key)}
    own = root / FOLDER / f"{readable}-{network.name}-{source['key']}.npz"
    path = find_kept_file(own, root, read_only)
    if not true_everywhere(path.exists()):
        # All processes compute features together, so either all of them read or all compute.
        computed = compute_reference(reference, dataset, network, extract, measurement["samples"])
        write_reference(path := own, computed, source)
        if not path.exists():
            return computed
    return read_reference(path, source, network.dimension)


def read_reference(path: Path, source: Mapping[str, Any], dimension: int) -> Reference:
    """The reference in a file. Raises ValueError unless it is whole and made from `source`.

    dimension: D of its features.
    """
    arrays = read_sealed(path, source, AGAIN)
    shapes = {"mean": (dimension,), "covariance": (dimension, dimension)}
    shapes |= dict.fromkeys(Reference._fields[1:-1], (None, dimension))
    missing = [name for name in (*shapes, "count", "floor") if name not in arrays]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}; {AGAIN}")
    for name, shape in shapes.items():
        check_array(path, name, arrays[name], np.floating, shape, AGAIN)
    check_array(path, "count", arrays["count"], np.integer, (), AGAIN)
    if arrays["floor"].shape or arrays["floor"].dtype != np.float64:
        raise ValueError(f"{path}: floor is {arrays['floor'].dtype}, not one number; {AGAIN}")
    statistics = Statistics(arrays["mean"], arrays["covariance"], int(arrays["count"]))
    others = [arrays[field] for field in Reference._fields[1:-1]]
    return Reference(statistics, *others, floor=float(arrays["floor"]))


def write_reference(path: Path, computed: Reference, source: Mapping[str, Any]) -> None:
    """Writes a reference in process 0, and in processes that do not see its file."""
    statistics, *others = computed
    arrays = statistics._asdict() | dict(zip(Reference._fields[1:], others, strict=True))
    if jax.process_index() == 0:
        with warn_if_unwritable(path):
            write_sealed(path, source, **arrays)
    multihost_utils.sync_global_devices("the reference is written")
    if jax.process_index() > 0 and not path.exists():
        with warn_if_unwritable(path):
            write_sealed(path, source, **arrays)


def published_reference(path: Path, network: FeatureNetwork, extract: Extract) -> Reference:
    """The reference in a published file: its statistics or those of its images, and some features.

    Raises ValueError that names the file if it has neither images nor statistics of these features.
    """
    arrays = read_published(path)
    part = choose_part(path, arrays, network.name, network.dimension)
    none = np.empty((0, network.dimension), np.float32)
    near, moments = [none], empty_moments(network.dimension)
    images = arrays.get("arr_0", np.empty((0, 1, 1, 1), np.uint8))
    is_near = neighbourhood_mask(len(images))
    for start in range(0, len(images) if part == "arr_0" else 0, CHUNK):
        features = extract(images[start : start + CHUNK])[0]
        moments = update_moments(moments, features)
        near.append(features[is_near[start : start + CHUNK]])
    if part == "mu":
        if len(images):
            near.append(extract(images[is_near])[0])
        statistics = published_statistics(arrays)
    else:
        statistics = final_statistics(moments)
    return Reference(statistics, np.concatenate(near), none, none, math.nan)


def compute_reference(
    reference: str, dataset: Dataset, network: FeatureNetwork, extract: Extract, samples: int
) -> Reference:
    """The reference of a data set, by one pass over both splits."""
    members = reference_splits(reference, dataset)
    total = sum(len(split.labels) for split in members)
    order = np.random.default_rng(SEED).permutation(total)
    in_floor = mask(total, order[: min(samples, total // 2)])
    is_near = neighbourhood_mask(total)
    remembered = memorisation_masks(dataset)
    parts = [empty_moments(network.dimension)] * 2
    none = np.empty((0, network.dimension), np.float32)
    near, kept, done = [none], {"train": [none], "test": [none]}, 0
    for name, split in (("train", dataset.train), ("test", dataset.test)):
        for rows, features in split_features(split, extract, f"{name} images"):
            kept[name].append(features[remembered[name][rows]])
            if not any(split is member for member in members):
                continue
            place = slice(done, done + len(features))
            near.append(features[is_near[place]])
            parts = [
                update_moments(part, features[in_floor[place] == chosen])
                for part, chosen in zip(parts, (True, False), strict=True)
            ]
            done += len(features)
    return Reference(
        statistics=final_statistics(merge_moments(*parts)),
        neighbourhood=np.concatenate(near),
        train=np.concatenate(kept["train"]),
        held_out=np.concatenate(kept["test"]),
        floor=distance_of_parts(*parts),
    )


def distance_of_parts(first: Moments, second: Moments) -> float:
    """Their Frechet distance; NaN if one has too few images for a covariance."""
    if min(first.count, second.count) < 2:
        return math.nan
    return frechet_distance(final_statistics(first), final_statistics(second))


def neighbourhood_mask(count: int) -> np.ndarray:
    """bool [count]: the images, real or generated, of metrics whose cost is a product of counts.

    They are a random part, since images often come in the order of their classes.
    """
    return mask(count, np.random.default_rng(SEED).permutation(count)[:LARGEST_NEIGHBOURHOOD])


def memorisation_masks(dataset: Dataset) -> dict[str, np.ndarray]:
    """For each split, a mask of the images that samples are compared with to find copies.

    The masks are False everywhere if the held-out images are too few to show how near a new image
    comes to a training image.
    """
    counts = {"train": len(dataset.train.labels)}
    counts["test"] = 0 if dataset.test is None else len(dataset.test.labels)
    if counts["test"] < fewest_held_out():
        return {name: np.zeros(count, bool) for name, count in counts.items()}
    order = np.random.default_rng(SEED).permutation
    return {name: mask(count, order(count)[:LARGEST_MEMORY]) for name, count in counts.items()}


def mask(count: int, chosen: np.ndarray) -> np.ndarray:
    """bool [count], True at the chosen places."""
    return np.isin(np.arange(count), chosen)


def split_features(
    split: Split | None, extract: Extract, description: str
) -> Iterator[tuple[slice, np.ndarray]]:
    """Yields (rows of the split, their features) in chunks; nothing for no split."""
    count = 0 if split is None else len(split.labels)
    starts = range(0, count, CHUNK)
    silent = len(starts) < 2 or jax.process_index() > 0
    for start in progress_bar(starts, desc=description, silent=silent, leave=False):
        rows = slice(start, min(start + CHUNK, count))
        yield rows, extract(np.asarray(split.images[rows]))[0]
