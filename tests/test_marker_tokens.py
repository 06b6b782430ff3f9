"""Marker tokens that a checkpoint was fine-tuned with: kept where the recipe's template names them, text elsewhere."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny_models import TEXTS, save_ranker
from tokenizers import AddedToken
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from tritonrank.errors import RecipeError
from tritonrank.graphs.export import export_graphs
from tritonrank.judge.open_scorer import open_scorer
from tritonrank.rankers.pretrained import copy_tokenizer
from tritonrank.rankers.scorers import EngineScorer, Request, torch_scorer
from tritonrank.recipe import Recipe
from tritonrank.shrink.vocabulary import tokens_to_keep, write_tokenizer
from tritonrank.train.finetune import save_checkpoint, untrained_ranker
from tritonrank_runtime.item_text import render_fields
from tritonrank_runtime.text import RequestTokenizer, copy_text_files

TEMPLATE = "[TITLE] {title} [ATTR] {attributes}"
RULES = {"query_tokens": 16, "history_items": 0, "history_tokens": 0, "candidate_tokens": 64}
FAMILIES = ("bert", "electra", "roberta", "xlm-roberta")
QUERY = "waterproof shoe"
FIELDS = [dict(zip(("title", "attributes"), text.lower().split(",", 1), strict=True)) for text in TEXTS[:6]]


def recipe_for(folder: Path, template: str = TEMPLATE, **model: object) -> Recipe:
    settings = {"checkpoint": str(folder)} | model
    text = RULES | {"item_template": template}
    return Recipe.model_validate({"name": "m", "data": {"source": "sample"}, "text": text, "model": settings})


def with_markers(family: str, folder: Path, tokens: list[str | AddedToken] | None = None) -> Path:
    """A ranker whose embeddings grew by its markers."""
    save_ranker(family, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": tokens or ["[TITLE]", "[ATTR]"]})
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    torch.manual_seed(4)
    with torch.no_grad():
        rows = model.get_input_embeddings().weight[-2:]
        rows.copy_(torch.randn_like(rows))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@torch.inference_mode()
def by_transformers(folder: Path, texts: list[str]) -> NDArray[np.float32]:
    """What a CrossEncoder computes: the logits of each pair."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    logits = [model(**tokenizer(QUERY, text, return_tensors="pt")).logits.item() for text in texts]
    return np.array(logits, dtype=np.float32)


def taken(recipe: Recipe, folder: Path) -> Path:
    """The artifact that a recipe makes of its checkpoint."""
    folder.mkdir()
    save_checkpoint(recipe, untrained_ranker(recipe)[0], folder)
    return folder


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("padded", [False, True], ids=["plain", "with blanks stripped"])
def test_scores_are_those_of_transformers(family: str, padded: bool, tmp_path: Path) -> None:
    tokens = [AddedToken(token, lstrip=padded, rstrip=padded, special=True) for token in ("[TITLE]", "[ATTR]")]
    source = with_markers(family, tmp_path / "source", tokens)
    recipe = recipe_for(source)
    texts = [render_fields(TEMPLATE, fields) for fields in FIELDS]
    expected = by_transformers(source, texts)
    assert np.abs(by_transformers(source, [text.replace("[", "(") for text in texts]) - expected).max() > 1e-3
    request = Request(QUERY, [], texts)
    model, tokenizer = untrained_ranker(recipe)
    scorers: dict[str, EngineScorer] = {"in training": torch_scorer(model.eval(), tokenizer)}
    checkpoint = taken(recipe, tmp_path / "teacher")
    scorers["artifact"] = open_scorer(checkpoint)
    graph = tmp_path / "onnx"
    graph.mkdir()
    export_graphs(checkpoint, graph, 18)
    copy_text_files(checkpoint, graph)
    scorers["graph"] = open_scorer(graph)
    for name, scorer in scorers.items():
        np.testing.assert_allclose(scorer.score(request), expected, atol=1e-5, err_msg=name)
    raw = json.dumps(FIELDS[0])
    rendered = RequestTokenizer.from_folder(graph).render(raw)
    assert rendered == texts[0], "the server renders the same text"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_copy_of_a_copy_still_keeps_them(family: str, tmp_path: Path) -> None:
    """What prune and distill do with an artifact's tokenizer."""
    source = with_markers(family, tmp_path / "source")
    first = taken(recipe_for(source), tmp_path / "first")
    texts = [render_fields(TEMPLATE, fields) for fields in FIELDS]
    expected = RequestTokenizer.from_folder(first).items(texts)
    for name in ("second", "third"):
        folder = tmp_path / name
        folder.mkdir()
        copy_tokenizer(str(first), folder)
        shutil.copyfile(first / "text.json", folder / "text.json")
        assert RequestTokenizer.from_folder(folder).items(texts) == expected
        first = folder
    kept = tokens_to_keep(json.loads((first / "tokenizer.json").read_text()), texts, reserve=0)
    write_tokenizer(first, kept)
    assert RequestTokenizer.from_folder(first).items(texts) == [tuple(map(kept.index, ids)) for ids in expected]


def test_in_a_sellers_text_a_named_marker_is_a_marker_and_all_else_is_text(tmp_path: Path) -> None:
    source = with_markers("bert", tmp_path / "source")
    ids = AutoTokenizer.from_pretrained(source).convert_tokens_to_ids(["[TITLE]", "[ATTR]", "[SEP]", "[CLS]"])
    for template, kept in (
        (TEMPLATE, {ids[0], ids[1]}),
        ("[ATTR] {attributes} {title}", {ids[1]}),
        ("{title}", set()),
    ):
        tokenizer = untrained_ranker(recipe_for(source, template))[1]
        (found,) = tokenizer.items(["oak [SEP] lamp [TITLE] [CLS] brass [ATTR]"])
        assert set(found) & set(ids) == kept


@pytest.mark.parametrize(
    ("family", "token"),
    [
        *(("bert", token) for token in ("[SEP]", "[CLS]", "[PAD]", "[MASK]", "[UNK]")),
        *(("roberta", token) for token in ("</s>", "<mask>")),
        ("xlm-roberta", "<s>"),
    ],
)
def test_a_token_that_frames_texts_is_refused_in_a_template(family: str, token: str, tmp_path: Path) -> None:
    source = save_ranker(family, tmp_path / "source")
    for model in ({}, {"checkpoint": None, "base": str(source)}):
        with pytest.raises(RecipeError, match=r"text\.item_template: ") as caught:
            untrained_ranker(recipe_for(source, f"{{title}} {token} {{attributes}}", **model))
        assert token in str(caught.value)


def test_the_longest_token_counts(tmp_path: Path) -> None:
    """``<s>`` is no part of ``<s>NEW``."""
    source = with_markers("xlm-roberta", tmp_path / "source", ["<s>NEW", "[ATTR]"])
    tokenizer = untrained_ranker(recipe_for(source, "<s>NEW {title}"))[1]
    own = AutoTokenizer.from_pretrained(source)
    (found,) = tokenizer.items(["<s>NEW oak"])
    assert list(found) == own("<s>NEW oak", add_special_tokens=False)["input_ids"]


def test_a_base_learns_its_markers_in_either_architecture(tmp_path: Path) -> None:
    source = with_markers("bert", tmp_path / "source")
    marker = AutoTokenizer.from_pretrained(source).convert_tokens_to_ids("[TITLE]")
    for architecture in ("joint", "shared-context"):
        recipe = recipe_for(source, checkpoint=None, base=str(source), architecture=architecture)
        assert untrained_ranker(recipe)[1].items(["[TITLE] oak"])[0][0] == marker
        folder = taken(recipe, tmp_path / architecture)
        assert RequestTokenizer.from_folder(folder).items(["[TITLE] oak"])[0][0] == marker
