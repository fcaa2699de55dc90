"""Latents in one file for each picture.

    CLASS/NAME.pt                          MeanFlow: "image" [2c, h, w], mean and std; "label"
    00000/img-mean-std-00000000.npy        EDM2, REPA: [2c, h, w], mean and std
    dataset.json                           {"labels": [["00000/img-mean-std-00000000.npy", 7], ...]}

MeanFlow (arXiv:2505.13447) reads the files in the order of the folder; here they are sorted.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from fewstep.data.latent_files.files import STD, Latent, LatentFiles, name_some, one_number
from fewstep.weights.mapped import read_json
from fewstep.weights.tensors import read_tensors

LABELS = "dataset.json"


def torch_files(folder: Path, files: Sequence[str]) -> LatentFiles:
    """One `.pt` for each picture."""

    def read(number: int) -> Latent:
        tensors = read_tensors(folder / files[number])
        if "image" not in tensors or tensors.keys() - {"image", "label"}:
            raise ValueError(f"it has {', '.join(tensors)}; it should have image and label")
        return Latent(tensors["image"][None], one_number(tensors.get("label")))

    words = "one .pt for each picture"
    return LatentFiles(words, STD, files, len(files), read, files.__getitem__)


def numpy_files(folder: Path, files: Sequence[str]) -> LatentFiles:
    """One `.npy` for each picture, and the labels of all in dataset.json."""
    labels = read_labels(folder / LABELS, files)

    def read(number: int) -> Latent:
        latent = np.load(folder / files[number], allow_pickle=False)
        label = labels.get(files[number])
        return Latent(latent[None], one_number(None if label is None else np.asarray(label)))

    beside = [LABELS] if (folder / LABELS).exists() else []
    words = f"one .npy for each picture, {'labels in' if labels else 'without'} {LABELS}"
    return LatentFiles(words, STD, [*files, *beside], len(files), read, files.__getitem__)


def read_labels(path: Path, files: Sequence[str]) -> Mapping[str, object]:
    """The label of each file by its name; {} without labels.

    Raises ValueError unless each file has one label, and each label a file.
    """
    if not path.exists():
        return {}
    try:
        labels = read_json(path.read_bytes())["labels"]
        named = {} if labels is None else dict(labels)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f'{path} cannot be read ({type(error).__name__}: {error}); it should be {{"labels": '
            "[[FILE, CLASS], ...]}"
        ) from error
    wrong = sorted(named.keys() ^ set(files)) if named else []
    if wrong or len(named) != len(labels or ()):
        raise ValueError(
            f"{path} and the files beside it differ: {name_some(wrong) or 'a file has two labels'} "
            f"({len(labels)} labels, {len(files)} files); restore what is missing, or remove both"
        )
    return named
