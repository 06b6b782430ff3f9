"""What compression did inside the model: what was cut where, what INT8 costs by layer, which activations are hard.

All of it was recorded when the artifacts were made; what an older build did not record is left out.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tritonrank.quantize.calibration_record import BULK, STEPS, CalibrationRecord, LayerNoise
from tritonrank.report.ladder import Build
from tritonrank.report.plots.kept_matrix import LayerParts
from tritonrank.shrink.cut import PRUNING_FILE, Kept

MOST_LAYERS_SHOWN = 48
SYMMETRIC_STEPS = 127
"""On either side of 0."""


@dataclass(frozen=True)
class Change:
    """A number before and after."""

    name: str
    before: float
    after: float


@dataclass(frozen=True)
class Pruning:
    """What ``prune`` kept of the teacher."""

    sizes: list[Change]
    layers: list[LayerParts]
    """all layers of the teacher; a removed one has no heads and no neurons"""
    heads: int
    neurons: int
    """per layer of the teacher"""
    layer_measure: str
    """what layer_importance is, in words"""
    layer_importance: list[float]
    """per layer of the teacher; empty where no layer had to go"""
    criteria: dict[str, float]
    """criteria of layers + of heads and neurons -> validation NDCG@10 right after cutting"""
    chosen: str
    """the criteria that were taken"""
    vocabulary: str
    """a sentence, empty where the vocabulary was left alone"""


@dataclass(frozen=True)
class Sensitivity:
    """Noise by linear layer, loudest first."""

    noise: LayerNoise
    layers: list[tuple[str, float, bool]]
    """(layer, noise of it alone, whether it became INT8)"""
    hidden: int
    """quieter layers that are not shown"""


@dataclass(frozen=True)
class ActivationRow:
    """One quantized activation."""

    name: str
    """the layers that read it"""
    graph: str
    low: float
    high: float
    smallest: float
    largest: float
    steps: int
    """of the range's steps, those that 99.9% of the values share"""
    steps_in_all: int
    clipped_share: float | None
    counts: list[int]
    """histogram over ``counted``; empty where none was kept"""
    counted: tuple[float, float]


@dataclass(frozen=True)
class Quantization:
    """One INT8 artifact."""

    rung: str
    int8: int
    layers: int
    kept_in_fp32: list[str]
    sensitivity: Sensitivity | None
    noise: LayerNoise | None
    activations: list[ActivationRow]
    """those with the fewest steps for 99.9% of the values first"""


def pruning(build: Build) -> Pruning | None:
    """What was pruned where; None where nothing was."""
    if "pruned" not in build.artifacts:
        return None
    folder, manifest = build.artifacts["pruned"]
    metrics = manifest.metrics
    if "sizes" not in metrics or not (folder / PRUNING_FILE).is_file():
        return None
    kept, before, after = Kept.load(folder), metrics["sizes"]["teacher"], metrics["sizes"]["pruned"]
    parts = {
        layer: LayerParts(layer, heads, neurons)
        for layer, heads, neurons in zip(kept.layers, kept.heads, kept.neurons, strict=True)
    }
    measure, importance = next(iter(metrics.get("layers", {}).get("importance", {}).items()), ("", []))
    settings = manifest.settings.get("prune") or {}
    words = {"ffn_neurons": "FFN neurons per layer", "heads": "attention heads per layer", "vocabulary": "tokens"}
    sizes = [Change(words.get(name, name), before[name], after[name]) for name in before]
    sizes += [
        Change(name.replace("_", " ").replace("gflop", "GFLOP"), metrics[name]["teacher"], metrics[name]["pruned"])
        for name in ("parameters", "gflop_per_request")
        if name in metrics
    ]
    return Pruning(
        sizes=sizes,
        layers=[parts.get(layer, LayerParts(layer, [], [])) for layer in range(before["layers"])],
        heads=before["heads"],
        neurons=before["ffn_neurons"],
        layer_measure=measure,
        layer_importance=importance if len(importance) == before["layers"] else [],
        criteria=metrics.get("validation ndcg@10 by criteria", {}),
        chosen=f"{settings.get('layer_criterion', '')} + {settings.get('criterion', '')}",
        vocabulary=_vocabulary(metrics.get("vocabulary"), before["vocabulary"]),
    )


def quantizations(build: Build) -> list[Quantization]:
    """Every INT8 artifact: for the CPU, and as TensorRT takes it."""
    found = []
    for rung, artifact in build.rungs().items():
        metrics = artifact.manifest.metrics
        if "int8_nodes" not in metrics or "fp32_nodes" not in metrics:
            continue
        int8, fp32 = metrics["int8_nodes"], metrics["fp32_nodes"]
        record = CalibrationRecord.load(artifact.folder)
        found.append(
            Quantization(
                rung=rung,
                int8=len(int8),
                layers=len(int8) + len(fp32),
                kept_in_fp32=[layer_name(node) for node in fp32],
                sensitivity=_sensitivity(record.noise, set(int8)) if record and record.noise.by_layer else None,
                noise=record.noise if record else None,
                activations=_recorded(record) if record else _magnitudes(metrics.get("activations", {})),
            )
        )
    return found


def layer_name(node: str) -> str:
    """A node's name for people: ``/ffn_in_2/MatMul`` is L2 ffn in; joint rankers' paths end up alike."""
    path = node.strip("/").removesuffix("/MatMul")
    if joint := re.search(r"layers?[./](\d+)/(.+)$", path):
        parts = [part for part in joint[2].split("/") if part not in {"self", "dense"}]
        return f"L{joint[1]} {' '.join(parts)}"
    if shared := re.fullmatch(r"([a-z_]+?)(?:_(\d+))?", path):
        return f"L{shared[2] or 0} {shared[1].replace('_', ' ')}"
    return path


def _names(nodes: Sequence[str]) -> str:
    """Layers that read one activation: L2 key, value, query."""
    names = [layer_name(node) for node in nodes]
    prefix = names[0].split(" ")[0] + " " if names else ""
    return prefix + ", ".join(name.removeprefix(prefix) for name in names)


def _vocabulary(measured: Mapping[str, Any] | None, before: int) -> str:
    if not measured:
        return ""
    items = measured["held-out items"]
    return (
        f"Of {before:,} tokens {measured['tokens']:,} stay. What texts to come may cost was tried with items that the "
        f"smaller vocabulary had not seen ({items['after']['texts']:,} of them): they take "
        f"{measured['held-out extra tokens']:+.1%} tokens, and {items['after']['unknown_share']:.2%} of the tokens are "
        f"unknown (before: {items['before']['unknown_share']:.2%})."
    )


def _sensitivity(noise: LayerNoise, int8: set[str]) -> Sensitivity:
    loudest = sorted(noise.by_layer.items(), key=lambda one: -one[1])
    rows = [(layer_name(node), value, node in int8) for node, value in loudest]
    return Sensitivity(noise, rows[:MOST_LAYERS_SHOWN], max(0, len(rows) - MOST_LAYERS_SHOWN))


def _recorded(record: CalibrationRecord) -> list[ActivationRow]:
    return [
        ActivationRow(
            name=_names(one.layers),
            graph=one.graph.removesuffix(".onnx"),
            low=one.low,
            high=one.high,
            smallest=one.smallest,
            largest=one.largest,
            steps=one.bulk_steps,
            steps_in_all=STEPS,
            clipped_share=one.clipped_share,
            counts=one.counts,
            counted=(one.low, one.high),
        )
        for one in record.activations
    ]


def _magnitudes(activations: Mapping[str, Mapping[str, Any]]) -> list[ActivationRow]:
    """Symmetric ranges with histograms of magnitudes from 0 to the largest, as the INT8 graph for TensorRT has them."""
    rows = []
    for name, one in activations.items():
        counts, covered, largest = np.asarray(one["counts"], dtype=np.int64), one["range"], one["largest"]
        cumulated = np.cumsum(counts) / max(int(counts.sum()), 1)
        bulk = largest * (int(np.searchsorted(cumulated, BULK)) + 1) / len(counts)
        rows.append(
            ActivationRow(
                name=name.strip("/"),
                graph="model",
                low=-covered,
                high=covered,
                smallest=-largest,
                largest=largest,
                steps=min(SYMMETRIC_STEPS, max(1, round(SYMMETRIC_STEPS * bulk / max(covered, 1e-12)))),
                steps_in_all=SYMMETRIC_STEPS,
                clipped_share=None,
                counts=counts.tolist(),
                counted=(0.0, largest),
            )
        )
    return sorted(rows, key=lambda row: row.steps)
