"""The metrics of a step as one array.

A step has 14 means or more, each a total and a count. The host pays for every array that it takes
from a device, however small. It therefore takes one; the names are static data.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from fewstep.objectives.base import Mean, Metrics


@partial(jax.tree_util.register_dataclass, data_fields=["pairs"], meta_fields=["names"])
@dataclass(frozen=True)
class PackedMetrics:
    """Metrics of one step, or of several stacked on a first axis.

    pairs: float32 [..., N, 2], total and count of each. names: [N].
    """

    pairs: Array
    names: tuple[str, ...]


def pack_metrics(metrics: Metrics) -> PackedMetrics:
    """The metrics, scalars of each step, in one array; call it inside jit."""
    pairs = [jnp.stack([jnp.float32(part) for part in mean], axis=-1) for mean in metrics.values()]
    return PackedMetrics(jnp.stack(pairs, axis=-2), tuple(metrics))


def unpack_metrics(packed: PackedMetrics) -> Iterator[Mapping[str, Mean]]:
    """Yields the metrics of each step, in order. packed: on the host."""
    for step in packed.pairs.reshape(-1, *packed.pairs.shape[-2:]):
        yield {name: Mean(*pair) for name, pair in zip(packed.names, step, strict=True)}
