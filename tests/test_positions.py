"""The longest input is counted as each family counts its positions: so many tokens run, and one more does not."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel, XLNetConfig
from tritonrank.rankers.pretrained import UNLIMITED, longest_input

ROWS = 40
SIZES = {
    "vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
    "dim": 32, "n_layers": 1, "n_heads": 2, "hidden_dim": 32, "embedding_size": 32, "max_position_embeddings": ROWS,
    "num_labels": 1,
}  # fmt: skip
FURTHER: dict[str, dict[str, object]] = {
    "longformer": {"attention_window": [8]},
    "xmod": {"languages": ["en"], "default_language": "en"},
    "esm": {"position_embedding_type": "absolute", "token_dropout": False, "mask_token_id": 4, "pad_token_id": 1},
    "luke": {"entity_vocab_size": 10, "entity_emb_size": 16},
    "markuplm": {"pad_token_id": 1},
}
FROM_THE_START = ("bert", "electra", "distilbert", "albert", "convbert", "ernie", "deberta")
BEHIND_THE_PADDING = (
    "roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "roberta-prelayernorm", "mpnet", "longformer",
    "data2vec-text", "ibert", "xmod", "esm", "luke", "markuplm", "ernie_m",
)  # fmt: skip


def ranker(family: str, **settings: object) -> PreTrainedModel:
    torch.manual_seed(2)
    config = AutoConfig.for_model(family, **SIZES | FURTHER.get(family, {}) | settings)
    return AutoModelForSequenceClassification.from_config(config).eval()


@torch.inference_mode()
def runs(model: PreTrainedModel, tokens: int) -> bool:
    ids = torch.arange(tokens).remainder(40).add(10)[None]
    try:
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    except (IndexError, RuntimeError):
        return False
    return bool(torch.isfinite(logits).all())


@pytest.mark.parametrize("family", [*FROM_THE_START, *BEHIND_THE_PADDING])
def test_so_many_tokens_run_and_one_more_does_not(family: str) -> None:
    model = ranker(family)
    longest = longest_input(model)
    assert longest == (ROWS - 2 if family in BEHIND_THE_PADDING else ROWS)
    assert runs(model, longest)
    assert not runs(model, longest + 1)


@pytest.mark.parametrize("padding", [0, 1, 3])
def test_the_padding_token_is_the_configs(padding: int) -> None:
    model = ranker("xlm-roberta", pad_token_id=padding)
    assert longest_input(model) == ROWS - padding - 1
    assert runs(model, longest_input(model))
    assert not runs(model, longest_input(model) + 1)


def test_mpnet_counts_from_one_whatever_its_config_says() -> None:
    assert longest_input(ranker("mpnet", pad_token_id=7)) == ROWS - 2


def test_relative_positions_have_no_end() -> None:
    config = XLNetConfig(vocab_size=60, d_model=32, n_layer=1, n_head=2, d_inner=32, num_labels=1)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    assert longest_input(model) == UNLIMITED
    assert runs(model, 3 * ROWS)
