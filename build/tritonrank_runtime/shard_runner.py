"""Runs one rank's segments: what is needed to compute a shard wherever there is a way to add up the ranks' sums."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

SHARDS_FILE = "shards.json"
"""Says how many ranks there are; of each graph its segments, inputs and outputs, and which of those are shared out."""

Tensors = dict[str, NDArray[Any]]
AllReduce = Callable[[NDArray[Any]], NDArray[Any]]
"""One rank's addend -> the sum over all ranks, of the same shape and type."""


class Session(Protocol):
    """What is used of onnxruntime.InferenceSession."""

    def run(self, output_names: Sequence[str] | None, input_feed: Mapping[str, NDArray[Any]]) -> Sequence[Any]: ...

    def get_inputs(self) -> Sequence[Any]: ...

    def get_outputs(self) -> Sequence[Any]: ...


def read_shards(folder: Path) -> dict[str, Any]:
    """What ``shards.json`` says."""
    found: dict[str, Any] = json.loads((folder / SHARDS_FILE).read_text(encoding="utf-8"))
    return found


def shard_file(rank: int, name: str) -> str:
    """The name of one rank's file of a graph or a segment."""
    return f"rank{rank}.{name}"


def share(tensor: NDArray[Any], axis: int, rank: int, ranks: int) -> NDArray[Any]:
    """One rank's equal part of a tensor, contiguous."""
    size = tensor.shape[axis] // ranks
    part = [slice(None)] * tensor.ndim
    part[axis] = slice(rank * size, (rank + 1) * size)
    return np.ascontiguousarray(tensor[tuple(part)])


class ShardRunner:
    """All graphs of one rank.

    Args:
        folder: holds shards.json and the segments.
        rank: whose segments to open.
        open_session: opens one of them.
        all_reduce: called between segments, by all ranks in the same order.
    """

    def __init__(self, folder: Path, rank: int, open_session: Callable[[Path], Session], all_reduce: AllReduce) -> None:
        shards = read_shards(folder)
        self._rank, self._ranks = rank, int(shards["ranks"])
        self._all_reduce = all_reduce
        self._graphs = shards["graphs"]
        self._sessions = {
            name: [open_session(folder / shard_file(rank, segment["file"])) for segment in graph["segments"]]
            for name, graph in self._graphs.items()
        }

    def run(self, name: str, feed: Mapping[str, NDArray[Any]]) -> Tensors:
        """Run one graph; all ranks have to run it with the same feed.

        Args:
            name: of the whole graph, such as ``model.onnx``.
            feed: the graph's inputs, whole.

        Returns:
            outputs by name; of those in ``split_outputs`` this rank's share.
        """
        graph = self._graphs[name]
        values = dict(feed)
        for tensor, axis in graph["split_inputs"].items():
            values[tensor] = share(values[tensor], axis, self._rank, self._ranks)
        for segment, session in zip(graph["segments"], self._sessions[name], strict=True):
            outputs = [tensor.name for tensor in session.get_outputs()]
            inputs = {tensor.name: values[tensor.name] for tensor in session.get_inputs()}
            values |= zip(outputs, session.run(outputs, inputs), strict=True)
            if segment["partial"]:
                values[segment["sum"]] = self._all_reduce(values.pop(segment["partial"]))
        return {tensor: values[tensor] for tensor in graph["outputs"]}
