"""The reading side of the towers: texts to vectors, and vectors of queries and histories to one of a user."""

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_models import TEXTS, save_ranker
from tritonrank.recipe import Recipe
from tritonrank.retrieval.embed import embed_items
from tritonrank.retrieval.item_vectors import Residuals, item_vectors
from tritonrank.retrieval.text_tower import load_tower, prove_graph, write_graph
from tritonrank_recommend.catalogue.encoder import EncoderError, QueryEncoder, Towers
from tritonrank_runtime.text import TextRules

RULES = TextRules("{title}", query_tokens=8, history_items=4, history_tokens=40, candidate_tokens=24)


def write_encoder(family: str, folder: Path) -> Path:
    """An encoder of mean-pooled random weights, with the weights 1, 1/2, 1/4 for the newest three of a history."""
    folder.mkdir()
    base = save_ranker(family, folder.parent / f"{family}-base", head=False)
    recipe = Recipe.model_validate({"name": "tiny", "data": {"source": "sample"}, "model": {"base": str(base)}})
    tower, tokenizer, tokens = load_tower(recipe, RULES, folder)
    write_graph(tower, folder)
    assert prove_graph(tower, tokenizer.ids(TEXTS), folder) <= 1e-5
    Towers(tower.dimension, tokens, query_weight=0.5, history_weights=(1.0, 0.5, 0.25)).save(folder)
    Residuals.none(tower.dimension).save(folder)
    return folder


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder("bert", tmp_path_factory.mktemp("encoder") / "retriever")


@pytest.mark.parametrize("family", ["distilbert", "electra", "roberta", "xlm-roberta"])
def test_every_family_becomes_a_graph_that_agrees_with_torch(family: str, tmp_path: Path) -> None:
    encoder = QueryEncoder.open(write_encoder(family, tmp_path / "retriever"))
    vectors = encoder.embed(TEXTS)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_vectors_do_not_depend_on_what_else_is_encoded(encoder_folder: Path) -> None:
    alone = np.concatenate([QueryEncoder.open(encoder_folder).embed([text]) for text in TEXTS])
    assert (QueryEncoder.open(encoder_folder).embed(TEXTS) == alone).all()
    assert np.allclose(embed_items(encoder_folder, TEXTS), alone, atol=1e-6)


def test_a_text_is_encoded_once(encoder_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = QueryEncoder.open(encoder_folder)
    monkeypatch.setattr("tritonrank_recommend.catalogue.encoder.REMEMBERED", 2)
    first = encoder.embed(["oak desk lamp"])
    assert encoder.remembered == 1
    assert (encoder.embed(["oak desk lamp"]) == first).all()
    encoder.embed(["a", "b", "c"])
    assert encoder.remembered == 2


def test_no_text_is_like_nothing(encoder_folder: Path) -> None:
    assert not QueryEncoder.open(encoder_folder).embed(["", "  "]).any()
    assert not embed_items(encoder_folder, ["", TEXTS[0]])[0].any()


def test_a_huge_text_is_cut(encoder_folder: Path) -> None:
    encoder = QueryEncoder.open(encoder_folder)
    assert (encoder.embed(["lamp " * 500_000]) == encoder.embed(["lamp " * 100])).all()


def test_mixing_follows_recency_liking_and_query(encoder_folder: Path) -> None:
    encoder = QueryEncoder.open(encoder_folder)
    query, *history = encoder.embed(TEXTS[:5])
    items = np.stack(history)  # the oldest of the four has no weight
    expected = (4 * items[3] + 2 * items[2] + items[1]) / 7
    found = encoder.mix(None, items)
    assert found is not None
    assert np.allclose(found, expected / np.linalg.norm(expected), atol=1e-6)
    expected = items[3] + 0.5 * query
    found = encoder.mix(query, items, [1.0, -1.0, 0.0, 0.5])
    assert found is not None
    assert np.allclose(found, expected / np.linalg.norm(expected), atol=1e-6)


def test_who_is_not_known_has_no_vector(encoder_folder: Path) -> None:
    encoder = QueryEncoder.open(encoder_folder)
    assert encoder.mix(None, np.zeros((0, encoder.dimension), dtype=np.float32)) is None
    assert encoder.mix(None, encoder.embed(TEXTS[:2]), [0, -1]) is None


def test_residuals_move_the_items_that_have_them(encoder_folder: Path) -> None:
    texts = embed_items(encoder_folder, TEXTS[:2])
    own = np.full((1, texts.shape[1]), 0.5, dtype=np.float16)
    moved = Residuals(["b"], own).added(["a", "b"], texts)
    assert (moved[0] == texts[0]).all()
    whole = texts[1] + 0.5
    assert np.allclose(moved[1], whole / np.linalg.norm(whole), atol=1e-6)
    assert (item_vectors(encoder_folder, ["a", "b"], TEXTS[:2]) == texts).all()


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json", "towers.json"])
@pytest.mark.parametrize("contents", [None, b"", b"{}"])
def test_damaged_files_are_named(encoder_folder: Path, tmp_path: Path, name: str, contents: bytes | None) -> None:
    for path in encoder_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / name).unlink()
    if contents is not None:
        (tmp_path / name).write_bytes(contents)
    with pytest.raises(EncoderError, match=f"{name}(.|\n)*tritonrank build"):
        QueryEncoder.open(tmp_path)


@pytest.mark.parametrize(
    "wrong", [{"format": 2}, {"history_weights": []}, {"query_weight": "x"}, {"dimension": 0}, {"more": 1}]
)
def test_towers_of_another_kind_are_refused(encoder_folder: Path, tmp_path: Path, wrong: dict[str, object]) -> None:
    fields = json.loads((encoder_folder / "towers.json").read_text())
    (tmp_path / "towers.json").write_text(json.dumps(fields | wrong))
    with pytest.raises(EncoderError, match=r"towers.json"):
        Towers.load(tmp_path)
