"""A checkpoint becomes ONNX: the files that ONNX Runtime executes and TensorRT compiles.

Which graphs there are is the architecture's (``rankers/joint.py``, ``rankers/shared_context.py``).

The export proves itself against PyTorch before it is published: tensor names, dynamic axes, shapes on a grid with odd
sizes, and logits within the recipe's tolerance on the grid and on real requests. A mismatch is an error.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from rich.console import Console
from tritonrank_runtime.engine import Engine
from tritonrank_runtime.engines import model_files, open_engine
from tritonrank_runtime.sessions import RUNTIME_ERRORS
from tritonrank_runtime.text import RequestTokenizer, TextRules, copy_text_files

from tritonrank.artifacts import Draft
from tritonrank.artifacts.weight_file import share_weights
from tritonrank.artifacts.workspace import Workspace
from tritonrank.data.dataset import Dataset
from tritonrank.data.requests import requests_of
from tritonrank.errors import ArtifactError
from tritonrank.rankers.agreement import largest_difference
from tritonrank.rankers.architecture import GridCase
from tritonrank.rankers.architectures import architecture_of
from tritonrank.rankers.pretrained import load_any_ranker, load_config
from tritonrank.rankers.scorers import EngineScorer, Request, torch_scorer
from tritonrank.recipe import Recipe
from tritonrank.system.quiet import quiet_libraries

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
        architecture_of(load_config(str(checkpoint_folder))).write_graphs(checkpoint_folder, folder, opset)
        if len(model_files(folder)) > 1:
            share_weights(folder)


def compare_with_torch(
    checkpoint_folder: Path, onnx_folder: Path, requests: Sequence[Request], tolerance: float = TOLERANCE
) -> Difference:
    """Run both on the grid and on real requests.

    Raises:
        ArtifactError: names, axes, shapes or values differ; says which and by how much.
    """
    model = load_any_ranker(checkpoint_folder).eval()
    architecture = architecture_of(model.config)
    for name, (inputs, outputs) in architecture.signatures(model).items():
        check_signature(onnx_folder / name, inputs, outputs)
    engine = open_engine(onnx_folder)
    grid = float(np.max([_difference(case, engine, onnx_folder) for case in architecture.grid_cases(model)]))
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


def _difference(case: GridCase, engine: Engine, folder: Path) -> float:
    """Largest |logit difference| of a request of odd sizes."""
    try:
        found = case.run(engine)
    except RUNTIME_ERRORS as error:  # a frozen axis
        raise ArtifactError(f"{folder}: cannot run {case.what}: {error}") from None
    if found.shape != case.expected.shape:
        raise ArtifactError(f"{folder}: {case.what} give shape {found.shape}, PyTorch {case.expected.shape}")
    return float(np.abs(found - case.expected).max())
