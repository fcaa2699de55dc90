"""Latents of a data set's training images, encoded once and kept on disk.

    DATA_DIR/arrays/NAME_as_latents-KEY/train_images.npy     float16 [N, 2, 2, h, w, c]

Axis 1 is the view: the image, then its mirror image, whose latent is not the mirrored latent. Axis
2 has mean and standard deviation of the posterior, raw: no scale of a network is in them. KEY is a
hash of the images and the codec. The arrays are otherwise those of data/arrays/array_cache.py:
written by shards, hashed, continued after an interruption.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fewstep.data.arrays.array_cache import decode, is_decoded, repair
from fewstep.data.arrays.dataset import Dataset, Posteriors
from fewstep.data.arrays.group import ALONE, ProcessGroup
from fewstep.data.arrays.local_copy import copy_arrays
from fewstep.data.arrays.shards import Source
from fewstep.data.arrays.undecoded import Undecoded
from fewstep.files import write_json

CODEC = "codec.json"  # the identity of the codec, for data sets of these latents alone
LATENTS = "latents"  # in the identity of a data set
FORM = "image and mirror image; mean, standard deviation; raw, float16"
VIEWS = 2
SHARD_ROWS = 8_192  # images in a file, and so what an interruption loses
STATISTICS_ROWS = (
    10_000  # images that the statistics of channels are computed from, as LightningDiT
)


class Encoder(NamedTuple):
    """A codec, as what encodes images.

    name: for messages. identity: what determines its latents, as JSON values. latent_shape: of one
    image, (h, w, c).
    encode: uint8 [n, H, W, C] -> mean and standard deviation, float32 [n, 2, h, w, c]; any n.
    """

    name: str
    identity: Mapping[str, Any]
    latent_shape: tuple[int, int, int]
    encode: Callable[[np.ndarray], np.ndarray]


def with_latents(
    dataset: Dataset, encoder: Encoder, root: Path, local: Path | None = None
) -> Dataset:
    """The data set with the latents of its training images; encodes them first if needed.

    root: the folder of prepared data. local: a disk of this host to copy the latents to.

    Raises ValueError that names the file and the remedy if latents changed since they were encoded.
    """
    data = encoded(dataset, encoder)
    found = decode(data, root) if local is None else copy_arrays(data, root, local)
    latents = {"form": FORM, **encoder.identity, **found.identity["splits"]["train"]}
    return dataset._replace(
        moments=Posteriors(found.train.images, encoder.identity),
        recorded={**dataset.identity, LATENTS: latents},
    )


def is_encoded(dataset: Dataset, encoder: Encoder, root: Path) -> bool:
    """Whether the latents of all training images exist, sound or damaged."""
    return is_decoded(encoded(dataset, encoder), root)


def prepare_latents(
    dataset: Dataset, encoder: Encoder, root: Path, group: ProcessGroup = ALONE
) -> Path:
    """Encode the training images, verify latents that exist, and report on standard error.

    group: processes that encode together. Returns the folder of the latents.
    """
    folder = repair(encoded(dataset, encoder), root, group)
    if group.is_first:
        write_json(folder / CODEC, dict(encoder.identity))
    return folder


def encoded(dataset: Dataset, encoder: Encoder) -> Undecoded:
    """The training images of a data set, to encode."""
    images, labels = dataset.train

    def rows(start: int, stop: int) -> Iterator[tuple[np.ndarray, int]]:
        chunk = images[start:stop]
        moments = encoder.encode(np.concatenate([chunk, chunk[:, :, ::-1]]))
        views = moments.reshape(VIEWS, stop - start, 2, *encoder.latent_shape)
        with np.errstate(over="ignore"):  # reported below
            stored = views.swapaxes(0, 1).astype(np.float16)
        if not np.isfinite(stored).all():
            raise ValueError(
                f"the latents of {dataset.name} by {encoder.name} have values that float16 cannot "
                "hold; check codec.weights"
            )
        yield from zip(stored, labels[start:stop].tolist(), strict=True)

    shape = (VIEWS, 2, *encoder.latent_shape)
    return Undecoded(
        name=f"{dataset.name} as latents",
        origin=[FORM, dict(encoder.identity), dataset.identity["splits"]["train"]],
        image_shape=shape,
        num_classes=dataset.num_classes,
        splits={"train": Source(len(labels), rows)},
        classes=dataset.classes,
        made="encoded",
        dtype=np.dtype(np.float16),
        shard_bytes=latents_bytes(SHARD_ROWS, encoder.latent_shape),
    )


def latents_bytes(images: int, latent_shape: tuple[int, ...]) -> int:
    """The bytes of the latents of so many images."""
    return images * VIEWS * 2 * math.prod(latent_shape) * np.dtype(np.float16).itemsize


def channel_statistics(
    moments: np.ndarray, most: int = STATISTICS_ROWS
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel of raw latents, float64 [c].

    moments: [N, V, M, h, w, c], of which `most` images, spread evenly, are read. Var z = Var mean +
    E std^2.
    """
    count = len(moments)
    rows = np.linspace(0, count - 1, min(count, most)).astype(int)
    sums = np.zeros((3, moments.shape[-1]))
    for chunk in np.array_split(rows, -(-len(rows) // 256)):
        first = moments[chunk][:, 0].astype(np.float64).swapaxes(0, 1)
        mean, std = first if len(first) == 2 else (first[0], np.zeros_like(first[0]))
        sums += [values.mean(axis=(1, 2)).sum(axis=0) for values in (mean, mean**2, std**2)]
    mean, square, noise = sums / len(rows)
    return mean, np.sqrt(square - mean**2 + noise)
