"""Latents in files of many pictures.

    latents_rank00_shard000.safetensors    LightningDiT: "latents" and "latents_flip" [n, c, h, w],
                                           draws from the posteriors, and "labels" [n]
    train-00000-of-00010.array_record      records of .npz: "image" [2c, h, w], "label"

LightningDiT (arXiv:2501.01423) draws each latent once. Its `latents_stats.pt` has the mean and the
deviation of each channel, [1, c, 1, 1].
"""

import functools
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fewstep.data.latent_files.files import DRAWS, STD, Latent, LatentFiles, one_number
from fewstep.weights.archives import read_arrays
from fewstep.weights.tensors import read_tensors

LATENTS, FLIPPED, LABELS = "latents", "latents_flip", "labels"
STATISTICS = "latents_stats.pt"
SAMPLED = 256  # latents whose channels are compared with the statistics
COMPARED = 16  # latents of a file whose mirror images are compared with them


def safetensors_files(folder: Path, files: Sequence[str]) -> LatentFiles:
    """Shards of draws, of both views if they have them."""
    opened = functools.lru_cache(maxsize=8)(lambda file: read_shard(folder / file))

    def read(file: str, row: int) -> Latent:
        shard = opened(file)
        views = [shard[name][row] for name in (LATENTS, FLIPPED) if name in shard]
        label = shard[LABELS][row] if LABELS in shard else None
        return Latent(np.stack(views), one_number(label))

    counts = [len(opened(file)[LATENTS]) for file in files]
    check_statistics(folder / STATISTICS, opened(files[0])[LATENTS])
    return several(".safetensors of many draws", DRAWS, files, counts, read)


def read_shard(path: Path) -> Mapping[str, np.ndarray]:
    """The tensors of a shard. Raises ValueError that names the file."""
    tensors = read_tensors(path)
    if LATENTS not in tensors or tensors.keys() - {LATENTS, FLIPPED, LABELS}:
        raise ValueError(
            f"{path} has {', '.join(tensors)}; it should have {LATENTS}, {LABELS} and perhaps "
            f"{FLIPPED}"
        )
    sizes = {name: len(array) for name, array in tensors.items()}
    if len(set(sizes.values())) > 1 or tensors[LATENTS].ndim != 4:
        raise ValueError(
            f"{path} has {sizes} rows; each latent needs one of each; restore the file"
        )
    if FLIPPED in tensors:
        check_mirrored(path, *(tensors[name][:COMPARED] for name in (LATENTS, FLIPPED)))
    return tensors


def check_mirrored(path: Path, latents: np.ndarray, flipped: np.ndarray) -> None:
    """Raises ValueError if these are no latents of mirrored pictures.

    A mirrored latent is another one, since encoders are not mirror-symmetric.
    """
    if latents.shape != flipped.shape:
        found = f"the shape {list(flipped.shape)}, and the latents have {list(latents.shape)}"
    elif np.array_equal(latents, flipped):
        found = "the latents once more"
    elif np.array_equal(latents[..., ::-1], flipped):
        found = "mirrored latents"
    else:
        return
    raise ValueError(
        f"{path}: {FLIPPED} has {found}, not the latents of mirrored pictures; remove it and train "
        "without data.flip, or encode the mirrored pictures"
    )


def check_statistics(path: Path, latents: np.ndarray) -> None:
    """Raises ValueError if the statistics beside the latents are those of others."""
    if not path.exists():
        return
    recorded, some = read_tensors(path), latents[:: max(len(latents) // SAMPLED, 1)]
    here = {"mean": some.mean((0, 2, 3)), "std": some.std((0, 2, 3))}
    if recorded.keys() != here.keys() or any(recorded[k].size != here[k].size for k in here):
        raise ValueError(f"{path} has {', '.join(recorded)}, not the mean and std of each channel")
    mean, std = (recorded[name].reshape(-1) for name in ("mean", "std"))
    ratio = here["std"] / np.maximum(std, 1e-12)
    if (np.abs(here["mean"] - mean) > std).any() or (np.abs(np.log2(ratio)) > 1).any():
        raise ValueError(
            f"{path} belongs to other latents than the files beside it: the channels have means "
            f"{np.round(here['mean'], 2).tolist()}, and {np.round(mean, 2).tolist()} there; "
            "restore the files of one data set"
        )


def array_record_files(folder: Path, files: Sequence[str]) -> LatentFiles:
    """Files of records, each an .npz of one picture."""
    from array_record.python.array_record_module import ArrayRecordReader

    @functools.lru_cache(maxsize=8)
    def opened(file: str) -> Any:
        try:
            return ArrayRecordReader(str(folder / file))
        except Exception as error:
            raise ValueError(
                f"{folder / file} is damaged, or no ArrayRecord ({error}); restore the file"
            ) from error

    def read(file: str, row: int) -> Latent:
        (content,) = opened(file).read([row])
        arrays = read_arrays(io.BytesIO(content))
        if "image" not in arrays or arrays.keys() - {"image", "label"}:
            raise ValueError(f"it has {', '.join(arrays)}; it should have image and label")
        return Latent(arrays["image"][None], one_number(arrays.get("label")))

    counts = [opened(file).num_records() for file in files]
    if 0 in counts:  # as the reader says of one that is cut short
        raise ValueError(
            f"{folder / files[counts.index(0)]} has no records, so it is damaged, or its writer "
            "was not closed; restore the file"
        )
    return several("ArrayRecord of .npz", STD, files, counts, read)


def several(
    words: str,
    posterior: str,
    files: Sequence[str],
    counts: Sequence[int],
    read: Callable[[str, int], Latent],
) -> LatentFiles:
    """Files of `counts` latents, as one sequence. read: (file, row) -> the latent."""
    ends = np.cumsum(counts)

    def find(number: int) -> tuple[str, int]:
        place = int(np.searchsorted(ends, number, side="right"))
        return files[place], number - int(ends[place]) + counts[place]

    def place(number: int) -> str:
        file, row = find(number)
        return f"{file}, record {row}"

    return LatentFiles(words, posterior, files, int(ends[-1]), lambda i: read(*find(i)), place)
