"""The native engine scores pairs as transformers does, and an engine's rows are the same to the bit in any batch."""

from typing import Any

import numpy as np
import pytest
import torch
from native_rankers import native_pair_weights
from tritonrank_runtime.engine import Feed, RowsError
from tritonrank_runtime.joint import JointEngine
from tritonrank_runtime.native.graphs import NativePairs
from tritonrank_runtime.native.library import kernels_here
from tritonrank_runtime.native.model import NativeModel

LENGTHS = [40, 3, 17, 1, 39, 24]


def _model(family: str) -> Any:
    from transformers import (
        BertConfig,
        BertForSequenceClassification,
        RobertaConfig,
        RobertaForSequenceClassification,
    )

    torch.manual_seed(4)
    sizes = {"vocab_size": 97, "hidden_size": 40, "num_hidden_layers": 2, "num_attention_heads": 5}
    sizes |= {"intermediate_size": 72, "max_position_embeddings": 60, "num_labels": 1, "initializer_range": 0.3}
    if family == "bert":
        return BertForSequenceClassification(BertConfig(**sizes)).eval()
    return RobertaForSequenceClassification(RobertaConfig(**sizes, type_vocab_size=1)).eval()


def _feed(names: list[str]) -> Feed:
    generator = np.random.default_rng(8)
    tokens = max(LENGTHS)
    mask = (np.arange(tokens) < np.array(LENGTHS)[:, None]).astype(np.int32)
    ids = np.where(mask, generator.integers(5, 97, size=mask.shape, dtype=np.int32), 1).astype(np.int32)
    types = (mask * generator.integers(0, 2, size=mask.shape)).astype(np.int32)
    found: Feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
    return {name: found[name] for name in names}


@pytest.mark.parametrize("kernels", ["plain", ""])
@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_pairs_agree_with_transformers(family: str, kernels: str) -> None:
    model = _model(family)
    graph = NativePairs(NativeModel(native_pair_weights(model), kernels))
    feed = _feed([one.name for one in graph.get_inputs()])
    assert ("token_type_ids" in feed) == (family == "bert")
    with torch.inference_mode():
        expected = model(**{name: torch.from_numpy(tensor).long() for name, tensor in feed.items()}).logits.numpy()
    found = graph.run(["logits"], feed)[0]
    assert expected.std() > 0.01
    np.testing.assert_allclose(found, expected, atol=1e-5)
    alone = [
        graph.run(["logits"], {n: t[row : row + 1, :length] for n, t in feed.items()})[0][0]
        for row, length in enumerate(LENGTHS)
    ]
    np.testing.assert_array_equal(found, alone)
    assert kernels_here(kernels)


def test_an_engine_runs_them() -> None:
    graph = NativePairs(NativeModel(native_pair_weights(_model("bert"))))
    feed = _feed([one.name for one in graph.get_inputs()])
    engine = JointEngine(graph, threads=2, rows_per_batch=2)
    np.testing.assert_array_equal(engine.run([feed])[0], graph.run(["logits"], feed)[0][:, 0])


@pytest.mark.parametrize(
    ("name", "value"), [("input_ids", 97), ("input_ids", -1), ("token_type_ids", 2), ("attention_mask", 0)]
)
def test_pairs_that_no_table_has_are_refused(name: str, value: int) -> None:
    graph = NativePairs(NativeModel(native_pair_weights(_model("bert"))))
    feed = _feed([one.name for one in graph.get_inputs()])
    feed[name][0, 0] = value
    with pytest.raises(RowsError, match=name):
        graph.run(["logits"], feed)


def test_rows_longer_than_the_table_of_positions_are_refused() -> None:
    graph = NativePairs(NativeModel(native_pair_weights(_model("bert"))))
    ones = np.ones((1, 61), dtype=np.int32)
    with pytest.raises(RowsError, match="60 positions"):
        graph.run(["logits"], {"input_ids": ones, "attention_mask": ones, "token_type_ids": ones})
