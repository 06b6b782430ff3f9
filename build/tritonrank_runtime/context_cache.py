"""Keys and values of contexts, kept for users who return."""

from collections import OrderedDict
from collections.abc import Callable
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from tritonrank_runtime.engine import Feed
from tritonrank_runtime.kept_states import KeptStates


class ContextCache:
    """Keys and values of the contexts seen last: at most so many bytes, the oldest dropped first.

    The key is the context's token ids themselves: a hash of them could give one user the context of another. Several
    threads may ask at once; two that miss the same context both compute it.

    Args:
        most_bytes: of all that is kept.
        states: in how many bits; None: as they were computed.
    """

    def __init__(self, most_bytes: int, states: KeptStates | None = None) -> None:
        self._most_bytes = most_bytes
        self._states = states
        self._entries: OrderedDict[bytes, Feed] = OrderedDict()
        self._lock = Lock()
        self.hits = self.misses = self.bytes = 0

    def get(self, context_ids: NDArray[np.int32], compute: Callable[[NDArray[np.int32]], Feed]) -> Feed:
        """What is kept for these token ids, or what ``compute`` makes of them."""
        key = context_ids.tobytes()
        with self._lock:
            if (found := self._entries.get(key)) is not None:
                self._entries.move_to_end(key)
                self.hits += 1
            else:
                self.misses += 1
        if found is None:
            found = compute(context_ids) if self._states is None else self._states.kept(compute(context_ids))
            self._keep(key, found)
        return found if self._states is None else self._states.restored(found)

    def _keep(self, key: bytes, entry: Feed) -> None:
        size = _entry_bytes(key, entry)
        with self._lock:
            if key not in self._entries and size <= self._most_bytes:
                self._entries[key] = entry
                self.bytes += size
            while self.bytes > self._most_bytes:
                self.bytes -= _entry_bytes(*self._entries.popitem(last=False))


def _entry_bytes(key: bytes, entry: Feed) -> int:
    return len(key) + sum(tensor.nbytes for tensor in entry.values())
