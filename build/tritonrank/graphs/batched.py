"""A ranker of two graphs as the one that a TensorRT engine needs: whole requests, padded, side by side.

A plan has one graph and static ranges of shapes, so the two graphs of ``export`` (what candidates share, then groups of
candidates) do not fit it. Here the batch dimension is the request, candidates and tokens are padded to what the caller
chooses, and masks keep padding from changing a score. A joint ranker needs no such thing: its graph is batched already.

The graph proves itself twice: against PyTorch's split way on a grid of odd shapes with padding on every axis, and
against the engine that serves the same checkpoint, on real requests of different sizes in one run.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from transformers import PreTrainedModel
from tritonrank_runtime.engine import MODEL_FILE, Feed
from tritonrank_runtime.engines import open_engine
from tritonrank_runtime.padding import PADDING, side_by_side
from tritonrank_runtime.sessions import RUNTIME_ERRORS, open_session
from tritonrank_runtime.split_engine import BatchedEngine, SplitNames
from tritonrank_runtime.text import RequestTokenizer, TextRules, copy_text_files

from tritonrank.artifacts import Draft
from tritonrank.artifacts.workspace import Workspace
from tritonrank.data.dataset import Dataset
from tritonrank.data.requests import requests_of
from tritonrank.errors import ArtifactError
from tritonrank.graphs.export import OPSET, TOLERANCE, Difference, check_signature
from tritonrank.rankers.agreement import largest_difference
from tritonrank.rankers.architectures import split_architecture_of
from tritonrank.rankers.graph_writing import trace_graph
from tritonrank.rankers.pretrained import load_any_ranker
from tritonrank.rankers.scorers import Request, RequestTensors, tensors_of
from tritonrank.rankers.split import BATCHED_GRID
from tritonrank.recipe import Recipe
from tritonrank.system.quiet import quiet_libraries

COMPARED_REQUESTS = 12
REQUESTS_PER_RUN = 4

console = Console()


def export_batched(recipe: Recipe, workspace: Workspace, draft: Draft) -> None:
    """Write model.onnx (FP32, int32 inputs) with tokenizer and text rules beside it.

    Args:
        recipe: it says which checkpoint is exported.
        workspace: with the ranker, its two graphs as they are served on the CPU, and the dataset.
        draft: gets the graph.

    Raises:
        ArtifactError: the graph differs from PyTorch or from the engine, or padding changes a score.
    """
    checkpoint_folder = workspace.ranker(recipe)
    ranker = load_any_ranker(checkpoint_folder)
    export_batched_graph(ranker, draft.folder)
    copy_text_files(checkpoint_folder, draft.folder)
    dataset = Dataset.read(workspace.dataset)
    requests = requests_of(dataset, dataset.validation[:COMPARED_REQUESTS], TextRules.load(checkpoint_folder))
    difference = compare_batched(ranker, draft.folder, workspace.onnx, requests)
    console.print(
        f"  largest difference: {difference.on_grid:.1e} to PyTorch on a grid of padded shapes, "
        f"{difference.on_requests:.1e} to the engine on {len(requests)} requests "
        f"(tolerance {TOLERANCE:.0e})",
        highlight=False,
    )
    draft.metrics |= {"difference_on_grid": difference.on_grid, "difference_on_requests": difference.on_requests}


@torch.no_grad()
def export_batched_graph(ranker: PreTrainedModel, folder: Path, opset: int = OPSET) -> None:
    """Write model.onnx of a ranker."""
    architecture = split_architecture_of(ranker.config)
    names = architecture.split_names
    inputs = {
        names.shared: torch.tensor([[1, 2, 3, 4, 5], [6, 7, PADDING, PADDING, PADDING]], dtype=torch.int32),
        names.rows: torch.tensor(
            [[[1, 2, 3], [4, PADDING, PADDING]], [[5, 6, PADDING], [PADDING] * 3]], dtype=torch.int32
        ),
    }
    *_, batch_pass = architecture.passes(ranker.folded())
    with quiet_libraries():
        trace_graph(batch_pass, inputs, _axes(names), ["logits"], folder / MODEL_FILE, opset)


def _axes(names: SplitNames) -> dict[str, dict[int, str]]:
    """The dynamic ones, by tensor."""
    return {
        names.shared: {0: "requests", 1: "shared_tokens"},
        names.rows: {0: "requests", 1: "candidates", 2: "tokens"},
        "logits": {0: "requests", 1: "candidates"},
    }


def compare_batched(
    ranker: PreTrainedModel,
    folder: Path,
    onnx_folder: Path,
    requests: Sequence[Request],
    tolerance: float = TOLERANCE,
) -> Difference:
    """Run the graph against PyTorch on the grid and against the engine on real requests.

    Raises:
        ArtifactError: names, axes or values differ; says which and by how much.
    """
    path = folder / MODEL_FILE
    architecture = split_architecture_of(ranker.config)
    names = architecture.split_names
    axes = {name: set(named) for name, named in _axes(names).items()}
    check_signature(path, {name: axes[name] for name in names.inputs}, {"logits": axes["logits"]})
    batched = BatchedEngine(names, open_session(path))
    grid = [shape for shape in BATCHED_GRID if architecture.fits(ranker, shape[1], shape[3])]
    on_grid = float(np.max([_grid_difference(ranker.eval(), batched, shape, path) for shape in grid]))
    tokenizer = RequestTokenizer.from_folder(folder)
    tensors = [tensors_of(request, tokenizer) for request in requests]
    expected = open_engine(onnx_folder).run(tensors)
    scored: list[NDArray[np.float32]] = []
    for first in range(0, len(tensors), REQUESTS_PER_RUN):
        run = slice(first, first + REQUESTS_PER_RUN)
        found = _run(
            batched,
            names,
            padded_requests(names, tensors[run]),
            f"requests {first} to {first + REQUESTS_PER_RUN}",
            path,
        )
        scored += [row[: len(scores)] for row, scores in zip(found, expected[run], strict=True)]
    on_requests = largest_difference(scored, expected)
    for what, difference in (("PyTorch on the shape grid", on_grid), ("the engine on real requests", on_requests)):
        if not difference <= tolerance:
            raise ArtifactError(
                f"{path}: logits differ from {what} by {difference:.2e}, more than {tolerance:.0e}. "
                "Look for operators that the exporter approximates"
            )
    return Difference(on_grid, on_requests)


def padded_requests(
    names: SplitNames,
    requests: Sequence[RequestTensors],
    shape: tuple[int, int, int] = (0, 0, 0),
    more_requests: int = 0,
) -> Feed:
    """Requests of any shapes side by side.

    Args:
        names: of their tensors.
        requests: the shared row (tokens,) and those of the candidates (candidates, tokens) each.
        shape: tokens of the shared row, candidates and tokens to pad to at least.
        more_requests: requests of nothing but padding to add, as a batch of a fixed size needs.
    """
    feed = {}
    for name, least in zip(names.inputs, (shape[:1], shape[1:]), strict=True):
        given = [request[name] for request in requests]
        feed[name] = side_by_side([*given, *[given[0][:0]] * more_requests], shape=least)
    return feed


def _grid_difference(
    ranker: PreTrainedModel, batched: BatchedEngine, shape: tuple[int, int, int, int], path: Path
) -> float:
    """Requests of every size up to the shape's, in one run; the first fills it."""
    architecture = split_architecture_of(ranker.config)
    requests, shared_tokens, candidates, tokens = shape
    generator = np.random.default_rng(requests * 1_000 + shared_tokens)
    vocabulary = ranker.config.vocab_size
    made = [architecture.random_request(generator, vocabulary, shared_tokens, candidates, tokens)]
    while len(made) < requests:
        sizes = (int(generator.integers(1, most + 1)) for most in (shared_tokens, candidates, tokens))
        made.append(architecture.random_request(generator, vocabulary, *sizes))
    names = architecture.split_names
    found = _run(batched, names, padded_requests(names, made, more_requests=1), f"shape {shape}", path)
    scored, expected = list[NDArray[np.float32]](), list[NDArray[np.float32]]()
    for row, request in zip(found, made, strict=False):  # the last row is padding alone
        expected.append(architecture.split_logits(ranker, request))
        scored.append(row[: len(expected[-1])])
    return largest_difference(scored, expected)


def _run(batched: BatchedEngine, names: SplitNames, feed: Feed, what: str, path: Path) -> NDArray[np.float32]:
    try:
        found = batched.run_padded(feed)
    except RUNTIME_ERRORS as error:  # a frozen axis
        raise ArtifactError(f"{path}: cannot run {what}: {error}") from None
    if found.shape != feed[names.rows].shape[:2] or not np.isfinite(found).all():
        raise ArtifactError(f"{path}: {what} gives shape {found.shape}, or logits that are not finite")
    return found
