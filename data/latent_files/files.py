"""The contract of a form of files with latents, and what of a folder is read."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fewstep.data.arrays.dataset import NULL_LABEL
from fewstep.data.folders.file_tree import holds

# What follows the means in the channels of a latent: standard deviations, log-variances, or
# nothing, if each latent is one draw from its posterior.
STD, LOG_VARIANCE, DRAWS = "std", "logvar", "draws"
POSTERIORS = (STD, LOG_VARIANCE, DRAWS)
BESIDE = ("dataset.json", "latents_stats.pt")  # read with the latents, and no latents themselves
NAMED = 3  # files that a message names


class Latent(NamedTuple):
    """One picture's record in a file.

    views: floating [V, K, h, w]: the picture's, and its mirror image's if there is one. Channels
    are the means, then what the form says. label: its class, -1 without one.
    """

    views: np.ndarray
    label: int = NULL_LABEL


class LatentFiles(NamedTuple):
    """The latents in a folder, in a fixed order.

    words: the form, for messages. posterior: what follows the means, one of POSTERIORS. files: all
    that the latents depend on, relative paths. count: of latents. read: number of a latent -> it.
    Raises ValueError, or anything for a damaged file. place: number of a latent -> where it lies.
    """

    words: str
    posterior: str
    files: Sequence[str]
    count: int
    read: Callable[[int], Latent]
    place: Callable[[int], str]


def list_files(folder: Path) -> list[str]:
    """The relative paths of the files of a folder at any depth, sorted, without hidden ones.

    Follows links to folders, except to those that the link lies in.
    """
    found = []
    above = {os.fspath(folder): (os.path.realpath(folder),)}  # real folders on the way to each
    for top, folders, names in os.walk(folder, followlinks=True):
        here = above.pop(top)
        inside = {name: os.path.realpath(os.path.join(top, name)) for name in folders}
        folders[:] = [n for n in folders if not (n.startswith(".") or holds(inside[n], here))]
        above |= {os.path.join(top, name): (*here, inside[name]) for name in folders}
        found += [Path(top, name) for name in names if not name.startswith(".")]
    return sorted(file.relative_to(folder).as_posix() for file in found)


def one_number(label: np.ndarray | None) -> int:
    """A label as an int; -1 for none. Raises ValueError unless it is one whole number from 0 on."""
    if label is None:
        return NULL_LABEL
    if label.size != 1 or not np.issubdtype(label.dtype, np.integer) or int(label.item()) < 0:
        raise ValueError(f"its label is {label.dtype} {label.tolist()!s:.40}, no class from 0 on")
    return int(label.item())


def name_some(names: Sequence[str]) -> str:
    """The first of several names, for a message."""
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")
