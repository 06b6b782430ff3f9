"""A smaller vocabulary for the same texts: which tokens stay, and a tokenizer.json that knows no others.

What stays: the tokens of all texts given, special tokens, single characters and bytes (so that unseen words still have
pieces), and a reserve of the most frequent ones. Texts that were given tokenize to the same pieces as before:

- WordPiece takes the longest piece that fits, so leaving out pieces that were not taken changes nothing;
- BPE applies the first merge of its list that fits, so it takes the same path as long as all merges on it stay: with a
  token stays every piece it is built from;
- Unigram takes the most probable path, which stays the most probable among fewer. The least probable piece is kept
  as well, because the price of an unknown character is derived from it.

Tokens keep their order. ``tokenizers`` cannot remove tokens, so its JSON is rewritten.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tritonrank_runtime.text import TOKENIZER_FILE

from tritonrank.errors import ArtifactError
from tritonrank.shrink.sizes import SHAPE_MULTIPLE

TOKENIZER_CONFIG = "tokenizer_config.json"
OTHER_VOCABULARIES = ("vocab.txt", "vocab.json", "merges.txt", "sentencepiece.bpe.model", "added_tokens.json")
"""Files of slow tokenizers, which would still hold every token."""
NEVER_IN_A_TEXT = re.compile(r"\[unused\d+\]|<unused\d+>|madeupword\d+")
BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")


@dataclass(frozen=True)
class Coverage:
    """How texts tokenize: what a smaller vocabulary costs on texts that it was not made for."""

    texts: int
    tokens: int
    unknown_share: float
    """of the tokens"""


def tokens_to_keep(
    tokenizer_json: Mapping[str, Any], texts: Iterable[str], reserve: int, first: int = 0, named: Iterable[int] = ()
) -> list[int]:
    """Ids of the tokens that stay, ascending.

    Args:
        tokenizer_json: the contents of tokenizer.json.
        texts: whose pieces must not change.
        reserve: most frequent tokens that stay in any case, by their order in the vocabulary.
        first: ids below this stay (RoBERTa counts positions from the id of its padding token).
        named: ids that stay beside those of the texts.

    Raises:
        ArtifactError: a kind of tokenizer that this does not know.
    """
    pieces = _pieces(tokenizer_json)
    encodings = plain_tokenizer(tokenizer_json).encode_batch_fast(list(texts))
    needed = {token for encoding in encodings for token in encoding.ids} | set(named)
    always = {token["id"] for token in tokenizer_json["added_tokens"]} | set(range(first))
    always |= {token for token, piece in pieces.items() if _is_single(piece, tokenizer_json["model"])}
    always |= _needed_by_the_model(tokenizer_json["model"])
    needed |= always
    # BERT's vocabulary begins with tokens that no text has and with all single characters; the reserve is of words.
    frequent = [t for t, piece in sorted(pieces.items()) if t not in always and not NEVER_IN_A_TEXT.fullmatch(piece)]
    builder = _Builder(tokenizer_json["model"])
    needed |= builder.with_parts({*needed, *frequent[:reserve]})
    for token in frequent[reserve:]:  # a few more, so that the table has a round size
        if len(needed) % SHAPE_MULTIPLE == 0:
            break
        if token not in needed and builder.with_parts({token}) <= {token, *needed}:
            needed.add(token)
    return sorted(needed)


def shrunk(tokenizer_json: Mapping[str, Any], kept: Sequence[int]) -> dict[str, Any]:
    """tokenizer.json with these tokens alone, numbered by their place among them."""
    places = {token: place for place, token in enumerate(kept)}
    made: dict[str, Any] = json.loads(json.dumps(tokenizer_json))
    model = made["model"]
    if model["type"] == "Unigram":
        # Added tokens come behind the pieces, and are not among them.
        model["vocab"] = [model["vocab"][token] for token in kept if token < len(model["vocab"])]
        model["unk_id"] = places.get(model["unk_id"]) if model["unk_id"] is not None else None
    else:
        model["vocab"] = {piece: places[token] for piece, token in model["vocab"].items() if token in places}
    if model["type"] == "BPE":
        vocabulary = model["vocab"]
        merges = (_pair(merge) for merge in model["merges"])
        model["merges"] = [
            [left, right]
            for left, right in merges
            if left in vocabulary and right in vocabulary and left + right in vocabulary
        ]
    for token in made["added_tokens"]:
        token["id"] = places[token["id"]]
    if made.get("padding"):
        made["padding"]["pad_id"] = places[made["padding"]["pad_id"]]
    if made.get("post_processor"):
        _renumber(made["post_processor"], places)
    return made


def write_tokenizer(folder: Path, kept: Sequence[int]) -> None:
    """Shrink the tokenizer of a checkpoint folder in place: tokenizer.json and what else numbers its tokens."""
    path = folder / TOKENIZER_FILE
    whole = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(shrunk(whole, kept), ensure_ascii=False), encoding="utf-8")
    for name in OTHER_VOCABULARIES:
        (folder / name).unlink(missing_ok=True)
    config = json.loads((folder / TOKENIZER_CONFIG).read_text(encoding="utf-8"))
    numbered = config.get("added_tokens_decoder", {})
    places = {str(token): str(place) for place, token in enumerate(kept)}
    config["added_tokens_decoder"] = {places[token]: named for token, named in numbered.items() if token in places}
    (folder / TOKENIZER_CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def plain_tokenizer(tokenizer_json: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer as texts of requests meet it: nothing is cut or padded, and special tokens in a text are text."""
    tokenizer = Tokenizer.from_str(json.dumps(tokenizer_json))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


def coverage(tokenizer: Tokenizer, texts: Sequence[str]) -> Coverage:
    """How many tokens these texts have, and how many of them stand for something unknown."""
    unknown = {tokenizer.token_to_id(name) for name in ("[UNK]", "<unk>")}
    ids = [e.ids for e in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]
    tokens = sum(map(len, ids))
    return Coverage(len(texts), tokens, sum(token in unknown for row in ids for token in row) / max(1, tokens))


class _Builder:
    """What a token is built from: for BPE every piece on the way from its characters, else nothing."""

    def __init__(self, model: Mapping[str, Any]) -> None:
        self._is_bpe = model["type"] == "BPE"
        if self._is_bpe:
            self._ids: dict[str, int] = model["vocab"]
            self._pieces = {token: piece for piece, token in self._ids.items()}
            self._ranks = {_pair(merge): rank for rank, merge in enumerate(model["merges"])}

    def with_parts(self, tokens: set[int]) -> set[int]:
        """The tokens and what they are built from."""
        if not self._is_bpe:
            return tokens
        return tokens | {part for token in tokens if token in self._pieces for part in self._parts(token)}

    def _parts(self, token: int) -> set[int]:
        """All pieces that occur while the merges build this one from its characters."""
        pieces = list(self._pieces[token])
        seen = set(pieces)
        while len(pieces) > 1:
            ranked = [(self._ranks.get(pair, len(self._ranks)), at) for at, pair in enumerate(pairwise(pieces))]
            rank, at = min(ranked)
            if rank == len(self._ranks):
                break
            pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
            seen.add(pieces[at])
        return {self._ids[piece] for piece in seen if piece in self._ids}


def _pieces(tokenizer_json: Mapping[str, Any]) -> dict[int, str]:
    """Token id -> piece of the model's own vocabulary."""
    model = tokenizer_json["model"]
    if model["type"] == "Unigram":
        return {token: piece for token, (piece, _) in enumerate(model["vocab"])}
    affixed = model.get("continuing_subword_prefix") or model.get("end_of_word_suffix")
    if model["type"] == "WordPiece" or (model["type"] == "BPE" and not affixed):
        return {token: piece for piece, token in model["vocab"].items()}
    raise ArtifactError(
        f"tokenizer.json: this kind of vocabulary ({model['type']}) cannot be pruned; WordPiece, Unigram and BPE "
        "without word affixes can. Set prune.vocabulary: false"
    )


def _needed_by_the_model(model: Mapping[str, Any]) -> set[int]:
    if model["type"] == "Unigram":
        worst = min(range(len(model["vocab"])), key=lambda token: model["vocab"][token][1])
        return {worst} | ({model["unk_id"]} if model["unk_id"] is not None else set())
    unknown = model.get("unk_token")
    return {model["vocab"][unknown]} if unknown in model["vocab"] else set()


def _is_single(piece: str, model: Mapping[str, Any]) -> bool:
    prefix = model.get("continuing_subword_prefix") or ""
    return len(piece.removeprefix(prefix)) <= 1 or bool(BYTE_PIECE.fullmatch(piece))


def _pair(merge: str | Sequence[str]) -> tuple[str, str]:
    """A merge is written "a b" in older files and ["a", "b"] in newer ones."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _renumber(processor: dict[str, Any], places: Mapping[int, int]) -> None:
    """The special tokens that a post-processor adds."""
    for nested in processor.get("processors", []):
        _renumber(nested, places)
    for end in ("sep", "cls"):
        if end in processor:
            processor[end] = [processor[end][0], places[processor[end][1]]]
    for special in (processor.get("special_tokens") or {}).values():
        special["ids"] = [places[token] for token in special["ids"]]
