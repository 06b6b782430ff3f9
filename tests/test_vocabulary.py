"""A smaller vocabulary: texts it was made for keep their pieces, others still have some."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import FAMILIES, TEXTS, WORDS, save_ranker, tiny_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer
from tritonrank.errors import ArtifactError
from tritonrank.shrink.vocabulary import coverage, plain_tokenizer, shrunk, tokens_to_keep, write_tokenizer

KINDS = ("bert", "roberta", "xlm-roberta")  # WordPiece, byte-level BPE, Unigram
CONTENTS = {kind: json.loads(tiny_tokenizer(kind).backend_tokenizer.to_str()) for kind in KINDS}
CORPORA = st.lists(
    st.lists(st.sampled_from([*WORDS, "cm", "x", "42", ",", "oakdesk", "lampshade", "Über", "日本"]), min_size=1).map(
        " ".join
    ),
    min_size=1,
    max_size=6,
)


def pieces(tokenizer: Tokenizer, text: str) -> list[str]:
    return [str(piece) for piece in tokenizer.encode(text, add_special_tokens=False).tokens]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(texts=CORPORA, reserve=st.integers(0, 12))
def test_the_corpus_keeps_its_pieces(kind: str, texts: list[str], reserve: int) -> None:
    whole = CONTENTS[kind]
    kept = tokens_to_keep(whole, texts, reserve)
    before, after = plain_tokenizer(whole), plain_tokenizer(shrunk(whole, kept))
    assert after.get_vocab_size() == len(kept) <= before.get_vocab_size()
    for text in texts:
        assert pieces(after, text) == pieces(before, text)
        ids = after.encode(text, add_special_tokens=False).ids
        assert [kept[token] for token in ids] == before.encode(text, add_special_tokens=False).ids


def merged_vocabulary() -> dict[str, Any]:
    """BPE in which "abcd" is made of "ab" and "cd", and "bc" would be merged earlier were it not for "ab"."""
    pieces = ["<unk>", "a", "b", "c", "d", "ab", "cd", "bc", "abcd", "bcd"]
    merges = [("a", "b"), ("b", "c"), ("c", "d"), ("ab", "cd"), ("bc", "d")]
    tokenizer = Tokenizer(models.BPE({piece: place for place, piece in enumerate(pieces)}, merges, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    contents: dict[str, Any] = json.loads(tokenizer.to_str())
    return contents


@pytest.mark.parametrize("style", ["pairs", "strings"])
def test_bpe_keeps_what_a_token_is_built_from(style: str) -> None:
    contents = merged_vocabulary()
    if style == "strings":  # as older tokenizers wrote them
        contents["model"]["merges"] = [" ".join(merge) for merge in contents["model"]["merges"]]
    kept = tokens_to_keep(contents, ["abcd"], 0)
    after = plain_tokenizer(shrunk(contents, kept))
    assert {"ab", "cd", "abcd"} <= set(after.get_vocab())
    assert pieces(after, "abcd") == ["abcd"]


@pytest.mark.parametrize("kind", KINDS)
def test_unseen_words_fall_to_characters_not_to_nothing(kind: str) -> None:
    whole = CONTENTS[kind]
    after = plain_tokenizer(shrunk(whole, tokens_to_keep(whole, ["lamp"], 0)))
    (known,) = pieces(after, "lamp")
    assert known.strip("▁") == "lamp"
    spelt = pieces(after, "headphones")
    assert len(pieces(plain_tokenizer(whole), "headphones")) < len(spelt)
    assert "".join(piece.removeprefix("##").strip("▁") for piece in spelt) == "headphones"
    assert coverage(after, ["headphones"]).unknown_share == 0
    assert coverage(after, ["headphones", "lamp"]).tokens == len(spelt) + 1


def test_unknown_characters_are_counted() -> None:
    report = coverage(plain_tokenizer(CONTENTS["bert"]), ["lamp ☕", "☕ lamp lamp"])
    assert (report.texts, report.tokens, report.unknown_share) == (2, 5, 2 / 5)


def test_a_padded_tokenizer_counts_no_padding() -> None:
    tokenizer = plain_tokenizer(CONTENTS["bert"])
    tokenizer.enable_padding(length=50)
    contents = json.loads(tokenizer.to_str())
    assert coverage(plain_tokenizer(contents), ["lamp"]).tokens == 1
    assert shrunk(contents, tokens_to_keep(contents, ["lamp"], 0))["padding"]["pad_id"] == 0


def test_the_reserve_is_of_words_in_their_order() -> None:
    whole = CONTENTS["bert"]
    none, some = (set(tokens_to_keep(whole, ["lamp"], reserve)) for reserve in (0, 20))
    vocabulary = whole["model"]["vocab"]
    words = sorted(
        (token for piece, token in vocabulary.items() if len(piece.removeprefix("##")) > 1 and piece[0] != "[")
    )
    assert set(words[:20]) <= some
    assert len(some) % 8 == 0
    assert len(none) < len(some)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_written_tokenizer_has_its_special_tokens_in_place(family: str, tmp_path: Path) -> None:
    folder = save_ranker(family, tmp_path / "model", head=False)
    before = AutoTokenizer.from_pretrained(folder)
    whole = json.loads((folder / "tokenizer.json").read_text())
    kept = tokens_to_keep(whole, TEXTS[:2], 0)
    write_tokenizer(folder, kept)
    after = AutoTokenizer.from_pretrained(folder)
    assert len(after) == len(kept) < len(before)
    for name, token in before.special_tokens_map.items():
        assert after.special_tokens_map[name] == token
        assert kept[after.convert_tokens_to_ids(token)] == before.convert_tokens_to_ids(token)
    old, new = before(TEXTS[0], TEXTS[1]), after(TEXTS[0], TEXTS[1])
    assert [kept[token] for token in new["input_ids"]] == old["input_ids"]
    assert new.get("token_type_ids") == old.get("token_type_ids")
    assert kept[after.pad_token_id] == before.pad_token_id


def test_ids_below_the_first_stay() -> None:
    """RoBERTa counts positions from the id of its padding token."""
    assert tokens_to_keep(CONTENTS["roberta"], [], 0, first=40)[:40] == list(range(40))


def test_a_vocabulary_of_another_kind_is_refused() -> None:
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "lamp": 1}, unk_token="[UNK]"))
    with pytest.raises(ArtifactError, match=r"WordLevel.*prune\.vocabulary: false"):
        tokens_to_keep(json.loads(tokenizer.to_str()), ["lamp"], 0)
