"""A checkpoint becomes ONNX: the files that ONNX Runtime executes and TensorRT compiles.

A joint ranker is one graph, model.onnx. A shared-context ranker is two: context.onnx gives the keys and values of a
user's context, candidates.onnx uses them for one group of candidates after the other, each padded to its own length.
(One graph would have to pad all candidates of a request to the longest, 1.6 times the tokens on MovieLens, or to run
the context again for every group.)

The export proves itself against PyTorch before it is published: tensor names, dynamic axes, shapes on a grid with odd
sizes, and logits within the recipe's tolerance on the grid and on real requests. A mismatch is an error.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from optimum.exporters.onnx import main_export
from rich.console import Console
from torch import Tensor, nn
from tritonrank_runtime.engine import CANDIDATES_FILE, CONTEXT_FILE, MODEL_FILE, Engine
from tritonrank_runtime.engines import open_engine
from tritonrank_runtime.joint import JointEngine
from tritonrank_runtime.padding import PADDING
from tritonrank_runtime.sessions import RUNTIME_ERRORS
from tritonrank_runtime.text import RequestTokenizer, TextRules, copy_text_files

from tritonrank.artifacts import Draft
from tritonrank.artifacts.workspace import Workspace
from tritonrank.data.prepare import Dataset
from tritonrank.data.requests import requests_of
from tritonrank.errors import ArtifactError
from tritonrank.graphs.weight_file import share_weights
from tritonrank.rankers.agreement import largest_difference
from tritonrank.rankers.modeling import SharedContextRanker
from tritonrank.rankers.pretrained import is_shared_context, load_any_ranker, load_shared_context_ranker, longest_input
from tritonrank.rankers.scorers import EngineScorer, Request, RequestTensors, model_input_names, torch_scorer
from tritonrank.recipe import Recipe
from tritonrank.system.quiet import quiet_libraries

JOINT_GRID = ((1, 2), (1, 7), (3, 16), (5, 33), (2, 101))
"""(rows, tokens) on which ONNX is compared with PyTorch; odd sizes show an axis that was frozen."""
SHARED_CONTEXT_GRID = ((2, 1, 2), (7, 3, 5), (33, 5, 16), (60, 13, 31), (1, 2, 3))
"""(context tokens, candidates, tokens)"""
COMPARED_REQUESTS = 20
COMPARED_CANDIDATES = 25
"""Of each real request: what ONNX and PyTorch are compared on. All test requests are judged later anyway."""
OPSET = 18
"""Of ONNX: 17 brought LayerNormalization, and every engine that is served with knows 18."""
TOLERANCE = 1e-4
"""Largest |logit difference| between PyTorch and ONNX; what rounding costs is far below."""

console = Console()


@dataclass(frozen=True)
class Difference:
    """Largest |logit difference| between PyTorch and ONNX."""

    on_grid: float
    on_requests: float


def export(recipe: Recipe, workspace: Workspace, draft: Draft) -> None:
    """Write the graphs (FP32, int32 inputs) with tokenizer and text rules beside them.

    Args:
        recipe: it says which checkpoint is exported.
        workspace: with that checkpoint, and the dataset for requests to compare on.
        draft: gets the graphs.

    Raises:
        ArtifactError: the graph differs from PyTorch in names, axes, shapes or values.
    """
    checkpoint_folder = workspace.ranker(recipe)
    export_graphs(checkpoint_folder, draft.folder)
    copy_text_files(checkpoint_folder, draft.folder)
    dataset = Dataset.read(workspace.dataset)
    requests = requests_of(dataset, dataset.validation[:COMPARED_REQUESTS], TextRules.load(checkpoint_folder))
    requests = [Request(r.query, r.history, r.items[:COMPARED_CANDIDATES]) for r in requests]
    difference = compare_with_torch(checkpoint_folder, draft.folder, requests)
    console.print(
        f"  largest difference to PyTorch: {difference.on_grid:.1e} on a grid of shapes, "
        f"{difference.on_requests:.1e} on {len(requests)} requests (tolerance {TOLERANCE:.0e})",
        highlight=False,
    )
    draft.metrics |= {"difference_on_grid": difference.on_grid, "difference_on_requests": difference.on_requests}


def export_graphs(checkpoint_folder: Path, folder: Path, opset: int = OPSET) -> None:
    """Write the graphs of a checkpoint of either architecture."""
    with quiet_libraries():
        if is_shared_context(str(checkpoint_folder)):
            _export_shared_context(load_shared_context_ranker(str(checkpoint_folder)).folded(), folder, opset)
            share_weights(folder)
        else:
            _export_joint(checkpoint_folder, folder / MODEL_FILE, opset)


def _export_joint(checkpoint_folder: Path, target: Path, opset: int) -> None:
    """Export through optimum, then narrow the inputs to int32: every engine takes it, and it halves the traffic."""
    scratch = target.with_suffix(".export")
    try:
        main_export(
            str(checkpoint_folder),
            scratch,
            task="text-classification",
            opset=opset,
            do_validation=False,
            no_post_process=True,
            framework="pt",
        )
        model = onnx.load(scratch / "model.onnx")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    _narrow_inputs(model)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, target)


class _ContextPass(nn.Module):
    def __init__(self, ranker: SharedContextRanker) -> None:
        super().__init__()
        self.ranker = ranker

    def forward(self, context_ids: Tensor) -> tuple[Tensor, Tensor]:
        return self.ranker.encode_context(context_ids)


class _CandidatePass(nn.Module):
    def __init__(self, ranker: SharedContextRanker) -> None:
        super().__init__()
        self.ranker = ranker

    def forward(self, context_keys: Tensor, context_values: Tensor, candidate_ids: Tensor) -> Tensor:
        return self.ranker.score_candidates(context_keys, context_values, candidate_ids)


CONTEXT_AXES = {axis: {2: "context_tokens"} for axis in ("context_keys", "context_values")}
"""Keys and values are (layers, heads, context tokens, head size)."""


@torch.no_grad()
def _export_shared_context(ranker: SharedContextRanker, folder: Path, opset: int) -> None:
    context_ids = torch.arange(5, dtype=torch.int32)
    candidate_ids = torch.tensor([[1, 2, 3], [4, PADDING, PADDING]], dtype=torch.int32)
    keys, values = ranker.encode_context(context_ids)
    trace_graph(
        _ContextPass(ranker),
        {"context_ids": context_ids},
        {"context_ids": {0: "context_tokens"}, **CONTEXT_AXES},
        ["context_keys", "context_values"],
        folder / CONTEXT_FILE,
        opset,
    )
    trace_graph(
        _CandidatePass(ranker),
        {"context_keys": keys, "context_values": values, "candidate_ids": candidate_ids},
        {**CONTEXT_AXES, "candidate_ids": {0: "candidates", 1: "tokens"}, "logits": {0: "candidates"}},
        ["logits"],
        folder / CANDIDATES_FILE,
        opset,
    )


def trace_graph(
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    axes: Mapping[str, Mapping[int, str]],
    outputs: Sequence[str],
    target: Path,
    opset: int,
) -> None:
    # The tracing exporter: its graphs hold standard operators under readable names, which quantization refers to.
    torch.onnx.export(
        module.eval(),
        tuple(inputs.values()),
        str(target),
        dynamo=False,
        opset_version=opset,
        input_names=list(inputs),
        output_names=list(outputs),
        dynamic_axes={name: dict(named) for name, named in axes.items()},
    )
    model = onnx.load(target)
    onnx.checker.check_model(model, full_check=True)


def compare_with_torch(
    checkpoint_folder: Path, onnx_folder: Path, requests: Sequence[Request], tolerance: float = TOLERANCE
) -> Difference:
    """Run both on the grid and on real requests.

    Raises:
        ArtifactError: names, axes, shapes or values differ; says which and by how much.
    """
    model = load_any_ranker(checkpoint_folder).eval()
    for path, inputs, outputs in _signatures(model, onnx_folder):
        check_signature(path, inputs, outputs)
    engine = open_engine(onnx_folder)
    grid = _grid_difference(model, engine, onnx_folder)
    tokenizer = RequestTokenizer.from_folder(onnx_folder)
    torch_scores, onnx_scores = torch_scorer(model, tokenizer), EngineScorer(tokenizer, engine.run)
    real = largest_difference([onnx_scores.score(r) for r in requests], [torch_scores.score(r) for r in requests])
    for what, difference in (("the shape grid", grid), ("real requests", real)):
        if not difference <= tolerance:
            raise ArtifactError(
                f"{onnx_folder}: logits differ from PyTorch by {difference:.2e} on {what}, more than "
                f"{tolerance:.0e}. Look for operators that the exporter approximates"
            )
    return Difference(grid, real)


def _signatures(model: Any, folder: Path) -> Iterator[tuple[Path, dict[str, set[int]], dict[str, set[int]]]]:
    """Each graph with its inputs and outputs, and which of their axes have to be dynamic."""
    if isinstance(model, SharedContextRanker):
        context = {name: set(axes) for name, axes in CONTEXT_AXES.items()}
        yield folder / CONTEXT_FILE, {"context_ids": {0}}, context
        yield folder / CANDIDATES_FILE, context | {"candidate_ids": {0, 1}}, {"logits": {0}}
    else:
        yield folder / MODEL_FILE, {name: {0, 1} for name in model_input_names(model)}, {"logits": {0}}


def check_signature(path: Path, inputs: Mapping[str, set[int]], outputs: Mapping[str, set[int]]) -> None:
    graph = onnx.load(path, load_external_data=False).graph
    for what, found, expected in (("inputs", graph.input, inputs), ("outputs", graph.output, outputs)):
        names = [tensor.name for tensor in found]
        if sorted(names) != sorted(expected):
            raise ArtifactError(f"{path}: {what} {names}; expected {list(expected)}")
        for tensor in found:
            for axis in sorted(expected[tensor.name]):
                if not tensor.type.tensor_type.shape.dim[axis].dim_param:
                    raise ArtifactError(f"{path}: axis {axis} of {tensor.name} is frozen; it has to be dynamic")


def _grid_difference(model: Any, engine: Engine, folder: Path) -> float:
    """Largest |logit difference| over the shapes of the grid that the model can take."""
    if isinstance(engine, JointEngine):
        shapes = [shape for shape in JOINT_GRID if shape[1] <= longest_input(model)]
        return float(np.max([_joint_difference(model, engine, rows, tokens, folder) for rows, tokens in shapes]))
    positions, start = longest_input(model), model.config.context_positions
    grid = [shape for shape in SHARED_CONTEXT_GRID if shape[0] <= start and start + shape[2] <= positions]
    return float(np.max([_shared_context_difference(model, engine, shape, folder) for shape in grid]))


def _joint_difference(model: Any, engine: JointEngine, rows: int, tokens: int, folder: Path) -> float:
    generator = np.random.default_rng(rows * 1_000 + tokens)
    lengths = generator.integers(1, tokens + 1, size=rows)
    mask = (np.arange(tokens)[None, :] < lengths[:, None]).astype(np.int32)
    feeds = {
        "input_ids": generator.integers(5, model.config.vocab_size, size=(rows, tokens), dtype=np.int32),
        "attention_mask": mask,
        "token_type_ids": generator.integers(0, 2, size=(rows, tokens), dtype=np.int32),
    }
    feeds = {name: feeds[name] for name in model_input_names(model)}
    with torch.inference_mode():
        expected = model(**{name: torch.from_numpy(feed).long() for name, feed in feeds.items()}).logits.numpy()
    return _difference(lambda: engine.run_padded(feeds), expected, f"{rows} rows of {tokens} tokens", folder)


def _shared_context_difference(
    model: SharedContextRanker, engine: Engine, shape: tuple[int, int, int], folder: Path
) -> float:
    context_tokens, candidates, tokens = shape
    generator = np.random.default_rng(context_tokens * 1_000 + candidates)
    lengths = generator.integers(1, tokens + 1, size=candidates)
    lengths[0] = tokens
    vocabulary = model.config.vocab_size
    candidate_ids = generator.integers(5, vocabulary, size=(candidates, tokens), dtype=np.int32)
    candidate_ids[np.arange(tokens)[None, :] >= lengths[:, None]] = PADDING
    request: RequestTensors = {
        "context_ids": generator.integers(5, vocabulary, size=context_tokens, dtype=np.int32),
        "candidate_ids": candidate_ids,
    }
    with torch.inference_mode():
        keys, values = model.encode_context(torch.from_numpy(request["context_ids"]))
        expected = model.score_candidates(keys, values, torch.from_numpy(candidate_ids)).numpy()
    what = f"{context_tokens} context tokens and {candidates} candidates of {tokens} tokens"
    return _difference(lambda: engine.run([request])[0], expected, what, folder)


def _difference(
    run: Callable[[], NDArray[np.float32]], expected: NDArray[np.float32], what: str, folder: Path
) -> float:
    try:
        found = run()
    except RUNTIME_ERRORS as error:  # a frozen axis
        raise ArtifactError(f"{folder}: cannot run {what}: {error}") from None
    if found.shape != expected.shape:
        raise ArtifactError(f"{folder}: {what} give shape {found.shape}, PyTorch {expected.shape}")
    return float(np.abs(found - expected).max())


def _narrow_inputs(model: onnx.ModelProto) -> None:
    for tensor in model.graph.input:
        if tensor.type.tensor_type.elem_type != TensorProto.INT64:
            continue
        wide = f"{tensor.name}_int64"
        for node in model.graph.node:
            for position, name in enumerate(node.input):
                if name == tensor.name:
                    node.input[position] = wide
        cast = helper.make_node("Cast", [tensor.name], [wide], name=f"widen_{tensor.name}", to=TensorProto.INT64)
        model.graph.node.insert(0, cast)
        tensor.type.tensor_type.elem_type = TensorProto.INT32
