"""The contract of a space: what a network sees of an example, and how its samples are finished.

Samples are floats, as a network makes them, until `Space.finish`; nothing else converts them.
Finished samples are stored, measured, compared and shown.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from PIL import Image

Shape = tuple[int, ...]


class Example(NamedTuple):
    """Shape and type of a stored example, and so of a finished sample."""

    shape: Shape
    dtype: np.dtype


class Space(NamedTuple):
    """Where examples lie, as pure functions.

    name: for messages. shape: of one example x as a network sees it.
    example: shape and type of a stored example and of a finished sample.
    start: stored examples [N, *example.shape] -> float32 [N, *shape], as training reads them.
    finish: float32 samples [N, *shape] -> finished samples [N, *example.shape].
    rounding: what `finish` does, in words, for protocols.
    features: names of the feature networks that take finished samples (eval/features/networks.py).
    image: a finished sample -> its own picture; None if a sample has none.
    show: (finished samples [N, ...], columns, captions) -> one picture of all. captions: N texts of
        the same number of lines, which stand under samples that have pictures; () by default.
    compare: finished samples by title -> one picture of all, with the titles.
    shown: samples in the picture that `show` makes for an evaluation.
    compared: samples for each title in the picture that `compare` makes for an evaluation.
    """

    name: str
    shape: Shape
    example: Example
    start: Callable[[np.ndarray], np.ndarray]
    finish: Callable[[np.ndarray], np.ndarray]
    rounding: str
    features: tuple[str, ...]
    image: Callable[[np.ndarray], Image.Image] | None
    show: Callable[..., Image.Image]
    compare: Callable[[Mapping[str, np.ndarray]], Image.Image]
    shown: int
    compared: int
