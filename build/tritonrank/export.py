"""A checkpoint becomes ONNX: the single file that ONNX Runtime executes and TensorRT compiles.

The export proves itself against PyTorch before it is published: tensor names, dynamic axes, shapes on a grid with odd
sizes, and logits within the recipe's tolerance on the grid and on real requests. A mismatch is an error.
"""

import itertools
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from optimum.exporters.onnx import main_export
from rich.console import Console

from tritonrank.artifacts import read_manifest, write_artifact
from tritonrank.engine import OnnxEngine
from tritonrank.errors import ArtifactError
from tritonrank.prepare import Dataset
from tritonrank.pretrained import load_ranker, longest_input
from tritonrank.quiet import quiet_libraries
from tritonrank.recipe import Recipe
from tritonrank.scorers import EngineScorer, Request, model_input_names, requests_of, torch_scorer
from tritonrank.text import RULES_FILE, TOKENIZER_FILE, RequestTokenizer, TextRules

MODEL_FILE = "model.onnx"
GRID = ((1, 2), (1, 7), (3, 16), (5, 33), (2, 101))
"""(rows, tokens) on which ONNX is compared with PyTorch; odd sizes show an axis that was frozen."""
COMPARED_REQUESTS = 20

console = Console()


@dataclass(frozen=True)
class Difference:
    """Largest |logit difference| between PyTorch and ONNX."""

    on_grid: float
    on_requests: float


def export_settings(recipe: Recipe) -> dict[str, Any]:
    return {"export": recipe.export.model_dump(mode="json")}


def export(recipe: Recipe, dataset_folder: Path, checkpoint_folder: Path, folder: Path) -> None:
    """Write model.onnx (FP32, int32 inputs, logits (rows, 1)) with tokenizer and text rules beside it.

    Raises:
        ArtifactError: the graph differs from PyTorch in names, axes, shapes or values.
    """
    parents = {"checkpoint": read_manifest(checkpoint_folder)}
    with write_artifact(folder, "export", export_settings(recipe), parents) as draft:
        export_graph(checkpoint_folder, draft.folder / MODEL_FILE, recipe.export.opset)
        copy_text_files(checkpoint_folder, draft.folder)
        dataset = Dataset.read(dataset_folder)
        requests = requests_of(dataset, dataset.validation[:COMPARED_REQUESTS], TextRules.load(checkpoint_folder))
        difference = compare_with_torch(checkpoint_folder, draft.folder, requests, recipe.export.tolerance)
        console.print(
            f"  largest difference to PyTorch: {difference.on_grid:.1e} on a grid of {len(GRID)} shapes, "
            f"{difference.on_requests:.1e} on {len(requests)} requests (tolerance {recipe.export.tolerance:.0e})",
            highlight=False,
        )
        draft.metrics |= {"difference_on_grid": difference.on_grid, "difference_on_requests": difference.on_requests}


def copy_text_files(source: Path, target: Path) -> None:
    """tokenizer.json and text.json travel with every model file: they define what its inputs mean."""
    for name in (TOKENIZER_FILE, RULES_FILE):
        shutil.copyfile(source / name, target / name)


def export_graph(checkpoint_folder: Path, target: Path, opset: int) -> None:
    """Export through optimum, then narrow the inputs to int32: every engine takes it, and it halves the traffic."""
    scratch = target.with_suffix(".export")
    try:
        with quiet_libraries():
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


def compare_with_torch(
    checkpoint_folder: Path, onnx_folder: Path, requests: Sequence[Request], tolerance: float
) -> Difference:
    """Run both on the grid and on real requests.

    Raises:
        ArtifactError: names, axes, shapes or values differ; says which and by how much.
    """
    model = load_ranker(str(checkpoint_folder), new_head=False).eval()
    names = model_input_names(model)
    path = onnx_folder / MODEL_FILE
    _check_signature(path, names)
    engine = OnnxEngine(path)
    grid = max(_grid_difference(model, engine, names, rows, tokens, path) for rows, tokens in _fitting_grid(model))
    tokenizer = RequestTokenizer.from_folder(onnx_folder)
    torch_scores, onnx_scores = torch_scorer(model, tokenizer), EngineScorer(tokenizer, engine.run)
    real = max(
        (float(np.abs(torch_scores.score(r) - onnx_scores.score(r)).max(initial=0)) for r in requests), default=0.0
    )
    for what, difference in (("the shape grid", grid), ("real requests", real)):
        if not difference <= tolerance:
            raise ArtifactError(
                f"{path}: logits differ from PyTorch by {difference:.2e} on {what}, more than export.tolerance "
                f"{tolerance:.0e}. Try another export.opset, or look for operators that the exporter approximates"
            )
    return Difference(grid, real)


def _fitting_grid(model: Any) -> list[tuple[int, int]]:
    return [(rows, tokens) for rows, tokens in GRID if tokens <= longest_input(model)]


def _grid_difference(model: Any, engine: OnnxEngine, names: list[str], rows: int, tokens: int, path: Path) -> float:
    generator = np.random.default_rng(rows * 1_000 + tokens)
    lengths = generator.integers(1, tokens + 1, size=rows)
    mask = (np.arange(tokens)[None, :] < lengths[:, None]).astype(np.int32)
    feeds = {
        "input_ids": generator.integers(5, model.config.vocab_size, size=(rows, tokens), dtype=np.int32),
        "attention_mask": mask,
        "token_type_ids": generator.integers(0, 2, size=(rows, tokens), dtype=np.int32),
    }
    feeds = {name: feeds[name] for name in names}
    try:
        found = engine.run_padded(feeds)
    except Exception as error:  # noqa: BLE001  (onnxruntime raises one class per status; all mean a frozen axis here)
        raise ArtifactError(f"{path}: cannot run {rows} rows of {tokens} tokens: {error}") from None
    with torch.inference_mode():
        expected = model(**{name: torch.from_numpy(feed).long() for name, feed in feeds.items()}).logits.numpy()
    if found.shape != expected.shape:
        raise ArtifactError(f"{path}: {rows} x {tokens} gives shape {found.shape}, PyTorch {expected.shape}")
    return float(np.abs(found - expected).max())


def _check_signature(path: Path, names: Sequence[str]) -> None:
    graph = onnx.load(path, load_external_data=False).graph
    found = [tensor.name for tensor in graph.input]
    if sorted(found) != sorted(names) or [tensor.name for tensor in graph.output] != ["logits"]:
        raise ArtifactError(
            f"{path}: inputs {found}, outputs {[t.name for t in graph.output]}; expected {list(names)} and logits"
        )
    for tensor, axis in itertools.product(graph.input, (0, 1)):
        if not tensor.type.tensor_type.shape.dim[axis].dim_param:
            raise ArtifactError(f"{path}: axis {axis} of {tensor.name} is frozen; it has to be dynamic")


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
