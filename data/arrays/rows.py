"""Several arrays, such as memory-mapped files, that read as one."""

from collections.abc import Sequence
from typing import Any

import numpy as np


class Rows:
    """The concatenation [N, ...] of arrays [n_i, ...] with rows of one type and shape.

    Memory-mapped arrays stay on disk; indexing reads and copies only the selected rows.
    sha256: SHA-256 of each array's bytes, recorded when it was written.
    """

    def __init__(self, arrays: Sequence[np.ndarray], sha256: Sequence[str] = ()) -> None:
        self.arrays, self.sha256 = tuple(arrays), tuple(sha256)
        self.ends = np.cumsum([len(array) for array in arrays])
        self.shape = (int(self.ends[-1]), *arrays[0].shape[1:])
        self.dtype, self.ndim = arrays[0].dtype, arrays[0].ndim
        self.numbers = np.arange(self.shape[0])
        self.nbytes = sum(array.nbytes for array in arrays)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        """Rows by an integer, a slice, an array of integers, or booleans [N], as in NumPy.

        Raises IndexError for a row out of range, or another kind of index.
        """
        if isinstance(index, tuple) or index is None or index is Ellipsis:
            raise IndexError("rows are indexed by an integer, a slice or one array")
        rows = self.numbers[index]  # by NumPy's rules
        return self.take(rows.ravel()).reshape(*rows.shape, *self.shape[1:])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All rows, in memory."""
        return self[:] if dtype is None else self[:].astype(dtype)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """The rows with these indices: [n], in [0, N). Reads each file once, forwards."""
        order = np.argsort(rows, kind="stable")
        found = np.empty((len(rows), *self.shape[1:]), self.dtype)
        cuts = np.searchsorted(rows[order], self.ends)
        first = 0
        for array, end, last in zip(self.arrays, self.ends, cuts, strict=True):
            for place in order[first:last]:
                found[place] = array[rows[place] - (end - len(array))]
            first = last
        return found
