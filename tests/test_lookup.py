"""Word embeddings in eight bits: a quarter of the bytes, and what is looked up is off by half a step at most."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from tritonrank.quantize.embeddings import shrink_word_embeddings

TABLE = np.random.default_rng(2).normal(size=(500, 64)).astype(np.float32) * np.linspace(0.01, 9, 500)[:, None]


def save_lookup(path: Path, name: str) -> Path:
    table = TABLE.astype(np.float32)
    table[7] = 0  # a padding row
    graph = helper.make_graph(
        [helper.make_node("Gather", [name, "ids"], ["rows"], name="look_up")],
        "lookup",
        [helper.make_tensor_value_info("ids", TensorProto.INT32, ["examples", "tokens"])],
        [helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["examples", "tokens", 64])],
        [numpy_helper.from_array(table, name)],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


@pytest.mark.parametrize("name", ["ranker.embeddings.words.weight", "bert.embeddings.word_embeddings.weight"])
def test_rows_are_those_of_the_table_up_to_half_a_step(name: str, tmp_path: Path) -> None:
    path = save_lookup(tmp_path / "graph.onnx", name)
    bytes_before = path.stat().st_size
    ids = np.array([[0, 7, 499], [3, 3, 250]], dtype=np.int32)
    expected = onnxruntime.InferenceSession(str(path)).run(None, {"ids": ids})[0]
    assert shrink_word_embeddings(path) == 1
    found = onnxruntime.InferenceSession(str(path)).run(None, {"ids": ids})[0]
    steps = np.abs(expected).max(axis=-1, keepdims=True) / 127
    assert (np.abs(found - expected) <= steps / 2 + 1e-6).all()
    assert np.abs(found - expected).max() > 0
    assert path.stat().st_size < 0.3 * bytes_before
    assert shrink_word_embeddings(path) == 0  # there is nothing left to do


def test_other_tables_stay(tmp_path: Path) -> None:
    path = save_lookup(tmp_path / "graph.onnx", "bert.embeddings.position_embeddings.weight")
    before = path.read_bytes()
    assert shrink_word_embeddings(path) == 0
    assert path.read_bytes() == before
