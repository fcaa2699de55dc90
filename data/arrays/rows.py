"""Arrays that lie in several files, as one: rows are read from the files that have them."""

from collections.abc import Sequence
from typing import Any

import numpy as np


class Rows:
    """Arrays [n_i, ...] of one type and shape of rows, one after the other, as one [N, ...].

    Memory-mapped arrays stay on the disk: an index reads, and copies, the rows that it names.
    sha256: of the bytes of each array, as recorded when they were written.
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
        """Rows by an integer, a slice, integers or booleans [N], as NumPy has them.

        Raises IndexError for a row that is not there, or an index of another kind.
        """
        if isinstance(index, tuple) or index is None or index is Ellipsis:
            raise IndexError("rows are chosen by an integer, a slice, or an array")
        rows = self.numbers[index]  # by NumPy's own rules
        return self.take(rows.ravel()).reshape(*rows.shape, *self.shape[1:])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All rows, in memory."""
        return self[:] if dtype is None else self[:].astype(dtype)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """The rows of these numbers [n], in [0, N); each file is read forwards, and once."""
        order = np.argsort(rows, kind="stable")
        found = np.empty((len(rows), *self.shape[1:]), self.dtype)
        cuts = np.searchsorted(rows[order], self.ends)
        first = 0
        for array, end, last in zip(self.arrays, self.ends, cuts, strict=True):
            for place in order[first:last]:
                found[place] = array[rows[place] - (end - len(array))]
            first = last
        return found
