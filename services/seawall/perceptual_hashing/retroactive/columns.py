"""Rows kept in arrays: they grow at the end, and are forgotten from the start. No object a row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class Columns:
    """Columns of one length.

    Args:
        columns: dtype and width (0: a scalar) by name.
    """

    def __init__(self, columns: Mapping[str, tuple[npt.DTypeLike, int]]) -> None:
        self._arrays: dict[str, Array] = {
            name: np.empty((1024, width) if width else 1024, dtype) for name, (dtype, width) in columns.items()
        }
        self._begin = 0
        self._end = 0
        #: Rows that were forgotten before the first.
        self.forgotten = 0

    def __len__(self) -> int:
        return self._end - self._begin

    def __getitem__(self, name: str) -> Array:
        """The column, a view: valid until rows are added or forgotten."""
        return self._arrays[name][self._begin : self._end]

    def add(self, **columns: Array) -> None:
        """Append rows; every column, of one length."""
        count = len(next(iter(columns.values())))
        capacity = len(next(iter(self._arrays.values())))
        if self._end + count > capacity:
            self._make_room(count)
        for name, values in columns.items():
            self._arrays[name][self._end : self._end + count] = values
        self._end += count

    def forget(self, count: int) -> None:
        """Drop the first rows."""
        self._begin += count
        self.forgotten += count

    def _make_room(self, count: int) -> None:
        rows = len(self)
        capacity = max(1024, 2 * (rows + count))
        for name, array in self._arrays.items():
            grown = np.empty((capacity, *array.shape[1:]), array.dtype)
            grown[:rows] = array[self._begin : self._end]
            self._arrays[name] = grown
        self._begin, self._end = 0, rows
