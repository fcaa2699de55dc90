"""Latents that `--mode=prepare` has made, as a data set of their own, without their pictures.

    FOLDER/manifest.json, FOLDER/train_images*.npy, ...    as data/encoded.py writes them
    FOLDER/codec.json                                      the identity of their codec

They are read where they lie. If they were copied, which changes the times of files, they are hashed
once, and the manifest gets the new stamps.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fewstep.data.arrays.array_cache import REMEDY, is_unchanged_split, open_dataset
from fewstep.data.arrays.dataset import Dataset, Posteriors
from fewstep.data.arrays.files import claimed
from fewstep.data.arrays.manifest import (
    MANIFEST,
    DamagedError,
    Manifest,
    Record,
    read_manifest,
    write_manifest,
)
from fewstep.data.arrays.missing_shards import note_hashed_again
from fewstep.data.arrays.shards import Source, verify_split
from fewstep.data.arrays.undecoded import Undecoded, manifest_header, split_files
from fewstep.data.encoded import CODEC

PREPARED = MANIFEST
RANK = 5  # of a posterior: views, moments, height, width, channels


def prepared_latents(folder: Path, name: str, posterior: str, writable: bool = True) -> Dataset:
    """The latents in a folder of --mode=prepare. Raises ValueError if they are damaged.

    writable: whether the manifest may get the stamps of files that were copied.
    """
    if posterior:
        raise ValueError(
            f"{folder} says what its latents are; leave data.posterior={posterior} out"
        )
    try:
        content = json.loads((folder / MANIFEST).read_bytes())
        counts = {split: own["identity"]["count"] for split, own in content["splits"].items()}
        shape, dtype = tuple(content["image_shape"]), content.get("dtype")
        classes, folder_then = tuple(content["classes"]), content["folder"]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{folder / MANIFEST} is damaged ({error}); {REMEDY}") from error
    if dtype != "float16" or len(shape) != RANK or "train" not in counts:
        raise ValueError(
            f"{folder} has prepared pictures, no latents, or its preparation has not ended; name a "
            "folder whose name has _as_latents-"
        )
    data = Undecoded(
        name=name,
        origin=None,
        image_shape=shape,
        num_classes=np.iinfo(np.int32).max,
        splits={split: Source(count, refuse) for split, count in counts.items()},
        classes=classes,
        dtype=np.dtype(dtype),
    )
    try:
        header = manifest_header(data, folder) | {"folder": folder_then}  # it may have moved
        dataset = open_dataset(data, folder, verified_records(data, folder, header, writable))
    except DamagedError as error:
        raise ValueError(f"{error}; {REMEDY}") from error
    found = len(classes) or int(dataset.train.labels.max(initial=-1)) + 1
    return dataset._replace(
        num_classes=found, moments=Posteriors(dataset.train.images, read_codec(folder))
    )


def verified_records(
    data: Undecoded, folder: Path, header: Mapping[str, Any], writable: bool
) -> Mapping[str, Record]:
    """Records of the splits; hashes files whose stamps have changed, and keeps the new stamps.

    One process hashes them, and the others wait for its stamps. Raises DamagedError.
    """
    splits = read_manifest(folder / MANIFEST, header).splits
    if all(is_unchanged_split(data, folder, *item) for item in splits.items()):
        return splits
    if not writable:
        return verify_splits(data, folder, splits)
    with claimed(folder):
        found = read_manifest(folder / MANIFEST, header)  # again: another process may have hashed
        splits = verify_splits(data, folder, found.splits)
        if splits != found.splits:
            try:
                write_manifest(folder / MANIFEST, header, Manifest(splits, found.unfinished))
            except OSError as error:
                note_hashed_again(folder, error)
    return splits


def verify_splits(data: Undecoded, folder: Path, splits: Mapping[str, Record]) -> dict[str, Record]:
    """Records with fresh hashes of the files whose stamps have changed. Raises DamagedError."""
    return {
        split: verify_split(split_files(data, folder, split, record), record)
        for split, record in splits.items()
    }


def read_codec(folder: Path) -> dict[str, str]:
    """The identity of the codec of prepared latents; {} if an older version made them."""
    try:
        return json.loads((folder / CODEC).read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ValueError(f"{folder / CODEC} is damaged ({error}); {REMEDY}") from error


def refuse(start: int, stop: int) -> list:
    """Prepared latents are never decoded again."""
    raise ValueError("prepared latents have no source")
