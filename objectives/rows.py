"""Parts of a batch for different losses, which stay spread over the devices of the batch."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array


def split_rows(batch: Any, every: int) -> tuple[Any, Any]:
    """(one row in `every`, the other rows) of arrays whose rows are a multiple of `every`.

    Each group of `every` rows gives its first row. Both parts therefore stay spread over the
    devices of the batch, if each device has a multiple of `every` rows.
    """
    groups = jax.tree.map(lambda a: a.reshape(-1, every, *a.shape[1:]), batch)
    first = jax.tree.map(lambda a: a[:, 0], groups)
    return first, jax.tree.map(lambda a: a[:, 1:].reshape(-1, *a.shape[2:]), groups)


def merge_rows(first: Any, rest: Any, every: int) -> Any:
    """The inverse of `split_rows`."""

    def merge(a: Array, b: Array) -> Array:
        groups = [a[:, None], b.reshape(-1, every - 1, *b.shape[1:])]
        return jnp.concatenate(groups, axis=1).reshape(-1, *a.shape[1:])

    return jax.tree.map(merge, first, rest)


def rows_per_share(share: float, field: str) -> int:
    """n of a share of rows 1/n. Raises ValueError that names the field unless n is 2 or more."""
    inverse = 1.0 / share if share > 0 else 0.0
    if round(inverse) < 2 or abs(inverse - round(inverse)) > 1e-6:
        raise ValueError(
            f"objective.{field} must be one over an integer of 2 or more (0.25, 0.125), not {share}"
        )
    return round(inverse)


def check_share(rows: int, every: int, field: str) -> None:
    """Raises ValueError that names the field unless `every` divides the rows."""
    if rows % every:
        raise ValueError(
            f"{rows} rows, batch_size / micro_batches, with objective.{field}=1/{every} "
            f"do not divide; use a multiple of {every}"
        )
