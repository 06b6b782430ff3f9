"""A decoder's scores are those of the language model that it came from, read pair by pair, in every family and by every
way through it.

The reference is the family's own model of transformers, run over prefix and candidate as one row, unshared.
"""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from tiny_decoders import VOCABULARY, causal_model, decoder_configs, scalar_model
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel
from tritonrank.errors import ArtifactError
from tritonrank.rankers.architectures import architecture_named
from tritonrank.rankers.decoder_modeling import DecoderRanker
from tritonrank.rankers.decoder_weights import decoder_config, decoder_from, yes_no_head
from tritonrank_runtime.decoder import DECODER
from tritonrank_runtime.padding import PADDING

TOLERANCE = 1e-4
YES, NO = 17, 23
FAMILIES = sorted(decoder_configs())
DECODERS = architecture_named(DECODER)

Rows = Sequence[Sequence[int]]


def random_rows(seed: int, prefix: int, lengths: Sequence[int]) -> tuple[list[int], list[list[int]]]:
    random = np.random.default_rng(seed)
    rows = [random.integers(3, VOCABULARY, size=size).tolist() for size in (prefix, *lengths)]
    return rows[0], rows[1:]


def padded(rows: Rows, width: int = 0) -> Tensor:
    width = max(width, *map(len, rows))
    return torch.tensor([[*row, *[PADDING] * (width - len(row))] for row in rows])


@torch.inference_mode()
def one_by_one(model: PreTrainedModel, prefix: list[int], branches: Rows, no: int | None = NO) -> np.ndarray:
    """What transformers' own model says of each pair, read alone."""
    scores = []
    for branch in branches:
        logits = model(input_ids=torch.tensor([[*prefix, *branch]])).logits
        last = logits[0] if logits.dim() == 2 else logits[0, -1]
        scores.append(float(last[0] if len(last) == 1 else last[YES] - (last[no] if no is not None else 0)))
    return np.array(scores)


@torch.inference_mode()
def split(ranker: DecoderRanker, prefix: list[int], branches: Rows, width: int = 0) -> np.ndarray:
    logits: np.ndarray = ranker.score_branches(
        *ranker.encode_prefix(torch.tensor(prefix)), padded(branches, width)
    ).numpy()
    return logits


@torch.inference_mode()
def packed(ranker: DecoderRanker, requests: Sequence[tuple[list[int], Rows]]) -> np.ndarray:
    tensors = [
        {"prefix_ids": np.array(prefix, np.int32), "branch_ids": padded(branches).numpy().astype(np.int32)}
        for prefix, branches in requests
    ]
    logits: np.ndarray = ranker(**DECODERS.batch(ranker, tensors)).numpy()
    return logits


@torch.inference_mode()
def batched(ranker: DecoderRanker, requests: Sequence[tuple[list[int], Rows]]) -> np.ndarray:
    """All requests padded to one shape, by the graph's way."""
    prefixes = padded([prefix for prefix, _ in requests], width=40)
    width = max(len(row) for _, branches in requests for row in branches) + 2
    rows = torch.full((len(requests), max(len(branches) for _, branches in requests) + 1, width), PADDING)
    for number, (_, branches) in enumerate(requests):
        rows[number, : len(branches)] = padded(branches, width)
    logits: np.ndarray = ranker.score_batch(prefixes, rows).numpy()
    return logits


REQUESTS = [
    random_rows(1, 12, [3, 1, 7, 2]),
    random_rows(2, 1, [5, 5, 5, 5]),
    random_rows(3, 30, [1, 20, 1, 9]),
]
"""Prefixes of one token, and longer than windows are; candidates of one token, and longer than windows."""


@pytest.fixture(scope="module", params=FAMILIES)
def causal(request: pytest.FixtureRequest) -> tuple[PreTrainedModel, DecoderRanker]:
    model = causal_model(request.param)
    return model, decoder_from(model, request.param, yes_no_head(model, YES, NO))


def test_every_way_gives_what_the_model_says_of_each_pair_alone(causal: tuple[PreTrainedModel, DecoderRanker]) -> None:
    model, ranker = causal
    folded = ranker.folded()
    expected = [one_by_one(model, *request) for request in REQUESTS]
    assert min(np.ptp(scores) for scores in expected) > 0.05
    found = packed(ranker, REQUESTS), batched(folded, REQUESTS)
    for number, request in enumerate(REQUESTS):
        ways = [split(ranker, *request), split(folded, *request, width=25), *(way[number][:4] for way in found)]
        for way in ways:
            np.testing.assert_allclose(way, expected[number], atol=TOLERANCE)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_scalar_head_is_read_at_the_last_token(family: str) -> None:
    model = scalar_model(family)
    ranker = decoder_from(model, family)
    for request in REQUESTS:
        np.testing.assert_allclose(split(ranker, *request), one_by_one(model, *request), atol=TOLERANCE)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_yes_alone_scores_by_its_own_logit(family: str) -> None:
    model = causal_model(family)
    ranker = decoder_from(model, family, yes_no_head(model, YES))
    expected = one_by_one(model, *REQUESTS[0], no=None)
    np.testing.assert_allclose(split(ranker, *REQUESTS[0]), expected, atol=TOLERANCE)


def test_a_fresh_head_has_one_row_and_no_cap() -> None:
    ranker = decoder_from(causal_model("gemma2"), "gemma2")
    assert (ranker.config.head_rows, ranker.config.logit_softcap) == (1, None)
    assert ranker.head.weight.std() > 0


@pytest.mark.parametrize(
    ("family", "settings", "message"),
    [
        ("llama", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_scaling of the type yarn"),
        ("llama", {"partial_rotary_factor": 0.5}, "rotary positions of a part of each head"),
        ("gemma3", {"use_bidirectional_attention": True}, "its tokens see what follows them"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "attention that is scaled by the layer"),
        ("llama", {"model_type": "mamba"}, "mamba is no family of language models that is known here; those are gemma"),
    ],
)
def test_what_the_network_does_not_know_is_refused(family: str, settings: dict[str, object], message: str) -> None:
    config = decoder_configs()[family]
    for name, value in settings.items():
        setattr(config, name, value)
    with pytest.raises(ArtifactError, match=f"^some/model: .*{message}"):
        decoder_config(config, "some/model")


def test_weights_that_are_left_over_are_refused() -> None:
    model = causal_model("llama")
    model.model.layers[1].self_attn.q_proj.bias = torch.nn.Parameter(torch.zeros(32))
    with pytest.raises(ArtifactError, match=r"left over \['layers\.1\.query\.bias'\]"):
        decoder_from(model, "some/model")


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_the_flop_of_a_request_are_those_of_its_products(family: str) -> None:
    """Counted by running it: PyTorch's own counter over the split way, whose masks leave no product out."""
    model = decoder_from(causal_model(family), family)
    prefix, branches = random_rows(1, 30, [6, 6, 6])
    tensors = {"prefix_ids": np.array(prefix, np.int32), "branch_ids": np.array(branches, np.int32)}
    with FlopCounterMode(display=False) as counter:
        split(model, prefix, branches)
    told = DECODERS.flop(model.config, tensors)
    # What masks hide is computed all the same: half of the prefix's attention to itself, half of each branch's.
    width = model.config.num_attention_heads * model.config.head_size
    inner = model.config.num_hidden_layers - 1
    hidden_by_masks = 4 * width * inner * (30 * 29 / 2 + 3 * 6 * 5 / 2)
    head = 2 * model.config.hidden_size * model.config.head_rows * 3
    # The last layer makes no output for the prefix, and one for each branch.
    assert counter.get_total_flops() == pytest.approx(told + hidden_by_masks + head, rel=1e-6)
