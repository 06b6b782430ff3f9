"""Arrays that one thread appends to while others read what was there."""

from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

Number = TypeVar("Number", bound=np.generic)
FIRST_CAPACITY = 16


class Growing(Generic[Number]):
    """Rows of numbers. A reader's view stays what it was, because rows are only ever added behind it.

    Args:
        dtype: of the numbers.
        shape: of one row.
    """

    def __init__(self, dtype: DTypeLike, shape: tuple[int, ...] = ()) -> None:
        self._held: NDArray[Any] = np.empty((FIRST_CAPACITY, *shape), dtype=dtype)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def rows(self) -> NDArray[Any]:
        """All rows, as a view."""
        count = self._count  # first: ``_held`` only ever becomes larger
        return self._held[:count]

    def append(self, row: Any) -> None:
        self.extend(np.asarray(row, dtype=self._held.dtype)[None])

    def extend(self, rows: Any) -> None:
        """Rows are written before they count."""
        end = self._count + len(rows)
        if end > len(self._held):
            larger = np.empty((max(end, 2 * len(self._held)), *self._held.shape[1:]), dtype=self._held.dtype)
            larger[: self._count] = self._held[: self._count]
            self._held = larger
        self._held[self._count : end] = rows
        self._count = end
