"""FP32 ONNX -> static INT8 for CPUs: u8 activations, s8 weights, explicit Q/DQ around the matrix products.

Every activation has one scale, fixed by calibration on real training requests with true padding. Dynamic INT8 takes
one scale per batch instead, so that a score depends on its batch mates; it is offered for comparison only. Weights
have one scale per output channel. Products without constant weights (attention scores) and the head stay in FP32,
and so do the linear layers that would disturb the logits more than ``quantize.noise`` allows: a few layers of an
encoder have activations with outliers that one scale cannot hold.

The gate judges the result before it is published, against the FP32 graph and against the fine-tuned checkpoint.
"""

import math
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from rich.console import Console
from rich.progress import track

from tritonrank.artifacts import read_manifest, write_artifact
from tritonrank.cpu import has_int8_dot_product
from tritonrank.engine import OnnxEngine
from tritonrank.errors import ArtifactError, GateError, RecipeError
from tritonrank.evaluate import judge_artifact
from tritonrank.export import MODEL_FILE, copy_text_files
from tritonrank.gate import Verdict, verdict
from tritonrank.prepare import Dataset
from tritonrank.quiet import quiet_libraries
from tritonrank.recipe import QuantizeSettings, Recipe
from tritonrank.scorers import Request, requests_of
from tritonrank.text import RequestTokenizer, TextRules

CALIBRATION_METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "percentile": CalibrationMethod.Percentile,
    "entropy": CalibrationMethod.Entropy,
}

NOISE_REQUESTS = 12
"""Calibration requests on which the noise of a graph is measured: about 100 rows, a second of work."""

Feed = dict[str, NDArray[np.int32]]

console = Console()


def quantize_settings(recipe: Recipe) -> dict[str, Any]:
    """What the INT8 graph depends on; the reduced range is resolved, so another CPU builds another artifact."""
    return {
        "quantize": recipe.quantize.model_dump(mode="json"),
        "gate": recipe.gate.model_dump(mode="json"),
        "reduce_range": reduced_range(recipe.quantize),
        "seed": recipe.seed,
    }


def quantize(
    recipe: Recipe, dataset_folder: Path, checkpoint_folder: Path, onnx_folder: Path, folder: Path, judgements: Path
) -> None:
    """Quantize, judge, and publish if the gate passes.

    Args:
        recipe: its quantize and gate sections.
        dataset_folder: calibration and test examples.
        checkpoint_folder: the fine-tuned ranker, the teacher of the gate.
        onnx_folder: the FP32 graph, the parent of the gate.
        folder: where the INT8 artifact goes.
        judgements: cache of judgements.

    Raises:
        GateError: the ranking became worse than the budget allows; nothing was published.
        RecipeError: quantize.exclude leaves nothing to quantize.
    """
    parents = {"onnx": read_manifest(onnx_folder), "dataset": read_manifest(dataset_folder)}
    requests = calibration_requests(recipe, Dataset.read(dataset_folder), TextRules.load(onnx_folder))
    with write_artifact(folder, "quantize", quantize_settings(recipe), parents) as draft:
        copy_text_files(onnx_folder, draft.folder)
        nodes = quantize_graph(onnx_folder, draft.folder / MODEL_FILE, requests, recipe.quantize)
        kept = sorted(set(quantizable_nodes(onnx_folder / MODEL_FILE, [])) - set(nodes))
        stayed = f"; {len(kept)} stay in FP32 (fp32_nodes in the manifest names them)" if kept else ""
        console.print(f"  INT8: {len(nodes)} of {len(nodes) + len(kept)} linear layers{stayed}", highlight=False)
        child = judge_artifact("INT8", draft.folder, dataset_folder, judgements)
        for parent_name, parent_folder in (("ONNX FP32", onnx_folder), ("fine-tuned", checkpoint_folder)):
            parent = judge_artifact(parent_name, parent_folder, dataset_folder, judgements)
            found = verdict(child, parent, recipe.gate.budget, recipe.gate.bootstrap_samples, recipe.seed)
            show_verdict(found)
            found.require()
            draft.metrics[f"gate against {parent_name}"] = found.as_metrics()
        draft.metrics |= {"int8_nodes": nodes, "fp32_nodes": kept, "reduce_range": reduced_range(recipe.quantize)}
        if recipe.quantize.compare_dynamic:
            dynamic = _judge_dynamic(recipe, onnx_folder, nodes, dataset_folder, judgements)
            draft.metrics["dynamic INT8 (comparison)"] = dynamic.as_metrics()


def quantize_graph(onnx_folder: Path, target: Path, requests: list[Request], settings: QuantizeSettings) -> list[str]:
    """Write the Q/DQ graph with as many INT8 layers as the noise limit allows, and return their node names.

    Raises:
        ArtifactError: the written graph does not hold the Q/DQ pairs that were asked for.
        GateError: not even one layer can be quantized within the noise limit.
        RecipeError: quantize.exclude leaves no node to quantize.
    """
    source = onnx_folder / MODEL_FILE
    nodes = quantizable_nodes(source, settings.exclude)
    feeds = _feeds(requests, RequestTokenizer.from_folder(onnx_folder, cache_entries=100_000), input_names(source))
    with tempfile.TemporaryDirectory() as scratch, quiet_libraries():
        writer = _Writer(source, feeds, settings, Path(scratch))
        writer.write(target, nodes)
        noise = _NoiseMeter(source, feeds[:NOISE_REQUESTS])
        if noise.of(target) > settings.noise:
            nodes = _quiet_enough(nodes, writer, noise, target, settings)
    _check_quantized(target, nodes)
    return nodes


class _Writer:
    """Writes Q/DQ graphs of any choice of nodes; calibrates once."""

    def __init__(self, source: Path, feeds: list[Feed], settings: QuantizeSettings, scratch: Path) -> None:
        self.source, self._feeds, self._settings = source, feeds, settings
        self._calibration = scratch / "calibration.json"
        self.scratch = scratch

    def write(self, target: Path, nodes: list[str]) -> None:
        quantize_static(
            self.source,
            target,
            _Calibration(self._feeds),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=reduced_range(self._settings),
            op_types_to_quantize=["MatMul"],
            nodes_to_quantize=nodes,
            calibrate_method=CALIBRATION_METHODS[self._settings.calibration],
            calibration_cache_path=self._calibration,
            extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul"], "WeightSymmetric": True},
        )


class _NoiseMeter:
    """How much a graph changes the logits of the FP32 one: root mean square over the spread of the logits."""

    def __init__(self, source: Path, feeds: list[Feed]) -> None:
        self._feeds = feeds
        self._expected = np.concatenate(OnnxEngine(source).run(feeds))

    def of(self, path: Path) -> float:
        change = np.concatenate(OnnxEngine(path).run(self._feeds)) - self._expected
        return float(np.sqrt(np.mean(change**2)) / max(float(self._expected.std()), 1e-12))


def _quiet_enough(
    nodes: list[str], writer: _Writer, noise: _NoiseMeter, target: Path, settings: QuantizeSettings
) -> list[str]:
    """Leave out the layers that disturb most for their size, until the rest together stays within the noise limit.

    Each layer is quantized alone to see what it does. Such changes are nearly independent, so their squares add up;
    the sum tells how many to leave out at first, and a run of the real graph tells whether that was enough.

    Raises:
        GateError: not even one layer can be quantized within the limit.
    """
    alone: dict[str, float] = {}
    trial = writer.scratch / "trial.onnx"
    for node in track(nodes, "  measuring each layer", transient=True):
        writer.write(trial, [node])
        alone[node] = noise.of(trial)
    size = weight_sizes(writer.source)
    quietest_first = sorted(nodes, key=lambda node: alone[node] ** 2 / size[node])
    together = np.sqrt(np.cumsum([alone[node] ** 2 for node in quietest_first]))
    count = int(np.searchsorted(together, settings.noise, side="right"))
    while count > 0:
        kept = set(quietest_first[:count])
        writer.write(target, [node for node in nodes if node in kept])
        if noise.of(target) <= settings.noise:
            return [node for node in nodes if node in kept]
        count -= max(1, len(nodes) // 12)
    raise GateError(
        f"gate closed: no linear layer can be INT8 within quantize.noise = {settings.noise}; the quietest alone "
        f"changes the logits by {min(alone.values()):.3f} of their spread. Raise it, or set quantize.method: none"
    )


def reduced_range(settings: QuantizeSettings) -> bool:
    """Whether weights get 7 bits: u8 x s8 pairs saturate 16-bit sums on CPUs without VNNI."""
    return not has_int8_dot_product() if settings.reduce_range == "auto" else settings.reduce_range == "on"


def quantizable_nodes(path: Path, exclude: list[str]) -> list[str]:
    """MatMuls with constant weights, less the excluded: the linear layers of the encoder.

    The head is exported as Gemm on [CLS] alone: it costs nothing and stays in FP32.
    """
    graph = onnx.load(path).graph
    constants = {tensor.name for tensor in graph.initializer}
    linear = [node.name for node in graph.node if node.op_type == "MatMul" and node.input[1] in constants]
    kept = [name for name in linear if not any(re.search(pattern, name) for pattern in exclude)]
    if not kept:
        raise RecipeError(f"quantize.exclude: {exclude} leaves none of the {len(linear)} linear layers of {path}")
    return kept


def weight_sizes(path: Path) -> dict[str, int]:
    """Weights of each MatMul by node name: its share of the work."""
    graph = onnx.load(path).graph
    elements = {tensor.name: math.prod(tensor.dims) for tensor in graph.initializer}
    return {node.name: elements.get(node.input[1], 0) for node in graph.node if node.op_type == "MatMul"}


def input_names(path: Path) -> list[str]:
    return [tensor.name for tensor in onnx.load(path, load_external_data=False).graph.input]


def calibration_requests(recipe: Recipe, dataset: Dataset, rules: TextRules) -> list[Request]:
    """Training requests spread over the users, never judged ones, with a few candidates each."""
    generator = np.random.default_rng(recipe.seed)
    wanted = min(recipe.quantize.calibration_examples, len(dataset.training))
    picks = generator.choice(len(dataset.training), size=wanted, replace=False)
    requests = requests_of(dataset, [dataset.training[i] for i in sorted(picks)], rules)
    return [Request(r.query, r.history, r.items[: recipe.quantize.calibration_candidates]) for r in requests]


def show_verdict(found: Verdict) -> None:
    mark = "[green]passed[/]" if found.passed else "[red]closed[/]"
    console.print(
        f"  gate {mark} on {found.examples} requests, {found.child} against {found.parent}: {found.reason}; "
        f"top-10 overlap {found.top10_overlap:.1%}",
        highlight=False,
    )


class _Calibration(CalibrationDataReader):  # type: ignore[misc]
    """One request at a time."""

    def __init__(self, feeds: list[Feed]) -> None:
        self._remaining = iter(feeds)

    def get_next(self) -> Feed | None:
        return next(self._remaining, None)


def _feeds(requests: list[Request], tokenizer: RequestTokenizer, names: list[str]) -> list[Feed]:
    """The rows of each request, padded only to its own longest row."""
    feeds = []
    for request in requests:
        context = tokenizer.context(request.query, request.history)
        rows = vars(tokenizer.joint_rows(context, tokenizer.items(request.items)))
        feeds.append({name: rows[name] for name in names})
    return feeds


def _check_quantized(path: Path, nodes: list[str]) -> None:
    """Count what is really in the file: each chosen MatMul has a DequantizeLinear on both inputs."""
    graph = onnx.load(path).graph
    dequantized = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    bare = [n.name for n in graph.node if n.name in set(nodes) and not set(n.input) <= dequantized]
    found = sum(node.name in set(nodes) for node in graph.node)
    if bare or found != len(nodes):
        raise ArtifactError(
            f"{path}: {found} of {len(nodes)} chosen MatMuls found; without Q/DQ on both inputs: {bare}"
        )


def _judge_dynamic(
    recipe: Recipe, onnx_folder: Path, nodes: list[str], dataset_folder: Path, judgements: Path
) -> Verdict:
    """What dynamic INT8 would have done to the ranking; never published."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        copy_text_files(onnx_folder, folder)
        with quiet_libraries():
            quantize_dynamic(
                onnx_folder / MODEL_FILE,
                folder / MODEL_FILE,
                weight_type=QuantType.QInt8,
                per_channel=True,
                reduce_range=reduced_range(recipe.quantize),
                nodes_to_quantize=nodes,
            )
        child = judge_artifact("dynamic INT8", folder, dataset_folder, judgements)
    parent = judge_artifact("ONNX FP32", onnx_folder, dataset_folder, judgements)
    return verdict(child, parent, recipe.gate.budget, recipe.gate.bootstrap_samples, recipe.seed)
