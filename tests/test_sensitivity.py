"""Layers are left in FP32 for a reason: how much they disturb for the work that they do."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from tritonrank.artifacts.workspace import Workspace
from tritonrank.errors import GateError
from tritonrank.judge.open_scorer import open_scorer
from tritonrank.quantize.sensitivity import NoiseMeter, quiet_enough, work_of_nodes
from tritonrank.rankers.scorers import Request
from tritonrank_runtime.engine import MODEL_FILE
from tritonrank_runtime.engines import open_engine
from tritonrank_runtime.shared_context import CANDIDATES_FILE, CONTEXT_FILE

HIDDEN, INTERMEDIATE = 64, 128  # of the tiny encoder


class Graphs:
    """Graphs made of layers that each disturb by so much, independently; ``together`` multiplies what several do."""

    def __init__(self, alone: Mapping[str, float], together: float = 1.0) -> None:
        self.alone, self.together = alone, together
        self.by_layer: dict[str, float] = {}
        self.written: dict[Path, list[str]] = {}
        self.tried: list[list[str]] = []

    def write(self, folder: Path, nodes: list[str]) -> None:
        self.written[folder] = nodes
        self.tried.append(nodes)

    def of(self, folder: Path) -> float:
        nodes = self.written[folder]
        noise = math.sqrt(sum(self.alone[node] ** 2 for node in nodes))
        return noise * (self.together if len(nodes) > 1 else 1.0)

    roughly = of

    def chosen(self, limit: float, work: Mapping[str, float] | None = None) -> list[str]:
        nodes, folder = list(self.alone), Path("chosen")
        chosen = quiet_enough(nodes, work or dict.fromkeys(nodes, 1.0), self.write, self, folder, limit)
        assert self.written[folder] == chosen, "what is returned is what was written last"
        assert self.of(folder) <= limit
        return chosen


LOUD = {"a": 0.01, "b": 0.2, "c": 0.02, "d": 0.05, "e": 0.01}


def test_the_loudest_layer_is_left_out_first_and_the_order_stays() -> None:
    assert Graphs(LOUD).chosen(0.06) == ["a", "c", "d", "e"]
    assert Graphs(LOUD).chosen(0.03) == ["a", "c", "e"]
    assert Graphs(LOUD).chosen(0.5) == list(LOUD)


def test_a_layer_may_be_as_loud_as_its_work_is_worth() -> None:
    assert Graphs(LOUD).chosen(0.2005, {"a": 1, "b": 10_000, "c": 1, "d": 1, "e": 1}) == ["a", "b", "e"]


def test_a_layer_that_exceeds_the_limit_alone_keeps_no_other_out() -> None:
    """However much work it does: it would come first, and nothing would fit beside it."""
    assert Graphs(LOUD).chosen(0.03, {"a": 1, "b": 1_000_000, "c": 1, "d": 1, "e": 1}) == ["a", "c", "e"]


def test_layers_are_left_out_until_the_real_graphs_are_quiet() -> None:
    """Squares add up only about; what counts is what the written graphs really do."""
    graphs = Graphs(LOUD, together=2.0)
    assert graphs.chosen(0.06) == ["a", "c", "e"]
    assert [nodes for nodes in graphs.tried if len(nodes) > 2] == [["a", "c", "d", "e"], ["a", "c", "e"]]


def test_as_many_layers_as_fit_are_found_in_a_few_tries() -> None:
    loud = {f"layer {number:02d}": 0.01 for number in range(40)}
    graphs = Graphs(loud, together=2.0)
    assert len(graphs.chosen(0.0605)) == 9, "2 x 0.01 x the root of 9 is 0.06"
    assert len(graphs.tried) - len(loud) <= 7


def test_each_layer_is_measured_alone_once() -> None:
    graphs = Graphs(LOUD)
    graphs.chosen(0.06)
    assert graphs.tried[: len(LOUD)] == [[node] for node in LOUD]
    assert len(graphs.tried) == len(LOUD) + 1
    assert graphs.by_layer == pytest.approx(LOUD)  # kept, so that the report can show it


def test_of_many_layers_quiet_groups_are_measured_together() -> None:
    """A deep decoder has hundreds of layers; what is loud is found all the same, in far fewer tries."""
    loud = {f"layer {number:03d}": 0.001 for number in range(210)} | {"layer 077": 0.5, "layer 200": 0.04}
    graphs = Graphs(loud)
    chosen = graphs.chosen(0.03)
    assert set(loud) - set(chosen) == {"layer 077", "layer 200"}
    assert graphs.by_layer["layer 077"] == pytest.approx(0.5)
    assert graphs.by_layer["layer 003"] == pytest.approx(0.001)
    assert len(graphs.tried) < 50


@pytest.mark.parametrize("together", [1.0, 3.0])
def test_a_limit_that_nothing_meets_closes_the_gate(together: float) -> None:
    with pytest.raises(GateError, match=r"within quantize\.noise = 0\.005; the quietest alone .* by 0\.010"):
        Graphs(LOUD, together).chosen(0.005)


# The work of a layer


def test_work_in_a_joint_graph_is_rows_times_tokens_times_weights(joint_workspace: Workspace) -> None:
    def feed(rows: int, tokens: int) -> dict[str, Any]:
        ones = np.ones((rows, tokens), dtype=np.int32)
        return {"input_ids": ones, "attention_mask": ones, "token_type_ids": ones * 0}

    work = work_of_nodes(joint_workspace.onnx / MODEL_FILE, [feed(3, 16), feed(2, 40)])
    tokens = 3 * 16 + 2 * 40
    assert len(work) == 12
    for node, found in work.items():
        is_ffn = "intermediate" in node or ("output/dense" in node and "attention" not in node)
        assert found == tokens * HIDDEN * (INTERMEDIATE if is_ffn else HIDDEN), node


def test_work_in_shared_context_graphs_is_that_of_the_rows_each_layer_sees(workspace: Workspace) -> None:
    lengths, (candidates, tokens) = (7, 30), (5, 9)
    contexts = [{"context_ids": np.ones(length, dtype=np.int32)} for length in lengths]
    cache = np.zeros((2, 4, 30, HIDDEN // 4), dtype=np.float32)
    feed = {"context_keys": cache, "context_values": cache}
    feed["candidate_ids"] = np.ones((candidates, tokens), dtype=np.int32)
    square, ffn = HIDDEN * HIDDEN, HIDDEN * INTERMEDIATE
    layer = {"query": square, "key": square, "value": square, "attention_out": square, "ffn_in": ffn, "ffn_out": ffn}

    context = work_of_nodes(workspace.onnx / CONTEXT_FILE, contexts)
    expected = {f"/{name}/MatMul": sum(lengths) * weights for name, weights in layer.items()}
    expected |= {f"/{name}_1/MatMul": sum(lengths) * square for name in ("key", "value")}
    assert context == expected, "of the last layer only keys and values are needed"

    found = work_of_nodes(workspace.onnx / CANDIDATES_FILE, [feed])
    expected = {f"/{name}/MatMul": candidates * tokens * weights for name, weights in layer.items()}
    expected |= {f"/{name}_1/MatMul": candidates * weights for name, weights in layer.items()}
    expected |= {f"/{name}_1/MatMul": candidates * tokens * square for name in ("key", "value")}
    assert found == expected, "in the last layer only first tokens ask"


# Noise


def test_noise_is_the_change_of_the_logits_over_their_spread(
    workspace: Workspace, held_out: list[Request], tmp_path: Path
) -> None:
    tensors = [open_scorer(workspace.onnx).tensors(request) for request in held_out[:4]]
    for name in (CONTEXT_FILE, CANDIDATES_FILE):
        model = onnx.load(workspace.onnx / name)
        if name == CANDIDATES_FILE:  # a head that adds 0.25 to every second candidate would be hard; this adds to all
            head = next(node for node in model.graph.node if node.name == "/head/Gemm")
            bias = next(tensor for tensor in model.graph.initializer if tensor.name == head.input[2])
            bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(0.25), bias.name))
        onnx.save(model, tmp_path / name)
    logits = np.concatenate(open_engine(workspace.onnx).run(tensors))
    meter = NoiseMeter(workspace.onnx, tensors)
    assert meter.of(tmp_path) == pytest.approx(0.25 / logits.std(), rel=1e-3)
    assert meter.of(workspace.onnx) == 0
    assert meter.roughly(tmp_path) == pytest.approx(meter.of(tmp_path), rel=1e-3), "here all requests change alike"
