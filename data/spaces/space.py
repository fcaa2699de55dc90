"""The contract of a space: what a network sees of an example, and what becomes of its samples.

Samples are floats, as a network makes them, until `Space.finish`. Nothing else converts them. What
is finished is stored, measured, compared and shown.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from PIL import Image

Shape = tuple[int, ...]


class Example(NamedTuple):
    """Shape and type of one finished sample, which are those of one stored example."""

    shape: Shape
    dtype: np.dtype


class Space(NamedTuple):
    """Where examples lie, as pure functions.

    name: what messages call it. shape: of one example x, as a network sees it.
    example: what is stored of one, and what a sample is finished to.
    start: stored examples [N, *example.shape] -> float32 [N, *shape], as training reads them.
    finish: float32 samples [N, *shape] -> [N, *example.shape].
    rounding: what `finish` does, in the words of a protocol.
    features: names of the feature networks that see finished samples (eval/features/networks.py).
    image: a finished sample -> its own picture; None where single samples have none.
    show: (finished samples [N, ...], columns) -> one picture of them all.
    compare: finished samples by title -> one picture of all of them, with the titles.
    shown, compared: how many samples the pictures of an evaluation have, in all and by title.
    """

    name: str
    shape: Shape
    example: Example
    start: Callable[[np.ndarray], np.ndarray]
    finish: Callable[[np.ndarray], np.ndarray]
    rounding: str
    features: tuple[str, ...]
    image: Callable[[np.ndarray], Image.Image] | None
    show: Callable[[np.ndarray, int], Image.Image]
    compare: Callable[[Mapping[str, np.ndarray]], Image.Image]
    shown: int
    compared: int
