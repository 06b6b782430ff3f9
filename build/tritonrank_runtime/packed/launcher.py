"""Packed requests -> logits, launch by launch: one copy to the card, one CUDA graph, one copy back.

A graph has fixed sizes, so there is one for each of few *buckets* of rows, four to an octave: at most a quarter of a
launch is padding. All are captured when the server starts, the largest first, into one pool of memory: no two run at
once, so together they take what the largest takes. Inputs, logits and weights have their places once. A launch that no
bucket holds, or whose capture failed, runs without a graph: slower, and the same numbers.

The host's buffers are pinned, so that copies need no copy of their own, and there are two: while one launch computes,
the next is packed. On a CPU all of this is the same but for graphs and pinning, so that it is tested there.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from logging import getLogger
from threading import Lock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tritonrank_runtime.engine import Logits
from tritonrank_runtime.packed.network import PackedPasses
from tritonrank_runtime.packed.packing import TILE_ROWS, PackedBatch, PackedRequest, Sizes, pack, total

MOST_ROWS = 32_768
"""Of a launch on a card: beyond this a launch gives no more tokens per second, only longer waits. Not tuned."""
FEWEST_ROWS = 64
STEPS = 4
"""Buckets to an octave."""
SLOTS = 2
WARMUP_RUNS = 3
"""Before a capture: libraries allocate their workspaces and compile their kernels in the first runs."""

log = getLogger(__name__)


def bucket_rows(most: int = MOST_ROWS, fewest: int = FEWEST_ROWS) -> list[int]:
    """The rows of each bucket, ascending: octaves in equal steps, in whole tiles.

    Args:
        most: rows of the largest bucket at the least.
        fewest: of the smallest.
    """
    rows: set[int] = set()
    octave = fewest
    while not rows or max(rows) < most:
        rows.update(-(-octave * (STEPS + step) // (STEPS * TILE_ROWS)) * TILE_ROWS for step in range(STEPS))
        octave *= 2
    ascending = sorted(rows)
    return ascending[: next(place for place, one in enumerate(ascending) if one >= most) + 1]


class Launch:
    """One that was sent."""

    def __init__(self, requests: Sequence[PackedRequest], segments: Tensor, wait: Callable[[], None]) -> None:
        self._requests, self._segments, self._wait = requests, segments, wait
        self._logits: list[Logits] | None = None
        self._one_reader = Lock()

    def logits(self) -> list[Logits]:
        """Of each request, one per candidate; waits until they are there."""
        with self._one_reader:
            if self._logits is None:
                self._wait()
                ends = np.cumsum([one.counts.segments for one in self._requests])
                found = self._segments.numpy()[: ends[-1]].copy()  # the buffer is the next launch's, too
                parts = np.split(found, ends[:-1])
                self._logits = [one.logits(part) for one, part in zip(self._requests, parts, strict=True)]
        return self._logits


@dataclass
class _Slot:
    """Buffers of the host for one launch on its way."""

    numbers: Tensor
    segments: Tensor
    done: Any
    """a CUDA event; None on a CPU"""
    launch: Launch | None = None


class Launcher:
    """Sends packed requests to a network.

    Args:
        network: computes.
        rows: of each bucket; see ``bucket_rows``.
        pairs: whether the requests are those of a joint ranker.
        is_compiled: whether torch.compile fuses what lies between products and attention.
    """

    def __init__(
        self, network: PackedPasses, rows: Sequence[int], *, pairs: bool = False, is_compiled: bool = False
    ) -> None:
        self.buckets = [Sizes.bucket(one, pairs=pairs) for one in sorted(rows)]
        self.network, self.is_compiled = network, is_compiled
        self._forward: Callable[[Mapping[str, Tensor]], Tensor] = network.logits
        if is_compiled:
            self._forward = torch.compile(network.logits, dynamic=True)
        self.device = network.device
        self._is_cuda = self.device.type == "cuda"
        self._stream = torch.cuda.Stream(self.device) if self._is_cuda else None
        largest = self.buckets[-1]
        self._numbers = torch.zeros(largest.numbers, dtype=torch.int32, device=self.device)
        self._segments = torch.zeros(largest.segments, device=self.device)
        self._slots = [self._slot(largest) for _ in range(SLOTS)]
        self._turn = 0
        self._graphs: dict[int, Any] = {}
        self._memory: Any = None
        """of all graphs"""
        self.launches = self.launches_without_graph = 0

    @property
    def largest(self) -> Sizes:
        """The bucket beyond which there is no graph."""
        return self.buckets[-1]

    @property
    def captured_rows(self) -> list[int]:
        """Of the buckets that have a graph."""
        return sorted(self._graphs)

    def bucket(self, needed: Sizes) -> Sizes | None:
        """The smallest that holds a launch; None where none does."""
        return next((one for one in self.buckets if one.holds(needed)), None)

    def capture(self) -> None:
        """Run each bucket for the first time, and capture a graph of it on a card; one that fails has none.

        A network that torch.compile cannot fuse runs as it is.
        """
        for sizes in reversed(self.buckets):
            with self._on_stream():
                self._send(sizes, self._slots[0], [])
                self._warm_up(sizes)
            if self._is_cuda:
                self._capture(sizes)
        self.launches = self.launches_without_graph = 0

    def launch(self, requests: Sequence[PackedRequest]) -> Launch:
        """Send requests; returns before they are computed, on a card.

        Args:
            requests: at least one.

        Raises:
            RowsError: tables that hold no such rows.
        """
        sizes = self.bucket(total(requests))
        self.launches += 1
        if sizes is None:
            self.launches_without_graph += 1
            return self.launch_alone(requests)
        slot = self._next_slot()
        with self._on_stream():
            self._send(sizes, slot, requests)
            if (graph := self._graphs.get(sizes.rows)) is not None:
                graph.replay()
            else:
                self.launches_without_graph += self._is_cuda
                self._compute(sizes)
            slot.segments[: sizes.segments].copy_(self._segments[: sizes.segments], non_blocking=True)
            if slot.done is not None:
                slot.done.record()
        slot.launch = Launch(requests, slot.segments, slot.done.synchronize if slot.done else _nothing)
        return slot.launch

    def launch_alone(self, requests: Sequence[PackedRequest]) -> Launch:
        """Send requests without bucket, graph or fused kernels, in buffers of their own; waits."""
        sizes = _rounded(total(requests))
        batch = PackedBatch.empty(sizes)
        pack(requests, batch)
        with self._on_stream(), torch.inference_mode():
            on_device = PackedBatch(sizes, torch.from_numpy(batch.buffer).to(self.device))
            segments = self.network.logits(on_device.tables).cpu()
        return Launch(requests, segments, _nothing)

    def _slot(self, largest: Sizes) -> _Slot:
        return _Slot(
            torch.zeros(largest.numbers, dtype=torch.int32, pin_memory=self._is_cuda),
            torch.zeros(largest.segments, pin_memory=self._is_cuda),
            torch.cuda.Event() if self._is_cuda else None,
        )

    def _next_slot(self) -> _Slot:
        slot = self._slots[self._turn]
        self._turn = (self._turn + 1) % len(self._slots)
        if slot.launch is not None:  # whoever has it finds its logits there, read before they are overwritten
            slot.launch.logits()
        return slot

    def _send(self, sizes: Sizes, slot: _Slot, requests: Sequence[PackedRequest]) -> None:
        numbers: NDArray[np.int32] = slot.numbers.numpy()[: sizes.numbers]
        pack(requests, PackedBatch(sizes, numbers))
        self._numbers[: sizes.numbers].copy_(slot.numbers[: sizes.numbers], non_blocking=True)

    @torch.inference_mode()
    def _compute(self, sizes: Sizes) -> None:
        batch = PackedBatch(sizes, self._numbers[: sizes.numbers])
        self._segments[: sizes.segments].copy_(self._forward(batch.tables))

    def _warm_up(self, sizes: Sizes) -> None:
        for run in range(WARMUP_RUNS if self._is_cuda else 1):
            try:
                self._compute(sizes)
            except Exception as error:  # compilers have no error in common
                if run or not self.is_compiled:
                    raise
                log.warning("torch.compile failed, so the network runs as it is: %s", _first_line(error))
                self.is_compiled, self._forward = False, self.network.logits
                self._compute(sizes)

    def _capture(self, sizes: Sizes) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads may use the card meanwhile: only what this one does has to be possible in a graph.
            with torch.cuda.graph(graph, pool=self._memory, stream=self._stream, capture_error_mode="thread_local"):
                self._compute(sizes)
        except Exception as error:  # noqa: BLE001 - CUDA has no error of its own; a graph is a matter of speed
            torch.cuda.synchronize(self.device)
            log.warning("no CUDA graph for %d rows, which run without one: %s", sizes.rows, _first_line(error))
            return
        self._memory = self._memory or graph.pool()
        self._graphs[sizes.rows] = graph

    def _on_stream(self) -> Any:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)


def _rounded(needed: Sizes) -> Sizes:
    """Exactly so much, in whole tiles of rows and with at least one of everything."""
    rows = -(-needed.rows // TILE_ROWS) * TILE_ROWS
    return Sizes(
        rows,
        max(1, needed.segments),
        max(1, needed.tiles),
        needed.chunks,
        max(1, needed.scored_tiles),
        needed.scored_chunks,
        needed.kept_rows,
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]


def _nothing() -> None:
    pass
