"""Every graph that TensorRT compiles, of one ranker: FP32, FP16, INT8 and mixed."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from test_families import OPSET, REQUESTS, recipe_for, spread_logits
from tiny_models import save_ranker
from tritonrank.graphs.batched import export_batched_graph
from tritonrank.graphs.export import export_graphs
from tritonrank.judge.open_scorer import open_scorer
from tritonrank.quantize.half import to_half
from tritonrank.quantize.int8_tensorrt import Calibration, quantize_graph
from tritonrank.quantize.qdq_rules import check_graph
from tritonrank.rankers.modeling import SharedContextRanker
from tritonrank.recipe import Recipe
from tritonrank.train.finetune import save_checkpoint, untrained_ranker
from tritonrank_runtime.joint import JOINT
from tritonrank_runtime.shared_context import SHARED_CONTEXT
from tritonrank_runtime.text import copy_text_files

PRECISIONS = ("fp32", "fp16", "int8", "int8-fp16")
LINEAR_LAYERS = 12  # two layers with query, key, value, attention output and the two of the feed-forward part


@dataclass(frozen=True)
class TensorRTLadder:
    """The folders of one ranker; ``fp32`` is the batched graph."""

    recipe: Recipe
    checkpoint: Path
    onnx: Path
    """as it is served on the CPU"""
    folders: dict[str, Path]
    """by precision"""
    calibration: Calibration

    def graph(self, precision: str) -> Path:
        return self.folders[precision] / "model.onnx"

    def scores(self, folder: Path) -> NDArray[np.float32]:
        scorer = open_scorer(folder)
        return np.concatenate([scorer.score(request) for request in REQUESTS])


def tiny_ladder(family: str, architecture: str, root: Path) -> TensorRTLadder:
    """Of a random tiny model; everything that can be INT8 is, whatever it does to a model this small."""
    recipe = recipe_for(save_ranker(family, root / "hub", head=architecture == JOINT), architecture)
    one_profile = recipe.tensorrt.model_copy(update={"candidate_buckets": [1_000]})
    recipe = recipe.model_copy(update={"tensorrt": one_profile})
    model, _ = untrained_ranker(recipe)
    if architecture == SHARED_CONTEXT:
        spread_logits(model)
    return ladder_of(recipe, model, root)


def ladder_of(recipe: Recipe, model: torch.nn.Module, root: Path) -> TensorRTLadder:
    """Everything but FP16's sensitivity runs, which take a minute on a model of real size."""
    loud = recipe.tensorrt.model_copy(update={"noise": 1_000.0})
    recipe = recipe.model_copy(update={"tensorrt": loud})
    names = {"fp32": "onnx-batched", "fp16": "fp16", "int8": "int8-tensorrt", "int8-fp16": "int8-fp16"}
    folders = {precision: root / name for precision, name in names.items()}
    checkpoint, exported = root / "checkpoint", root / "onnx"
    for folder in (checkpoint, exported, *folders.values()):
        folder.mkdir()
    save_checkpoint(recipe, model, checkpoint)
    export_graphs(checkpoint, exported, OPSET)
    if isinstance(model, SharedContextRanker):
        export_batched_graph(model, folders["fp32"], OPSET)
    else:
        folders["fp32"].rmdir()
        folders["fp32"] = exported
    for folder in {exported, *folders.values()}:
        copy_text_files(checkpoint, folder)
    calibration = quantize_graph(folders["fp32"], folders["int8"], REQUESTS, recipe)
    for precision, source in (("fp16", "fp32"), ("int8-fp16", "int8")):
        graph = onnx.load(folders[source] / "model.onnx")
        onnx.save(to_half(graph), folders[precision] / "model.onnx")
    return TensorRTLadder(recipe, checkpoint, exported, folders, calibration)


def check_ladder(ladder: TensorRTLadder) -> None:
    """What holds for every family: TensorRT's rules, INT8 where it was asked for, and scores that follow FP32's."""
    projected = json.loads((ladder.checkpoint / "config.json").read_text()).get("embedding_size", 32) != 32  # ELECTRA
    assert len(ladder.calibration.nodes) == LINEAR_LAYERS + projected
    exact = ladder.scores(ladder.folders["fp32"])
    np.testing.assert_allclose(ladder.scores(ladder.onnx), exact, atol=1e-5)
    for precision, close in (("fp32", 1.0), ("fp16", 0.999), ("int8", 0.9), ("int8-fp16", 0.9)):
        asked = ladder.calibration.nodes if "int8" in precision else []
        report = check_graph(ladder.graph(precision), asked)
        assert report.faults == [], precision
        assert sorted(report.int8) == sorted(asked)
        floats = {product.precision for product in report.products} - {"INT8"}
        assert floats == ({"FP32"} if precision in ("fp32", "int8") else {"FP16", "FP32"}), precision
        if precision != "fp32":
            found = ladder.scores(ladder.folders[precision])
            assert np.isfinite(found).all()
            assert np.abs(found - exact).max() > 1e-6, f"{precision} rounds nothing"
            assert np.corrcoef(found, exact)[0, 1] > close, precision
