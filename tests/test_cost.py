"""The cost of a request is what PyTorch counts while it runs one, and what can be counted by hand."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertModel, DistilBertConfig
from tritonrank.rankers.cost import gflop_per_request
from tritonrank.rankers.modeling import SharedContextConfig, SharedContextRanker
from tritonrank.rankers.scorers import EngineScorer, Request, RequestTensors

HIDDEN, INTERMEDIATE, LAYERS, HEADS = 32, 80, 3, 4
SIZES = {"hidden_size": HIDDEN, "intermediate_size": INTERMEDIATE, "num_hidden_layers": LAYERS}
SIZES |= {"num_attention_heads": HEADS, "vocab_size": 50}
ANY = Request("", [], [])


class Given(EngineScorer):
    """Gives these tensors for one request after the other."""

    def __init__(self, *tensors: RequestTensors) -> None:
        self._remaining = iter(tensors)

    def tensors(self, _: Request) -> RequestTensors:
        return next(self._remaining)


def flop(config: Any, *tensors: RequestTensors) -> float:
    return gflop_per_request(config, Given(*tensors), [ANY] * len(tensors)) * 1e9


def shared_context(context: int, *lengths: int) -> RequestTensors:
    ids = np.full((len(lengths), max(lengths)), -1, dtype=np.int32)
    for row, length in enumerate(lengths):
        ids[row, :length] = 1
    return {"context_ids": np.ones(context, dtype=np.int32), "candidate_ids": ids}


def joint(*lengths: int) -> RequestTensors:
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, np.newaxis]).astype(np.int32)
    return {"input_ids": mask, "attention_mask": mask}


def counted(run: Any) -> int:
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize(("context", "candidates", "tokens"), [(11, 5, 7), (1, 1, 1), (40, 30, 3)])
def test_shared_context_cost_is_what_pytorch_counts(context: int, candidates: int, tokens: int) -> None:
    config = SharedContextConfig(head_size=HIDDEN // HEADS, embedding_size=HIDDEN, context_positions=40, **SIZES)
    ranker = SharedContextRanker(config).eval()
    tensors = shared_context(context, *[tokens] * candidates)

    def run() -> None:
        keys, values = ranker.encode_context(torch.from_numpy(tensors["context_ids"]))
        ranker.score_candidates(keys, values, torch.from_numpy(tensors["candidate_ids"]))

    head = 2 * HIDDEN * candidates  # left out of the count
    assert flop(config, tensors) == counted(run) - head


@pytest.mark.parametrize(("rows", "tokens"), [(5, 7), (1, 1), (3, 60)])
def test_joint_cost_is_what_pytorch_counts(rows: int, tokens: int) -> None:
    config = BertConfig(attn_implementation="eager", **SIZES)
    encoder = BertModel(config, add_pooling_layer=False).eval()
    tensors = joint(*[tokens] * rows)
    assert flop(config, tensors) == counted(lambda: encoder(input_ids=torch.from_numpy(tensors["input_ids"]).long()))


def test_shared_context_cost_by_hand() -> None:
    """Two candidates of one and three tokens behind two of context; one layer, so that [CLS] alone asks."""
    config = SharedContextConfig(
        hidden_size=4, embedding_size=4, num_attention_heads=1, head_size=4, intermediate_size=8, num_hidden_layers=1
    )
    keys_and_values = 6 * 2 * (4 * 4)
    per_candidate = 2 * (4 * 4) + 2 * (4 * 8)  # query, output projection, FFN
    attention = 2 * 4 * ((2 + 1) + (2 + 3))  # scores and mix over what each sees
    assert flop(config, shared_context(2, 1, 3)) == 2 * (keys_and_values + 2 * per_candidate + attention)


def test_joint_cost_by_hand() -> None:
    config = DistilBertConfig(dim=4, n_layers=1, n_heads=1, hidden_dim=8)  # its own words for the sizes
    linear = 4 * (4 * 4) + 2 * (4 * 8)
    assert flop(config, joint(2, 3)) == 2 * ((2 + 3) * linear + 2 * 4 * (2 * 2 + 3 * 3))


def test_padding_costs_nothing_and_requests_are_averaged() -> None:
    config = SharedContextConfig(num_hidden_layers=2)
    small, large = shared_context(9, 3, 5), shared_context(30, *range(1, 20))
    wider = small | {"candidate_ids": np.pad(small["candidate_ids"], ((0, 0), (0, 9)), constant_values=-1)}
    assert flop(config, wider) == flop(config, small)
    assert flop(config, small, large) == pytest.approx((flop(config, small) + flop(config, large)) / 2)


def test_a_hundred_candidates_cost_a_fraction_of_the_joint_rankers() -> None:
    """The promise of the architecture, at the sizes of MiniLM: an eighth with 90 tokens of context, 12 per film."""
    shared, pairs = (
        SharedContextConfig(),
        BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1_536),
    )
    ratio = flop(pairs, joint(*[90 + 13] * 100)) / flop(shared, shared_context(90, *[13] * 100))
    assert 7 < ratio < 11
