"""The shared-context ranker: both ways through it agree, with each other and with the encoder that it came from.

The reference is the family's own Hugging Face encoder, run over context and candidates in one sequence under a block
mask with explicit positions and segments.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny_models import FAMILIES, WITH_SEGMENTS, save_ranker
from torch import Tensor, nn
from transformers import AlbertConfig, AlbertModel, BertConfig, BertModel, PreTrainedModel
from tritonrank.errors import ArtifactError, RecipeError
from tritonrank.rankers.architectures import architecture_of
from tritonrank.rankers.modeling import SharedContextRanker, first_position, from_encoder, renamed_weights
from tritonrank.rankers.pretrained import load_any_ranker, load_config, load_encoder
from tritonrank.rankers.shared_context import load_shared_context_ranker, packed_batch
from tritonrank.recipe import Recipe
from tritonrank.train.finetune import untrained_ranker
from tritonrank_runtime.padding import PADDING

TOLERANCE = 1e-5
CONTEXT_POSITIONS = 40
VOCABULARY = range(5, 100)  # every family's tokenizer here has more; the first ids are special ones

Candidates = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Made:
    """An encoder, and the ranker with its weights and a head under which logits of different candidates differ."""

    family: str
    encoder: PreTrainedModel
    ranker: SharedContextRanker


@pytest.fixture(scope="module", params=FAMILIES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = save_ranker(request.param, tmp_path_factory.mktemp("encoder"), positions=96, head=False)
    encoder = load_encoder(str(folder))
    torch.manual_seed(2)
    ranker = from_encoder(encoder, request.param, CONTEXT_POSITIONS).eval()
    nn.init.normal_(ranker.head.weight)
    return Made(request.param, encoder, ranker)


def random_request(seed: int, context: int, lengths: Sequence[int]) -> tuple[list[int], list[list[int]]]:
    random = np.random.default_rng(seed)
    rows = [random.integers(VOCABULARY.start, VOCABULARY.stop, size=size).tolist() for size in (context, *lengths)]
    return rows[0], rows[1:]


def padded(candidates: Candidates, width: int = 0) -> Tensor:
    width = max(width, *map(len, candidates))
    return torch.tensor([[*row, *[PADDING] * (width - len(row))] for row in candidates])


@torch.inference_mode()
def split(ranker: SharedContextRanker, context: list[int], candidates: Candidates, width: int = 0) -> Tensor:
    """Logits as the server computes them."""
    return ranker.score_candidates(*ranker.encode_context(torch.tensor(context)), padded(candidates, width))


@torch.inference_mode()
def packed(ranker: SharedContextRanker, requests: Sequence[tuple[list[int], Candidates]]) -> Tensor:
    """Logits (requests, candidates) as in training."""
    tensors = [
        {"context_ids": np.array(context, np.int32), "candidate_ids": padded(candidates).numpy().astype(np.int32)}
        for context, candidates in requests
    ]
    return ranker(**packed_batch(tensors, ranker.config.context_positions))


@torch.inference_mode()
def by_the_encoder(made: Made, context: list[int], candidates: Candidates) -> Tensor:
    """The definition: one sequence, a mask (from, to), the first token's last hidden state, the head."""
    rows = [list(context), *map(list, candidates)]
    starts = [0, *[CONTEXT_POSITIONS] * len(candidates)]
    ids = torch.tensor([[token for row in rows for token in row]])
    positions = torch.tensor(
        [[start + place for start, row in zip(starts, rows, strict=True) for place in range(len(row))]]
    )
    owner = torch.tensor([number for number, row in enumerate(rows) for _ in row])
    mask = (owner[None, :] == 0) | (owner[None, :] == owner[:, None])
    hidden = ENCODE.get(made.family, encode_by_arguments)(made.encoder, made.family, ids, positions, owner, mask)
    firsts = [int((owner == number).nonzero()[0]) for number in range(1, len(rows))]
    return made.ranker.head(hidden[0, firsts]).squeeze(-1)


def by_the_encoder_of(ranker: SharedContextRanker, made: Made, context: list[int], candidates: Candidates) -> Tensor:
    """The same with the ranker's present weights put back into the encoder."""
    encoder = deepcopy(made.encoder)
    renamed = {
        ours: name for name in encoder.state_dict() for ours in renamed_weights({name: None}, encoder.config.model_type)
    }
    weights = {renamed[name]: one for name, one in ranker.state_dict().items() if name in renamed}
    encoder.load_state_dict(weights, strict=False)
    return by_the_encoder(Made(made.family, encoder, ranker), context, candidates)


def encode_by_arguments(
    encoder: PreTrainedModel, family: str, ids: Tensor, positions: Tensor, owner: Tensor, mask: Tensor
) -> Tensor:
    """Families that take positions and a mask of two dimensions per example."""
    offset = 2 if family in {"roberta", "xlm-roberta"} else 0  # their positions begin behind padding_idx
    segments = {"token_type_ids": (owner > 0).long()[None]} if family in WITH_SEGMENTS else {}
    return encoder(
        input_ids=ids, attention_mask=mask[None].float(), position_ids=positions + offset, **segments
    ).last_hidden_state


def encode_by_layers(
    encoder: PreTrainedModel, _: str, ids: Tensor, positions: Tensor, __: Tensor, mask: Tensor
) -> Tensor:
    """DistilBERT counts positions itself: what it will add too much is taken off the word embeddings before."""
    own = encoder.embeddings.position_embeddings
    words = encoder.embeddings.word_embeddings(ids) + own(positions) - own(torch.arange(ids.shape[1])[None])
    embedded = encoder.embeddings(None, words)
    heads = [None] * encoder.config.n_layers
    return encoder.transformer(x=embedded, attn_mask=mask[None, None], head_mask=heads, return_dict=True)[0]


ENCODE = {"distilbert": encode_by_layers}


REQUESTS = [
    random_request(1, 12, [3, 1, 7, 2]),
    random_request(2, 1, [5, 5, 5, 5]),
    random_request(3, CONTEXT_POSITIONS, [1, 20, 1, 9]),
]


# The same logits by every way


@pytest.mark.parametrize(("context", "candidates"), REQUESTS)
def test_logits_are_those_of_the_familys_own_encoder(made: Made, context: list[int], candidates: Candidates) -> None:
    expected = by_the_encoder(made, context, candidates)
    assert expected.std() > 0.1, "or else the tolerance would prove nothing"
    torch.testing.assert_close(split(made.ranker, context, candidates), expected, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(packed(made.ranker, [(context, candidates)])[0], expected, rtol=0, atol=TOLERANCE)


def test_the_reference_would_show_a_wrong_position_mask_or_segment(made: Made) -> None:
    """Otherwise the test above would show nothing."""
    context, candidates = REQUESTS[0]
    expected = by_the_encoder(made, context, candidates)
    with configured(made.ranker, context_positions=CONTEXT_POSITIONS - 1):
        assert largest(split(made.ranker, context, candidates), expected) > 1e-2
    assert largest(split(made.ranker, context[:-1], candidates), expected) > 1e-2
    if made.family in WITH_SEGMENTS:
        table = made.ranker.embeddings.segments
        with torch.no_grad():
            kept = table.weight.clone()
            table.weight[1] = table.weight[0]
            assert largest(split(made.ranker, context, candidates), expected) > 1e-2
            table.weight.copy_(kept)


def test_packed_is_split(made: Made) -> None:
    """Examples of different lengths in one batch, as in training."""
    together = packed(made.ranker, REQUESTS)
    assert together.shape == (3, 4)
    for row, (context, candidates) in zip(together, REQUESTS, strict=True):
        torch.testing.assert_close(row, split(made.ranker, context, candidates), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("width", [21, 33, 50])
def test_padding_changes_nothing(made: Made, width: int) -> None:
    for context, candidates in REQUESTS:
        tight, loose = (split(made.ranker, context, candidates, wide) for wide in (0, width))
        torch.testing.assert_close(loose, tight, rtol=0, atol=TOLERANCE)


def test_a_longer_example_in_the_batch_changes_nothing(made: Made) -> None:
    short, long = REQUESTS[1], random_request(4, 30, [20, 20, 20, 20])
    alone, beside = packed(made.ranker, [short])[0], packed(made.ranker, [long, short])[1]
    torch.testing.assert_close(beside, alone, rtol=0, atol=TOLERANCE)


def test_packed_is_split_in_half_the_precision(made: Made) -> None:
    """Mixed precision may cost digits, not the mask: padding that is attended to would show."""
    context, candidates = REQUESTS[2]
    expected = by_the_encoder(made, context, candidates)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for found in (split(made.ranker, context, candidates, width=50), packed(made.ranker, [REQUESTS[2]])[0]):
            assert largest(found.float(), expected) < 0.02 * float(expected.abs().max())


def test_folded_computes_the_same_and_leaves_the_original_alone(made: Made) -> None:
    """With biases that are not zero, as a new encoder's are."""
    before = {name: one.clone() for name, one in made.ranker.state_dict().items()}
    with torch.no_grad():
        for layer in made.ranker.layers:
            for projection in (layer.query, layer.key, layer.value, layer.attention_out):
                nn.init.normal_(projection.bias, std=0.5)
    try:
        plain, folded = made.ranker, made.ranker.folded()
        for context, candidates in REQUESTS:
            expected = by_the_encoder_of(plain, made, context, candidates)
            torch.testing.assert_close(split(plain, context, candidates), expected, rtol=0, atol=TOLERANCE)
            torch.testing.assert_close(split(folded, context, candidates), expected, rtol=0, atol=TOLERANCE)
        biases = [name for name, _ in folded.named_parameters() if name.endswith(("key.bias", "value.bias"))]
        assert biases == []
    finally:
        made.ranker.load_state_dict(before)
    assert len(list(made.ranker.parameters())) == len(before)


# Candidates do not know each other

candidate_lists = st.lists(st.lists(st.sampled_from(VOCABULARY), min_size=1, max_size=9), min_size=2, max_size=6)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.differing_executors])
@given(
    context=st.lists(st.sampled_from(VOCABULARY), min_size=1, max_size=12),
    candidates=candidate_lists,
    order=st.randoms(use_true_random=False),
)
def test_a_score_does_not_depend_on_the_other_candidates(
    made: Made, context: list[int], candidates: list[list[int]], order: Any
) -> None:
    whole = split(made.ranker, context, candidates)
    places = list(range(len(candidates)))
    order.shuffle(places)
    some = places[: order.randint(1, len(places))]  # others, in another order, and with one more
    fewer = split(made.ranker, context, [candidates[place] for place in some])
    more = split(made.ranker, context, [*(candidates[place] for place in places), [7] * 13])
    assert largest(fewer, whole[some]) <= TOLERANCE
    assert largest(more[:-1], whole[places]) <= TOLERANCE
    in_training = packed(made.ranker, [(context, [candidates[place] for place in places])])[0]
    assert largest(in_training, whole[places]) <= TOLERANCE


def test_the_context_counts_for_every_candidate(made: Made) -> None:
    context, candidates = REQUESTS[0]
    changed = split(made.ranker, [*context[:-1], 99], candidates)
    assert float((changed - split(made.ranker, context, candidates)).abs().min()) > 1e-3


def test_context_tokens_never_see_a_candidate(made: Made) -> None:
    """In training too: keys and values of the context are the same whatever follows, and those of the server."""
    context, candidates = REQUESTS[0]
    seen = []
    for others in (candidates, random_request(9, 1, [11, 2, 6, 1])[1]):
        with recorded(made.ranker, ("key", "value")) as outputs:
            packed(made.ranker, [(context, others)])
        seen.append({name: torch.stack([one[0, : len(context)] for one in outputs[name]]) for name in outputs})
    with torch.inference_mode():
        served = dict(zip(("key", "value"), made.ranker.encode_context(torch.tensor(context)), strict=True))
    for name, tensor in served.items():
        assert largest(seen[0][name], seen[1][name]) <= TOLERANCE
        assert largest(seen[0][name], tensor.transpose(1, 2).flatten(2)) <= TOLERANCE
    assert served["key"].shape == (2, 2, len(context), made.ranker.config.head_size)


@pytest.mark.parametrize("context", [1, 7, CONTEXT_POSITIONS])
def test_candidates_begin_at_the_same_position_whatever_the_context(made: Made, context: int) -> None:
    positions: list[Tensor] = []
    table = made.ranker.embeddings.positions
    offset = 2 if made.family in {"roberta", "xlm-roberta"} else 0
    handle = table.register_forward_pre_hook(lambda _, inputs: positions.append(inputs[0]))
    try:
        ids, candidates = random_request(5, context, [4, 2])
        split(made.ranker, ids, candidates)
        packed(made.ranker, [(ids, candidates)])
    finally:
        handle.remove()
    of_context, of_candidates, of_packed = (tensor - offset for tensor in positions)
    assert of_context.flatten().tolist() == list(range(context))
    assert of_candidates.flatten().tolist() == [CONTEXT_POSITIONS + place for place in range(4)]
    own = [CONTEXT_POSITIONS + place for place in (0, 1, 2, 3, 0, 1)]
    assert of_packed.flatten().tolist() == [*range(context), *own]


# Training


def test_gradients_reach_every_parameter(made: Made) -> None:
    made.ranker.train()
    try:
        tensors = {"context_ids": np.arange(5, 12, dtype=np.int32), "candidate_ids": padded([[7, 8], [9]]).numpy()}
        logits = made.ranker(**packed_batch([tensors], CONTEXT_POSITIONS))
        (logits**2).sum().backward()
        # A key's bias adds the same to all scores of a query, and softmax does not see it.
        silent = {name for name, one in made.ranker.named_parameters() if one.grad is None or not one.grad.any()}
        assert {name for name in silent if not name.endswith("key.bias")} == set()
        assert all(one.grad is not None for one in made.ranker.parameters())
    finally:
        made.ranker.zero_grad(set_to_none=True)
        made.ranker.eval()


def test_dropout_is_for_training_alone(made: Made) -> None:
    request = REQUESTS[0]
    torch.testing.assert_close(packed(made.ranker, [request]), packed(made.ranker, [request]), rtol=0, atol=0)
    made.ranker.train()
    try:
        assert largest(packed(made.ranker, [request]), packed(made.ranker, [request])) > 1e-3
    finally:
        made.ranker.eval()


# Saved and loaded


def test_a_saved_ranker_is_loaded_as_what_it_was(made: Made, tmp_path: Path) -> None:
    made.ranker.save_pretrained(tmp_path)
    assert architecture_of(load_config(str(tmp_path))).name == "shared-context"
    loaded = load_any_ranker(tmp_path)
    assert isinstance(loaded, SharedContextRanker)
    assert loaded.dtype == torch.float32
    torch.testing.assert_close(dict(loaded.state_dict()), dict(made.ranker.state_dict()), rtol=0, atol=0)
    for context, candidates in REQUESTS:
        found, expected = (split(ranker, context, candidates) for ranker in (loaded.eval(), made.ranker))
        torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE)
    assert loaded.config.context_positions == CONTEXT_POSITIONS
    assert first_position(loaded.config) == first_position(made.encoder.config)


def test_the_encoders_weights_are_all_taken(made: Made) -> None:
    pooler = sum(one.numel() for name, one in made.encoder.named_parameters() if name.startswith("pooler."))
    head = sum(one.numel() for one in made.ranker.head.parameters())
    count = sum(one.numel() for one in made.ranker.parameters())
    assert count - head == sum(one.numel() for one in made.encoder.parameters()) - pooler


# What is refused


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A joint checkpoint, a bare encoder and a shared-context checkpoint of the same family."""
    root = tmp_path_factory.mktemp("saved")
    folders = {name: root / name for name in ("joint", "encoder", "shared-context")}
    save_ranker("bert", folders["joint"])
    save_ranker("bert", folders["encoder"], head=False)
    save_ranker("bert", folders["shared-context"], head=False)  # for its tokenizer
    (folders["shared-context"] / "config.json").unlink()
    from_encoder(load_encoder(str(folders["encoder"])), "bert", 40).save_pretrained(folders["shared-context"])
    return folders


def recipe_with(model: dict[str, object], **text: object) -> Recipe:
    rules = {"query_tokens": 8, "history_items": 4, "history_tokens": 29, "candidate_tokens": 20} | text
    return Recipe(name="refused", data={"source": "sample"}, text=rules, model=model)


def test_another_family_is_refused_by_name() -> None:
    config = AlbertConfig(
        vocab_size=99, embedding_size=8, hidden_size=8, num_attention_heads=1, intermediate_size=8, num_hidden_layers=1
    )
    with pytest.raises(ArtifactError, match=r"some/albert: a albert encoder .*supported: bert, .*architecture: joint"):
        from_encoder(AlbertModel(config), "some/albert", 40)


def test_relative_positions_are_refused() -> None:
    sizes = {"hidden_size": 8, "num_attention_heads": 1, "intermediate_size": 8, "num_hidden_layers": 1}
    config = BertConfig(vocab_size=99, position_embedding_type="relative_key", **sizes)
    with pytest.raises(ArtifactError, match=r"relative: only absolute position embeddings.*architecture: joint"):
        from_encoder(BertModel(config), "relative", 40)


def test_an_encoder_with_other_weights_is_refused() -> None:
    sizes = {"hidden_size": 8, "num_attention_heads": 1, "intermediate_size": 8, "num_hidden_layers": 1}
    model = BertModel(BertConfig(vocab_size=99, **sizes))
    model.encoder.layer[0].adapter = nn.Linear(8, 8)
    with pytest.raises(ArtifactError, match=r"adapted: .*left over \['encoder\.layer\.0\.adapter\.bias'"):
        from_encoder(model, "adapted", 40)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"checkpoint": "joint", "architecture": "shared-context"}, r"joint: not a shared-context ranker.*model\.base"),
        ({"checkpoint": "encoder", "architecture": "shared-context"}, r"encoder: .*BertModel.*model\.base"),
        ({"checkpoint": "shared-context"}, r"shared-context: .*model\.architecture: shared-context"),
        ({"base": "shared-context"}, r"shared-context: .*model\.checkpoint"),
        ({"base": "shared-context", "architecture": "joint"}, r"shared-context: .*model\.checkpoint"),
    ],
)
def test_a_checkpoint_of_the_other_architecture_is_refused(
    saved: dict[str, Path], model: dict[str, str], message: str
) -> None:
    model = {key: str(saved.get(value, value)) if key != "architecture" else value for key, value in model.items()}
    with pytest.raises(ArtifactError, match=message):
        untrained_ranker(recipe_with(model))


def test_a_checkpoint_without_its_head_or_a_layer_is_refused(saved: dict[str, Path], tmp_path: Path) -> None:
    """Transformers would put random ones in their place."""
    weights = load_file(saved["shared-context"] / "model.safetensors")
    for lost in ("head.weight", "layers.1.ffn_in.bias"):
        left = {name: tensor for name, tensor in weights.items() if name != lost}
        save_file(left, tmp_path / "model.safetensors", metadata={"format": "pt"})
        (tmp_path / "config.json").write_text((saved["shared-context"] / "config.json").read_text())
        with pytest.raises(ArtifactError, match=f"missing from the checkpoint: {lost}"):
            load_shared_context_ranker(str(tmp_path))


def test_an_encoder_that_lacks_a_layer_is_refused(saved: dict[str, Path], tmp_path: Path) -> None:
    config = json.loads((saved["encoder"] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    (tmp_path / "model.safetensors").write_bytes((saved["encoder"] / "model.safetensors").read_bytes())
    with pytest.raises(ArtifactError, match=r"missing from the checkpoint: encoder\.layer\.2\."):
        load_encoder(str(tmp_path))


def test_weights_of_another_shape_are_refused(saved: dict[str, Path], tmp_path: Path) -> None:
    config = json.loads((saved["shared-context"] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 300}))
    (tmp_path / "model.safetensors").write_bytes((saved["shared-context"] / "model.safetensors").read_bytes())
    with pytest.raises(ArtifactError, match="no model can be loaded from there"):
        load_shared_context_ranker(str(tmp_path))


def test_budgets_beyond_the_position_table_are_refused(saved: dict[str, Path]) -> None:
    recipe = recipe_with({"base": str(saved["encoder"])}, history_tokens=230)
    with pytest.raises(RecipeError, match=r"a context and a candidate of up to 262 tokens; .*takes 256\. Lower"):
        untrained_ranker(recipe)
    fits = recipe_with({"base": str(saved["encoder"])}, history_tokens=224)
    model, tokenizer = untrained_ranker(fits)
    assert model.config.context_positions == tokenizer.longest_rows["context_ids"] == 8 + 1 + 224 + 2


def test_budgets_beyond_the_checkpoints_contexts_are_refused(saved: dict[str, Path]) -> None:
    ready = {"checkpoint": str(saved["shared-context"]), "architecture": "shared-context"}
    model, tokenizer = untrained_ranker(recipe_with(ready))
    assert model.config.context_positions == tokenizer.longest_rows["context_ids"] == 40
    with pytest.raises(RecipeError, match=r"contexts of up to 41 tokens; .*was trained for 40\. Lower"):
        untrained_ranker(recipe_with(ready, history_tokens=30))
    shorter, _ = untrained_ranker(recipe_with(ready, history_tokens=10))  # candidates stay where they were trained
    assert shorter.config.context_positions == 40


# Helpers


def largest(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max())


@contextmanager
def configured(ranker: SharedContextRanker, **values: int) -> Iterator[None]:
    kept = {name: getattr(ranker.config, name) for name in values}
    for name, value in values.items():
        setattr(ranker.config, name, value)
    yield
    for name, value in kept.items():
        setattr(ranker.config, name, value)


@contextmanager
def recorded(ranker: SharedContextRanker, names: Sequence[str]) -> Iterator[dict[str, list[Tensor]]]:
    """What these projections of every layer give inside the block."""
    outputs: dict[str, list[Tensor]] = {name: [] for name in names}
    handles = [
        getattr(layer, name).register_forward_hook(lambda _, __, output, name=name: outputs[name].append(output))
        for layer in ranker.layers
        for name in names
    ]
    yield outputs
    for handle in handles:
        handle.remove()
