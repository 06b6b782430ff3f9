"""What the native engine computes from is what the graphs hold: proved by a network of a few lines over the file.

The network below computes in NumPy and knows nothing of ONNX or C++; where it agrees with ONNX Runtime, names, folded
scales, steps and smoothing factors are in their places.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import erf
from transformers import (
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)
from tritonrank.artifacts.workspace import Workspace
from tritonrank.errors import ArtifactError
from tritonrank.graphs.export import export_graphs
from tritonrank.graphs.native_weights import bfloat16_bits, native_weights
from tritonrank.quantize.embeddings import shrink_word_embeddings
from tritonrank.rankers.pretrained import load_config
from tritonrank.rankers.scorers import Request, tensors_of
from tritonrank_runtime.engines import open_engine
from tritonrank_runtime.native.weights import NATIVE_FILE, NativeWeights
from tritonrank_runtime.text import RequestTokenizer

Array = NDArray[Any]
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "none": lambda x: x,
    "gelu": lambda x: x * 0.5 * (1 + erf(x / np.sqrt(2))),
    "relu": lambda x: np.maximum(x, 0),
    "tanh": np.tanh,
}
SIZES: dict[str, Any] = {
    "vocab_size": 90,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "initializer_range": 0.3,
    "num_labels": 1,
    "pad_token_id": 1,
}


class Network:
    """Rows of token ids -> states, by the tensors of the file."""

    def __init__(self, weights: NativeWeights) -> None:
        self.config, self.tensors = weights.config, weights.tensors

    def linear(self, name: str, rows: Array, number: int) -> Array:
        part = {
            key.removeprefix(f"{name}."): value for key, value in self.tensors.items() if key.startswith(f"{name}.")
        }
        rows = self.rounded(name, rows * part.get("input_factor", 1), number)
        weight = part["weight"] * part.get("weight_scale", 1)
        return np.asarray(rows @ weight + part.get("bias", 0))

    def rounded(self, name: str, rows: Array, number: int) -> Array:
        """To the steps of a layer's input, if it has some."""
        scales, zeros = (self.tensors.get(f"{name}.input_{part}") for part in ("scale", "zero_point"))
        if scales is None or zeros is None or not scales[number]:
            return rows
        scale, zero = scales[number], int(zeros[number])
        return np.asarray((np.clip(np.rint(rows / scale) + zero, 0, 255) - zero) * scale)

    def norm(self, name: str, rows: Array) -> Array:
        centred = rows - rows.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + self.config.layer_norm_eps)
        return np.asarray(scaled * self.tensors[f"{name}.weight"] + self.tensors[f"{name}.bias"])

    def embed(self, ids: Array, first: int, segments: Array) -> Array:
        summed = self.tensors["embeddings.words"][ids]
        summed = summed + self.tensors["embeddings.positions"][self.config.first_position + first + np.arange(len(ids))]
        if self.config.segments:
            summed = summed + self.tensors["embeddings.segments"][segments]
        normed = self.norm("embeddings.norm", summed)
        narrow = self.config.embedding_size != self.config.hidden_size
        return self.linear("embeddings.project", normed, 1) if narrow else normed

    def row(self, hidden: Array, number: int, context: list[tuple[Array, Array]]) -> tuple[Array, list[Any]]:
        """All layers of one row that attends to itself and to keys and values of a context, if any."""
        kept = []
        for layer in range(self.config.layers):
            name, is_last = f"layers.{layer}", layer == self.config.layers - 1
            key, value = (self.linear(f"{name}.{part}", hidden, number) for part in ("key", "value"))
            kept.append((key, value))
            if is_last and number == 0:
                return hidden, kept
            hidden = hidden[:1] if is_last else hidden
            if layer in self.config.rounded_residuals:
                hidden = self.rounded(f"{name}.query", hidden, number)
            query = self.linear(f"{name}.query", hidden, number)
            keys = np.concatenate([context[layer][0], key]) if context else key
            values = np.concatenate([context[layer][1], value]) if context else value
            mixed = []
            for head in range(self.config.heads):
                own = slice(head * self.config.head_size, (head + 1) * self.config.head_size)
                scores = query[:, own] @ keys[:, own].T
                scores = np.exp(scores - scores.max(-1, keepdims=True))
                mixed.append(scores / scores.sum(-1, keepdims=True) @ values[:, own])
            attended = self.linear(f"{name}.attention_out", np.concatenate(mixed, axis=-1), number)
            attended = self.norm(f"{name}.attention_norm", hidden + attended)
            inner = ACTIVATIONS[self.config.activation](self.linear(f"{name}.ffn_in", attended, number))
            hidden = self.norm(f"{name}.ffn_norm", attended + self.linear(f"{name}.ffn_out", inner, number))
        return hidden, kept

    def score(self, request: Any) -> list[float]:
        if self.config.architecture == "joint":
            first = [self._pair(request, row) for row in range(len(request["input_ids"]))]
        else:
            ids = request["context_ids"]
            _, context = self.row(self.embed(ids, 0, np.zeros_like(ids)), 0, [])
            own = [ids[ids >= 0] for ids in request["candidate_ids"]]
            start, last = self.config.context_positions, max(self.config.segments - 1, 0)
            first = [self.row(self.embed(ids, start, np.full_like(ids, last)), 1, context)[0][0] for ids in own]
        if self.config.pooler_size:
            first = [ACTIVATIONS[self.config.pooler_activation](self.linear("pooler", state, 1)) for state in first]
        return [float(self.linear("head", state, 1)[0]) for state in first]

    def _pair(self, request: Any, row: int) -> Array:
        length = int(request["attention_mask"][row].sum())
        types = request.get("token_type_ids", np.zeros_like(request["input_ids"]))
        hidden = self.embed(request["input_ids"][row, :length], 0, types[row, :length])
        return np.asarray(self.row(hidden, 1, [])[0][0])


def compared(graphs: Path, weights: NativeWeights, requests: list[Any]) -> tuple[Array, Array]:
    """Scores by the file and by ONNX Runtime."""
    network, engine = Network(weights), open_engine(graphs)
    return np.concatenate([network.score(one) for one in requests]), np.concatenate(engine.run(requests))


def assert_same_steps(found: Array, expected: Array, exact: Array) -> None:
    """Both round to the same steps. A last digit before a rounding moves a number by a whole one, now and then; INT8
    itself moves the scores further from the FP32 graph's."""
    assert np.abs(found - expected).mean() < np.abs(expected - exact).mean() / 2


@pytest.fixture
def tensors(workspace: Workspace, held_out: list[Request]) -> list[Any]:
    tokenizer = RequestTokenizer.from_folder(workspace.onnx)
    return [tensors_of(Request(one.query, one.history, one.items[:5]), tokenizer) for one in held_out[:4]]


@pytest.fixture
def rows(joint_workspace: Workspace, held_out: list[Request]) -> list[Any]:
    tokenizer = RequestTokenizer.from_folder(joint_workspace.onnx)
    return [tensors_of(Request(one.query, one.history, one.items[:4]), tokenizer) for one in held_out[:4]]


def test_a_shared_context_ranker(workspace: Workspace, tensors: list[Any], tmp_path: Path) -> None:
    config = load_config(str(workspace.teacher))
    native_weights(workspace.onnx, config).write(tmp_path / NATIVE_FILE)
    found, expected = compared(workspace.onnx, NativeWeights.read(tmp_path / NATIVE_FILE), tensors)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    exact = expected
    found, expected = compared(workspace.int8, native_weights(workspace.int8, config), tensors)
    assert_same_steps(found, expected, exact)


def test_a_joint_ranker(joint_workspace: Workspace, rows: list[Any]) -> None:
    config = load_config(str(joint_workspace.teacher))
    found, expected = compared(joint_workspace.onnx, native_weights(joint_workspace.onnx, config), rows)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    exact = expected
    found, expected = compared(joint_workspace.int8, native_weights(joint_workspace.int8, config), rows)
    assert_same_steps(found, expected, exact)


def test_word_embeddings_in_eight_bits(workspace: Workspace, tensors: list[Any], tmp_path: Path) -> None:
    for name in ("context.onnx", "candidates.onnx", "weights.bin"):
        (tmp_path / name).write_bytes((workspace.onnx / name).read_bytes())
    for name in ("context.onnx", "candidates.onnx"):
        assert shrink_word_embeddings(tmp_path / name)
    weights = native_weights(tmp_path, load_config(str(workspace.teacher)))
    np.testing.assert_allclose(*compared(tmp_path, weights, tensors), atol=1e-4)


@pytest.mark.parametrize("family", ["roberta", "distilbert", "electra"])
def test_families(family: str, tmp_path: Path) -> None:
    """Positions that begin elsewhere, narrower embeddings, other words for the same, one segment or none."""
    torch.manual_seed(3)
    made: dict[str, Any] = {
        "roberta": lambda: RobertaForSequenceClassification(RobertaConfig(**SIZES, type_vocab_size=1)),
        "distilbert": lambda: DistilBertForSequenceClassification(
            DistilBertConfig(**SIZES, dim=32, hidden_dim=48, n_layers=2, n_heads=4)
        ),
        "electra": lambda: ElectraForSequenceClassification(ElectraConfig(**SIZES, embedding_size=16)),
    }
    model = made[family]()
    for parameter in model.parameters():  # biases are 0 in a fresh model
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    checkpoint, graphs = tmp_path / "checkpoint", tmp_path / "graphs"
    model.save_pretrained(checkpoint)
    graphs.mkdir()
    export_graphs(checkpoint, graphs)
    generator = np.random.default_rng(5)
    mask = (np.arange(12) < np.array([[12], [7], [1]])).astype(np.int32)
    ids = np.where(mask, generator.integers(5, 90, mask.shape), 1).astype(np.int32)
    request = {"input_ids": ids, "attention_mask": mask}
    if family == "electra":
        request["token_type_ids"] = (np.arange(12) > 5).astype(np.int32) * mask
    weights = native_weights(graphs, load_config(str(checkpoint)))
    np.testing.assert_allclose(*compared(graphs, weights, [request]), atol=1e-4)


def test_what_it_does_not_know_is_said(workspace: Workspace) -> None:
    config = load_config(str(workspace.teacher))
    config.model_type = "mpnet"
    with pytest.raises(ArtifactError, match=r"no mpnet layers"):
        native_weights(workspace.onnx, config)


def test_bfloat16_is_the_nearest() -> None:
    values = np.random.default_rng(2).normal(size=1_000).astype(np.float32)
    expected = torch.from_numpy(values).bfloat16().view(torch.int16).numpy().view(np.uint16)
    assert np.array_equal(bfloat16_bits(values), expected)
