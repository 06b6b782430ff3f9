"""A ranker is cut into N ranks that compute each layer together (tensor parallel).

For every graph and rank there is one ONNX file with ``DistCollective`` sums, which TensorRT compiles, and the same as
segments between the sums, which ONNX Runtime executes; their weights lie beside them, in one file for what every rank
has (embeddings, LayerNorms, head) and one for each rank's share of the layers:

    shards.json                                     ranks, segments, inputs and outputs
    replicated.bin   rank0.bin   rank1.bin          weights
    rank0.candidates.onnx                           for TensorRT
    rank0.candidates.segment00.onnx ...             for ONNX Runtime

A decoder that PyTorch serves has its weights cut instead of graphs (``checkpoint_shards.py``).

The stage proves itself before it is published: real requests go through N processes with a real sum between them, and
have to give the scores of the whole ranker. What it costs and when it pays: docs/tensor-parallel.md.
"""

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
from onnx import TensorProto
from rich.console import Console
from tritonrank_runtime.engine import Engine
from tritonrank_runtime.engines import engine_of, model_files, open_engine
from tritonrank_runtime.shard_runner import SHARDS_FILE, shard_file
from tritonrank_runtime.shard_workers import ShardWorkers, sharded_engine
from tritonrank_runtime.text import RequestTokenizer, TextRules, copy_text_files

from tritonrank.artifacts import Draft
from tritonrank.artifacts.weight_file import WeightFile
from tritonrank.artifacts.workspace import Workspace
from tritonrank.data.dataset import Dataset
from tritonrank.data.requests import requests_of
from tritonrank.errors import ArtifactError
from tritonrank.graphs.graph_view import constant_tensors
from tritonrank.graphs.parallel.cut_graph import SHARE, cut_graph
from tritonrank.graphs.parallel.cut_plan import Plan, shard_plan
from tritonrank.graphs.parallel.segments import segments_of
from tritonrank.rankers.agreement import largest_difference
from tritonrank.rankers.scorers import RequestTensors, tensors_of
from tritonrank.recipe import Recipe
from tritonrank.system.progress import track

REPLICATED_FILE = "replicated.bin"
COMPARED_REQUESTS = 12
TOLERANCE = 1e-4
ROUNDED_TOLERANCE = 1e-2
"""Sums in another order differ in the last digit; where values are rounded to steps (FP16, INT8) it may be one step."""
REORDERED_TIMES = 4
"""Coarse steps move scores by more than that: so many times what switching off ONNX Runtime's fusions moves them."""

console = Console()


def shard(recipe: Recipe, workspace: Workspace, model_folder: Path, draft: Draft) -> None:
    """Write the shards of a model artifact, with tokenizer and text rules beside them.

    Args:
        recipe: its tensor_parallel says into how many ranks.
        workspace: with the dataset, for requests to compare on.
        model_folder: an ONNX artifact in any precision, or a decoder's checkpoint for ``serve.executor: torch``.
        draft: gets the shards.

    Raises:
        ArtifactError: the graphs cannot be cut into so many ranks, or the shards score differently.
    """
    write: Callable[[Path, Path, int], dict[str, Any]] = write_shards
    compare: Callable[[Path, Path, Sequence[RequestTensors]], float] = compare_with_whole
    if recipe.serve.executor == "torch":
        from tritonrank.graphs.parallel import checkpoint_shards

        write = partial(checkpoint_shards.write_checkpoint_shards, device=recipe.serve.device)
        compare = checkpoint_shards.compare_with_checkpoint
    sizes = write(model_folder, draft.folder, recipe.tensor_parallel)
    copy_text_files(model_folder, draft.folder)
    dataset = Dataset.read(workspace.dataset)
    requests = requests_of(dataset, dataset.validation[:COMPARED_REQUESTS], TextRules.load(model_folder))
    tokenizer = RequestTokenizer.from_folder(model_folder)
    difference = compare(model_folder, draft.folder, [tensors_of(request, tokenizer) for request in requests])
    shares = " + ".join(f"{size / 1e6:.1f}" for size in sizes["rank_bytes"])
    console.print(
        f"  {shares} MB of layers; each rank also holds {sizes['replicated_bytes'] / 1e6:.1f} MB\n"
        f"  largest difference to the whole ranker: {difference:.1e} on {len(requests)} requests",
        highlight=False,
    )
    draft.metrics |= sizes | {"difference_on_requests": difference}


def write_shards(model_folder: Path, folder: Path, ranks: int) -> dict[str, Any]:
    """Cut every graph of a folder.

    Returns:
        ``rank_bytes`` of each rank's share of the layers, ``replicated_bytes`` of what every rank holds besides, and
        ``all_reduces`` by graph.

    Raises:
        ArtifactError: there is no graph, or it cannot be cut into so many ranks.
    """
    paths = model_files(model_folder)
    if not paths:
        raise ArtifactError(f"{model_folder}: no ONNX graph is here; build one: tritonrank build RECIPE")
    models = {path: onnx.load(path) for path in paths}
    plans = {path: shard_plan(model, str(path)) for path, model in models.items()}
    described: dict[str, Any] = {}
    with ExitStack() as files:
        replicated = files.enter_context(WeightFile(folder / REPLICATED_FILE))
        own = [files.enter_context(WeightFile(folder / f"rank{rank}.bin")) for rank in range(ranks)]
        jobs = [(path, rank) for path in paths for rank in range(ranks)]
        for path, rank in track(jobs, "cutting"):
            cut = cut_graph(models[path], plans[path], rank, ranks, str(path))
            for tensor in cut.graph.initializer:
                (own[rank] if SHARE in tensor.name else replicated).take(tensor)
            onnx.save(cut, folder / shard_file(rank, path.name))
            described[path.name] = _write_segments(cut, plans[path], path, rank, folder)
    shards = {"ranks": ranks, "graphs": described}
    (folder / SHARDS_FILE).write_text(json.dumps(shards, indent=1) + "\n", encoding="utf-8")
    return {
        "rank_bytes": [file.bytes for file in own],
        "replicated_bytes": replicated.bytes,
        "all_reduces": {path.name: len(plans[path].reduces) for path in paths},
    }


def compare_with_whole(model_folder: Path, folder: Path, requests: Sequence[RequestTensors]) -> float:
    """Score the same requests with the whole ranker and with the shards in processes of their own.

    Returns:
        the largest |logit difference|.

    Raises:
        ArtifactError: it is more than rounding explains.
    """
    whole = open_engine(model_folder).run(requests)
    with ShardWorkers(folder) as workers:
        sharded = sharded_engine(workers).run(requests)
    difference = largest_difference(whole, sharded)
    tolerance = TOLERANCE
    if any(map(_is_rounded, model_files(model_folder))):
        tolerance = ROUNDED_TOLERANCE
        if difference > tolerance:  # steps may be so coarse that any other order of the same sums moves a score
            reordered = _unoptimized_engine(model_folder).run(requests)
            tolerance = max(tolerance, REORDERED_TIMES * largest_difference(whole, reordered))
    if not difference <= tolerance:
        raise ArtifactError(
            f"{folder}: the shards' logits differ by {difference:.1e} from those of {model_folder} (tolerance "
            f"{tolerance:.1e}). Leave tensor_parallel at 1, and report this with the graph: it is a fault of tritonrank"
        )
    return difference


def _unoptimized_engine(model_folder: Path) -> Engine:
    """The whole ranker, operator by operator: nothing is fused, so sums are rounded elsewhere."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    providers = ["CPUExecutionProvider"]
    paths = model_files(model_folder)
    return engine_of({path.name: onnxruntime.InferenceSession(str(path), options, providers) for path in paths})


def _write_segments(cut: onnx.ModelProto, plan: Plan, path: Path, rank: int, folder: Path) -> dict[str, Any]:
    """Save the segments; what shards.json says of the graph."""
    described = []
    for number, segment in enumerate(segments_of(cut, plan.probed)):
        file = f"{path.stem}.segment{number:02d}.onnx"
        onnx.save(segment.model, folder / shard_file(rank, file))
        described.append({"file": file, "partial": segment.partial, "sum": segment.sum})
    return {
        "inputs": [tensor.name for tensor in cut.graph.input],
        "outputs": [tensor.name for tensor in cut.graph.output],
        "split_inputs": plan.split_inputs,
        "split_outputs": plan.split_outputs,
        "segments": described,
    }


def _is_rounded(path: Path) -> bool:
    """Whether a graph computes in FP16 or INT8 anywhere."""
    model = onnx.load(path)
    halves = any(tensor.data_type == TensorProto.FLOAT16 for _, tensor in constant_tensors(model.graph))
    return halves or any(node.op_type == "QuantizeLinear" for node in model.graph.node)
