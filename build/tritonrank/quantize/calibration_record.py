"""What calibration saw, kept beside the INT8 graphs: how well 256 steps hold each activation, what each layer disturbs.

One scale per activation means that a few outliers leave few steps for everything else. So for each quantized activation
the record says which range its steps cover, what was really seen, and how many of the 256 steps 99.9% of the values
share; the histogram of those that fare worst is kept as well. Nothing is decided here: ``tritonrank report`` shows it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from tritonrank_runtime.engine import Feed

from tritonrank.errors import ArtifactError
from tritonrank.graphs.watch import watched_values

CALIBRATION_FILE = "calibration.json"
STEPS = 256
BULK = 0.999
"""Share of the values whose steps are counted: what is outside counts as outliers."""
HISTOGRAMS_KEPT = 12
HISTOGRAM_BINS = 64


@dataclass(frozen=True)
class QuantizedActivation:
    """One quantized activation on the calibration requests."""

    graph: str
    """file name of the graph that it is in"""
    layers: list[str]
    """nodes that read it"""
    low: float
    high: float
    """the range that the 256 steps cover"""
    smallest: float
    largest: float
    """what was seen"""
    bulk_steps: int
    """steps that the middle 99.9% of the values share; 256 would be ideal, a few mean outliers"""
    clipped_share: float
    """of the values: outside the range"""
    counts: list[int] = field(default_factory=list)
    """values per bin, HISTOGRAM_BINS of equal width from low to high; empty where it was not kept"""


@dataclass(frozen=True)
class LayerNoise:
    """Change of the logits, root mean square over their spread, by what was quantized."""

    limit: float
    """``quantize.noise``"""
    all_layers: float
    """with every layer in INT8"""
    final: float
    """of the graphs that were written"""
    by_layer: dict[str, float]
    """each layer alone; empty when all together were within the limit, because nobody needed to know"""


@dataclass(frozen=True)
class CalibrationRecord:
    noise: LayerNoise
    activations: list[QuantizedActivation]
    """fewest bulk_steps first"""

    def save(self, folder: Path) -> None:
        contents = json.dumps(_rounded(asdict(self)), separators=(",", ":"))
        (folder / CALIBRATION_FILE).write_text(contents + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "CalibrationRecord | None":
        """The record of an INT8 artifact; None where it has none.

        Raises:
            ArtifactError: the file cannot be read.
        """
        path = folder / CALIBRATION_FILE
        if not path.is_file():
            return None
        try:
            contents = json.loads(path.read_text(encoding="utf-8"))
            activations = [QuantizedActivation(**activation) for activation in contents["activations"]]
            return cls(LayerNoise(**contents["noise"]), activations)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ArtifactError(
                f"{path}: damaged ({error!r}). Delete {folder} and run tritonrank build again"
            ) from None


def record_activations(folder: Path, feeds: Mapping[Path, Sequence[Feed]]) -> list[QuantizedActivation]:
    """Run calibration requests through the FP32 graphs and hold every value against the steps of the INT8 ones.

    Args:
        folder: the INT8 graphs, under the names of the FP32 ones.
        feeds: calibration inputs by FP32 graph.

    Returns:
        All quantized activations, those with the fewest bulk_steps first; the first HISTOGRAMS_KEPT have histograms.
    """
    found: list[QuantizedActivation] = []
    for source, requests in feeds.items():
        found += _of_graph(source, folder / source.name, requests)
    found.sort(key=lambda activation: activation.bulk_steps)
    return [*found[:HISTOGRAMS_KEPT], *(_without_counts(activation) for activation in found[HISTOGRAMS_KEPT:])]


def bulk_steps(counts: NDArray[np.int64]) -> int:
    """Bins that hold the middle BULK of what was counted, from the first to the last of them."""
    cumulated = np.cumsum(counts) / max(int(counts.sum()), 1)
    tail = (1 - BULK) / 2
    first, last = int(np.searchsorted(cumulated, tail, side="right")), int(np.searchsorted(cumulated, 1 - tail))
    return min(last, len(counts) - 1) - first + 1


def _of_graph(source: Path, quantized: Path, feeds: Sequence[Feed]) -> list[QuantizedActivation]:
    grids = _grids(quantized)
    if not grids:
        return []
    counts = {name: np.zeros(STEPS, dtype=np.int64) for name in grids}
    clipped = dict.fromkeys(grids, 0)
    smallest, largest = dict.fromkeys(grids, np.inf), dict.fromkeys(grids, -np.inf)
    for values in watched_values(source, list(grids), feeds):
        for name, value in values.items():
            grid = grids[name]
            steps = np.rint(value.ravel() / grid.scale) + grid.zero_point
            inside = np.clip(steps, 0, STEPS - 1)
            clipped[name] += int((steps != inside).sum())
            counts[name] += np.bincount(inside.astype(np.int64), minlength=STEPS)
            smallest[name] = min(smallest[name], float(value.min(initial=np.inf)))
            largest[name] = max(largest[name], float(value.max(initial=-np.inf)))
    readers = _readers(source)
    return [
        QuantizedActivation(
            graph=source.name,
            layers=readers[name],
            low=grid.scale * -grid.zero_point,
            high=grid.scale * (STEPS - 1 - grid.zero_point),
            smallest=smallest[name],
            largest=largest[name],
            bulk_steps=bulk_steps(counts[name]),
            clipped_share=clipped[name] / max(int(counts[name].sum()), 1),
            counts=counts[name].reshape(HISTOGRAM_BINS, -1).sum(axis=1).tolist(),
        )
        for name, grid in grids.items()
    ]


@dataclass(frozen=True)
class _Grid:
    scale: float
    zero_point: int


def _grids(path: Path) -> dict[str, _Grid]:
    """Scale and zero point of every activation that a graph quantizes to u8."""
    graph = onnx.load(path).graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    found = {}
    for node in graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] not in constants:
            scale, zero = (numpy_helper.to_array(constants[name]) for name in node.input[1:3])
            found[node.input[0]] = _Grid(float(scale), int(zero))
    return found


def _readers(path: Path) -> dict[str, list[str]]:
    """The MatMuls that read each tensor."""
    readers: dict[str, list[str]] = {}
    for node in onnx.load(path, load_external_data=False).graph.node:
        if node.op_type == "MatMul":
            readers.setdefault(node.input[0], []).append(node.name)
    return readers


def _without_counts(activation: QuantizedActivation) -> QuantizedActivation:
    return QuantizedActivation(**{**vars(activation), "counts": []})


def _rounded(value: Any) -> Any:
    """Five digits are plenty for people, and the same on every run."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {name: _rounded(one) for name, one in value.items()}
    return [_rounded(one) for one in value] if isinstance(value, list) else value
