"""Graphs that protobuf cannot hold with their weights: written with a file beside them, read and quantized like others.

The limit is lowered here. That PyTorch's exporter writes a file per weight over 2 GB is acted out by it, too.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import external_data_helper
from test_decoder_compression import NO, REQUESTS, YES
from tiny_decoders import causal_model
from tritonrank.artifacts import weight_file
from tritonrank.graphs.export import export_graphs
from tritonrank.quantize.int8 import GraphWriter, check_quantized, quantizable_nodes
from tritonrank.quantize.sensitivity import NoiseMeter
from tritonrank.quantize.weight_only import BlockWriter
from tritonrank.rankers.decoder_weights import decoder_from, yes_no_head
from tritonrank_runtime.engine import WEIGHTS_FILE
from tritonrank_runtime.engines import model_files, open_engine


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    model = causal_model("llama")
    decoder_from(model, "llama", yes_no_head(model, YES, NO)).save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def scattered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the exporter do what it does over 2 GB: each weight in a file of its own, named like the weight."""
    whole = torch.onnx.export

    def export(module: Any, inputs: Any, target: str, **options: Any) -> None:
        whole(module, inputs, target, **options)
        model = onnx.load(target)
        external_data_helper.convert_model_to_external_data(model, all_tensors_to_one_file=False, size_threshold=0)
        onnx.save(model, target)
        assert len([*Path(target).parent.iterdir()]) > 20

    monkeypatch.setattr(torch.onnx, "export", export)


def test_large_graphs_are_exported_and_quantized_as_small_ones(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = {name: tmp_path / name for name in ("small", "large", "scratch", "int8", "int8-weights")}
    for folder in folders.values():
        folder.mkdir()
    export_graphs(checkpoint, folders["small"])
    scattered(monkeypatch)
    monkeypatch.setattr(weight_file, "LARGEST_WHOLE", 10_000)
    export_graphs(checkpoint, folders["large"])
    files = {path.name for path in folders["large"].iterdir()}
    assert files == {path.name for path in folders["small"].iterdir()} == {"prefix.onnx", "branches.onnx", WEIGHTS_FILE}
    expected = np.concatenate(open_engine(folders["small"]).run(REQUESTS[:4]))
    found = np.concatenate(open_engine(folders["large"]).run(REQUESTS[:4]))
    np.testing.assert_array_equal(found, expected)

    feeds = {folders["large"] / n: f for n, f in open_engine(folders["large"]).graph_feeds(REQUESTS[6:]).items()}
    nodes = quantizable_nodes(folders["large"], [])
    GraphWriter(feeds, folders["scratch"], is_decoder=True).write(folders["int8"], nodes[:4])
    BlockWriter(feeds).write(folders["int8-weights"], dict.fromkeys(nodes, 8))
    meter = NoiseMeter(folders["large"], REQUESTS[:4])
    for name in ("int8", "int8-weights"):
        assert any(path.name.endswith(weight_file.OWN_SUFFIX) for path in folders[name].iterdir()), "large ones"
        assert 0 < meter.of(folders[name]) < 0.2
    for path in model_files(folders["int8"]):
        check_quantized(folders["large"] / path.name, path, nodes[:4])
    weight_file.share_weights(folders["int8"])
    assert {path.name for path in folders["int8"].iterdir()} == {"prefix.onnx", "branches.onnx", WEIGHTS_FILE}
    assert 0 < meter.of(folders["int8"]) < 0.2
