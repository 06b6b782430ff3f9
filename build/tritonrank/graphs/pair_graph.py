"""A loaded ranker of pairs becomes model.onnx, proved against PyTorch.

The graph is traced from the module in memory, so that everything that ``load_pair_ranker`` made of a checkpoint (a
merged adapter, a modular head, one logit of two) is in it. Names, dynamic axes, shapes and logits are compared before
anything is published.
"""

import gc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from tritonrank_runtime.engine import MODEL_FILE, WEIGHTS_FILE, Feed
from tritonrank_runtime.engines import open_engine
from tritonrank_runtime.joint import JointEngine
from tritonrank_runtime.sessions import RUNTIME_ERRORS
from tritonrank_runtime.text import RequestTokenizer

from tritonrank.artifacts.weight_file import WeightFile
from tritonrank.errors import ArtifactError
from tritonrank.graphs.export import OPSET, TOLERANCE, check_signature
from tritonrank.rankers.graph_writing import trace_graph
from tritonrank.rankers.joint import GRID
from tritonrank.rankers.pair_ranker import Loaded
from tritonrank.rankers.scorers import Request, tensors_of
from tritonrank.system.quiet import quiet_libraries

LARGEST_ALONE = 1_500_000_000
"""Bytes of parameters from which the weights lie in a file of their own: protobuf ends at 2 GB."""


def export_pairs(loaded: Loaded, folder: Path) -> None:
    """Write model.onnx with int32 inputs of (rows, tokens) and logits of (rows, 1)."""
    names = loaded.ranker.input_names
    shape = (2, 9)
    inputs = {name: torch.ones(shape, dtype=torch.int32) for name in names}
    inputs["input_ids"] = torch.arange(5, 5 + 18, dtype=torch.int32).reshape(shape)
    inputs["attention_mask"][1, 5:] = 0
    if "token_type_ids" in inputs:
        inputs["token_type_ids"] = torch.zeros(shape, dtype=torch.int32)
    axes = {name: {0: "rows", 1: "tokens"} for name in names} | {"logits": {0: "rows"}}
    target = folder / MODEL_FILE
    with quiet_libraries(), torch.no_grad():
        trace_graph(loaded.ranker, inputs, axes, ["logits"], target, OPSET)
    if parameter_bytes(loaded) > LARGEST_ALONE:
        _weights_aside(target)
    check_signature(target, {name: {0, 1} for name in names}, {"logits": {0}})


def parameter_bytes(loaded: Loaded) -> int:
    """Of the weights in FP32."""
    return sum(parameter.numel() for parameter in loaded.ranker.parameters()) * 4


def _weights_aside(target: Path) -> None:
    """One file of weights beside the graph, in place of the many that the exporter writes for a large model."""
    graph = onnx.load(target, load_external_data=False)
    scattered = {
        entry.value for tensor in graph.graph.initializer for entry in tensor.external_data if entry.key == "location"
    }
    model = onnx.load(target)
    with WeightFile(target.with_name(WEIGHTS_FILE)) as weights:
        for tensor in model.graph.initializer:
            weights.take(tensor)
    onnx.save(model, target)
    for name in scattered:
        (target.parent / name).unlink(missing_ok=True)
    del model, graph
    gc.collect()


def largest_difference_to_torch(
    loaded: Loaded, folder: Path, tokenizer: RequestTokenizer, requests: Sequence[Request], longest: int
) -> float:
    """Run both on a grid of odd shapes and on requests.

    Args:
        loaded: the ranker.
        folder: holds its graph.
        tokenizer: of the requests.
        requests: real texts.
        longest: tokens of a row that the ranker takes.

    Raises:
        ArtifactError: shapes or values differ; says on what, and by how much.
    """
    engine = open_engine(folder)
    assert isinstance(engine, JointEngine)
    shapes = [shape for shape in GRID if shape[1] <= longest]
    feeds = [_grid_feed(loaded, *shape) for shape in shapes]
    feeds += [{name: tensors_of(request, tokenizer)[name] for name in engine.input_names} for request in requests]
    largest = 0.0
    for feed in feeds:
        what = "rows of shape {} x {}".format(*feed["input_ids"].shape)
        with torch.inference_mode():
            tensors = [torch.from_numpy(np.asarray(feed[name])) for name in loaded.ranker.input_names]
            expected: NDArray[np.float32] = loaded.ranker(*tensors).numpy()
        try:
            found = engine.run_padded(feed)
        except RUNTIME_ERRORS as error:  # a frozen axis
            raise ArtifactError(f"{folder}: the graph cannot run {what}: {error}") from None
        if found.shape != expected.shape:
            raise ArtifactError(f"{folder}: {what} give shape {found.shape}, PyTorch {expected.shape}")
        difference = float(np.abs(found - expected).max() / max(1.0, float(np.abs(expected).max())))
        if not difference <= TOLERANCE:
            raise ArtifactError(
                f"{folder}: logits differ from PyTorch by {difference:.1e} on {what}, more than {TOLERANCE:.0e}: this "
                "model cannot be traced as it is. Please report which model it is"
            )
        largest = max(largest, difference)
    return largest


def _grid_feed(loaded: Loaded, rows: int, tokens: int) -> Feed:
    generator = np.random.default_rng(rows * 1_000 + tokens)
    lengths = generator.integers(2, max(3, tokens + 1), size=rows).clip(max=tokens)
    mask = (np.arange(tokens)[None, :] < lengths[:, None]).astype(np.int32)
    ids = generator.integers(5, loaded.config.vocab_size, size=(rows, tokens), dtype=np.int32)
    padding = loaded.config.pad_token_id
    ids[mask == 0] = padding if isinstance(padding, int) else 0  # some families find positions by it
    segments = (np.arange(tokens)[None, :] >= lengths[:, None] // 2).astype(np.int32) * mask
    feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": segments}
    return {name: feed[name] for name in loaded.ranker.input_names}
