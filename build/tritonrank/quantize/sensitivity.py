"""Which linear layers bear INT8: how much each changes the logits, held against the work that it does.

A few layers of an encoder have activations with outliers that one scale cannot hold. They are found by quantizing each
layer alone; those that disturb most for their work stay in FP32, until the rest together is quiet enough.
"""

import math
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from tritonrank_runtime.engine import Feed, Tensors

from tritonrank.errors import GateError
from tritonrank.graphs.rounding_twin import open_rounding_engine
from tritonrank.graphs.watch import watched_values
from tritonrank.system.progress import step

ROUGH_SHARE = 3
"""One request in so many tells what a single layer disturbs: that only puts the layers in order, and what is chosen by
it is measured on all requests."""

GROUPED_FROM, GROUP = 100, 16
"""Layers from which they are measured in groups, and of how many: each alone takes hours of a deep decoder. A group
that is quieter than its share of the work allows need not be looked into."""

Write = Callable[[Path, list[str]], None]
"""Writes the graphs into a folder with these nodes quantized."""


class NoiseMeter:
    """How much graphs change the logits of the FP32 ones: root mean square over the spread of the logits."""

    def __init__(self, source: Path, requests: Sequence[Tensors]) -> None:
        self.by_layer: dict[str, float] = {}
        """each layer alone, where ``quiet_enough`` had to find that out"""
        self._requests = requests
        self._expected = open_rounding_engine(source).run(requests)
        self._spread = max(float(np.concatenate(self._expected).std()), 1e-12)

    def of(self, folder: Path) -> float:
        return self._on_every(1, folder)

    def roughly(self, folder: Path) -> float:
        """The same of one request in ``ROUGH_SHARE``."""
        return self._on_every(ROUGH_SHARE, folder)

    def _on_every(self, step: int, folder: Path) -> float:
        found = np.concatenate(open_rounding_engine(folder).run(self._requests[::step]))
        change = found - np.concatenate(self._expected[::step])
        return float(np.sqrt(np.mean(change**2)) / self._spread)


def quiet_enough(
    nodes: list[str],
    work: Mapping[str, float],
    write: Write,
    noise: NoiseMeter,
    folder: Path,
    limit: float,
    setting: str = "quantize.noise",
) -> list[str]:
    """Leave out the layers that disturb most for their work, until the rest together stays within the limit.

    Such changes are nearly independent, so their squares add up; the sum tells how many to leave out at first, and a
    run of the real graphs tells whether that was enough.

    Args:
        nodes: the layers to choose from.
        work: multiply-adds of each layer in typical requests.
        write: writes graphs.
        noise: measures them, and keeps what each layer alone was found to do.
        folder: where the chosen graphs go.
        limit: largest noise.
        setting: where the recipe says so.

    Raises:
        GateError: not even one layer can be quantized within the limit.
    """
    alone = noise.by_layer
    with tempfile.TemporaryDirectory() as trial:

        def measure(group: list[str]) -> float:
            write(Path(trial), group)
            return noise.roughly(Path(trial))

        size = 1 if len(nodes) < GROUPED_FROM else GROUP
        all_work = sum(work[node] for node in nodes)
        with step("measuring each layer", total=len(nodes)) as shown:
            for start in range(0, len(nodes), size):
                for found in _shared_out(nodes[start : start + size], work, measure, limit, all_work):
                    alone.update(found)
                    shown.advance(len(found))
    bearable = [node for node in nodes if alone[node] <= limit]
    quietest_first = sorted(bearable, key=lambda node: alone[node] ** 2 / work[node])
    together = np.sqrt(np.cumsum([alone[node] ** 2 for node in quietest_first]))
    # Noises do not quite add up: the sum says where to start, halving finds how many fit.
    count = int(np.searchsorted(together, limit, side="right"))
    fitting, exceeding, chosen = 0, count + 1, list[str]()
    with step("measuring layers together") as shown:
        while exceeding - fitting > 1:
            shown.update(note=f"{count} layers of {len(nodes)}")
            kept = set(quietest_first[:count])
            written = [node for node in nodes if node in kept]
            write(folder, written)
            if noise.of(folder) <= limit:
                fitting, chosen = count, written
            else:
                exceeding = count
            count = (fitting + exceeding) // 2
            shown.advance()
    if chosen:
        if written != chosen:
            write(folder, chosen)
        return chosen
    raise GateError(
        f"gate closed: no linear layer can be quantized within {setting} = {limit}; the quietest alone "
        f"changes the logits by {min(alone.values()):.3f} of their spread. Raise it, or do not quantize"
    )


def _shared_out(
    group: list[str], work: Mapping[str, float], measure: Callable[[list[str]], float], limit: float, all_work: float
) -> Iterator[dict[str, float]]:
    """The noise of each layer of a group, which is halved as long as it is too loud for its work; piece by piece.

    Noises add up by their squares, so a layer of a quiet group gets the square of the group's by its share of the work.
    """
    found, of_group = measure(group), sum(work[node] for node in group)
    if len(group) == 1 or found**2 <= limit**2 * of_group / all_work:
        yield {node: found * math.sqrt(work[node] / of_group) for node in group}
        return
    half = len(group) // 2
    for part in (group[:half], group[half:]):
        yield from _shared_out(part, work, measure, limit, all_work)


def work_of_nodes(path: Path, feeds: Sequence[Feed]) -> dict[str, int]:
    """Multiply-adds of every MatMul with constant weights, by node name, when the graph runs on all these feeds."""
    model = onnx.load(path)
    weights = {tensor.name: math.prod(tensor.dims) for tensor in model.graph.initializer}
    linear = [node for node in model.graph.node if node.op_type == "MatMul" and node.input[1] in weights]
    # The rows that a layer sees are known only when it runs.
    watched = list(dict.fromkeys(node.input[0] for node in linear))
    rows: Counter[str] = Counter()
    for values in watched_values(path, watched, feeds):
        rows.update({name: math.prod(value.shape[:-1]) for name, value in values.items()})
    return {node.name: rows[node.input[0]] * weights[node.input[1]] for node in linear}
