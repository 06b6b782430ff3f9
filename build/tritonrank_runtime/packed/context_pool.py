"""Which rows of the card's pool hold whose context: keys and values of returning users, bounded, by exact token ids.

The pool itself is ``PackedNetwork.pool``; here is who has which rows of it. A launch reads kept contexts there and
writes those of new ones. Launches run one after the other, so a later one may overwrite what an earlier one reads; what
the launch in the making reads or writes is held until it has been sent.
"""

from collections import OrderedDict

from tritonrank_runtime.packed.packing import NOT_KEPT, Ids


class ContextPool:
    """Spans of rows by context, those used longest ago dropped first.

    The key is the context's token ids themselves: a hash of them could give one user the context of another.

    Args:
        rows: tokens that there is room for; 0: nothing is kept.
        bytes_per_row: of keys and values of all layers.
    """

    def __init__(self, rows: int, bytes_per_row: int) -> None:
        self.rows, self._bytes_per_row = rows, bytes_per_row
        self._spans: OrderedDict[bytes, tuple[int, int]] = OrderedDict()
        self._held: set[bytes] = set()
        self._new: list[bytes] = []
        self.hits = self.misses = self.bytes = 0

    def find(self, context_ids: Ids) -> int:
        """The first row of a context that an earlier launch has written; NOT_KEPT where none has. Held from now on."""
        key = context_ids.tobytes()
        if key not in self._spans or key in self._new:
            self.misses += 1
            return NOT_KEPT
        self.hits += 1
        self._spans.move_to_end(key)
        self._held.add(key)
        return self._spans[key][0]

    def reserve(self, context_ids: Ids) -> int:
        """The first row where the launch in the making shall keep a context; NOT_KEPT where there is no room, or the
        same launch keeps it already."""
        key, rows = context_ids.tobytes(), len(context_ids)
        if key in self._spans or rows > self.rows:
            return NOT_KEPT
        while (start := self._free_span(rows)) == NOT_KEPT:
            oldest = next((one for one in self._spans if one not in self._held), None)
            if oldest is None:
                return NOT_KEPT
            self._drop(oldest)
        self._spans[key] = start, start + rows
        self.bytes += rows * self._bytes_per_row
        self._held.add(key)
        self._new.append(key)
        return start

    def sent(self) -> None:
        """The launch in the making has been sent: what it writes is there for the next."""
        self._held.clear()
        self._new.clear()

    def failed(self) -> None:
        """The launch in the making will not be: what it should have written is not there."""
        for key in self._new:
            self._drop(key)
        self.sent()

    def _drop(self, key: bytes) -> None:
        start, end = self._spans.pop(key)
        self.bytes -= (end - start) * self._bytes_per_row

    def _free_span(self, rows: int) -> int:
        """The first gap of so many rows."""
        start = 0
        for taken, end in sorted(self._spans.values()):
            if taken - start >= rows:
                return start
            start = end
        return start if self.rows - start >= rows else NOT_KEPT
