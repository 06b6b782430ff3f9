"""The engine of ``serve.executor: torch`` on a GPU: what waits goes into few launches, without padding.

Requests that come together are cut into parts and the parts packed into launches of at most ``launch_rows`` tokens, in
their order: one alone is one launch, many small ones share one, a giant has several. Between two launches the engine
looks whether anybody still wants the work; meanwhile the card computes the launch before. A score does not depend on
who shares the launch: every row is multiplied by itself, and attention adds up a candidate's keys in the same order
wherever they lie. In launches of one bucket it is the same to the last bit; the product of another size may be another
kernel of the vendor's library, which adds in another order.

Contexts of returning users: their keys and values stay on the card (``context_pool.py``).
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from threading import Lock

import numpy as np

from tritonrank_runtime.engine import Feed, Logits, Tensors, Watch
from tritonrank_runtime.packed.context_pool import ContextPool
from tritonrank_runtime.packed.launcher import Launch, Launcher
from tritonrank_runtime.packed.rows import PackedRows, Part, joined

_Sent = tuple[list[Part], Launch]


class PackedEngine:
    """A ranker behind a launcher; while one thread waits for the card, another may pack and launch.

    Args:
        launcher: has captured its graphs.
        rows: of the ranker's architecture.
        launch_rows: tokens of a launch at the most; 0: those of the largest bucket.
    """

    def __init__(self, launcher: Launcher, rows: PackedRows, launch_rows: int = 0) -> None:
        self.launcher = launcher
        self.input_names = rows.input_names
        pool = launcher.network.pool
        self.context_cache = ContextPool(pool.shape[1], pool.shape[0] * pool.shape[2] * pool.element_size())
        self._rows = rows
        self._launch_rows = min(launch_rows or launcher.largest.rows, launcher.largest.rows)
        self._one_launch = Lock()

    def run(self, requests: Sequence[Tensors], threads: int = 0, watch: Watch | None = None) -> list[Logits]:
        watch = watch or Watch()
        for request in requests:
            self._rows.check_limits(request)  # before any of them is launched
        found: dict[int, list[tuple[Part, Logits]]] = defaultdict(list)
        given_up: set[int] = set()
        before: _Sent | None = None
        for parts in self._launches(requests):
            sent = self._launch([part for part in parts if _is_wanted(part, watch, given_up)])
            _collect(before, found, watch)
            before = sent
        _collect(before, found, watch)
        none = np.empty(0, dtype=np.float32)
        return [
            none if number in given_up else joined(found[number], _candidates(found[number]))
            for number in range(len(requests))
        ]

    def check(self, request: Tensors) -> None:
        self._rows.check(request)

    def token_counts(self, requests: Sequence[Tensors]) -> tuple[int, int]:
        computed = 0
        for parts in self._launches(requests):
            rows = sum(part.rows for part in parts)
            computed += next((one.rows for one in self.launcher.buckets if one.rows >= rows), rows)
        return computed, sum(map(self._rows.tokens, requests))

    def graph_feeds(self, requests: Sequence[Tensors]) -> dict[str, list[Feed]]:
        """None: a checkpoint has no graphs, and nothing is calibrated for it."""
        return {}

    def _launches(self, requests: Sequence[Tensors]) -> Iterator[list[Part]]:
        """Parts that go together, in the order of the requests."""
        together: list[Part] = []
        rows = segments = 0
        for number, request in enumerate(requests):
            for part in self._rows.parts(number, request, self._launch_rows):
                is_full = (
                    rows + part.rows > self._launch_rows or segments + part.segments > self.launcher.largest.segments
                )
                if together and is_full:
                    yield together
                    together, rows, segments = [], 0, 0
                together.append(part)
                rows, segments = rows + part.rows, segments + part.segments
        if together:
            yield together

    def _launch(self, parts: list[Part]) -> _Sent | None:
        if not parts:
            return None
        with self._one_launch:
            try:
                launch = self.launcher.launch([self._rows.pack(part, self.context_cache) for part in parts])
            except BaseException:
                self.context_cache.failed()
                raise
            self.context_cache.sent()
        return parts, launch


def _is_wanted(part: Part, watch: Watch, given_up: set[int]) -> bool:
    if part.request not in given_up and not watch.is_wanted(part.request):
        given_up.add(part.request)
    return part.request not in given_up


def _collect(sent: _Sent | None, found: dict[int, list[tuple[Part, Logits]]], watch: Watch) -> None:
    """Wait for a launch, and put its logits where they belong."""
    if sent is None:
        return
    parts, launch = sent
    for part, logits in zip(parts, launch.logits(), strict=True):
        found[part.request].append((part, logits))
        watch.did(part.rows)


def _candidates(parts: Sequence[tuple[Part, Logits]]) -> int:
    return max((part.candidates.stop for part, _ in parts), default=0)
