"""A checkpoint's tokenizer by the recipe's rules: which texts it can read, and which marker tokens it keeps.

Special tokens in a text are text, so that nobody's title ends the context. Markers that a checkpoint was fine-tuned
with, such as ``[TITLE]``, are special too, and a recipe's own template may name them: those are written into the
artifact's tokenizer as ordinary added tokens, which training, judge and server then keep alike. In a seller's title
such a marker is a marker as well, and no more than that.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from tritonrank_runtime.item_text import TextError
from tritonrank_runtime.text import TOKENIZER_FILE, RequestTokenizer, TextRules

from tritonrank.errors import ArtifactError, RecipeError
from tritonrank.rankers.checkpoint_files import TOKENIZER_CONFIG, read_object
from tritonrank.rankers.modeling import counts_from_padding, first_position

SPECIAL_TOKENS_MAP = "special_tokens_map.json"
STRUCTURAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def request_tokenizer(name: str, tokenizer: PreTrainedTokenizerFast, rules: TextRules) -> RequestTokenizer:
    """The tokenizer of requests, as the artifact's files will give it.

    Args:
        name: of the checkpoint; what errors call it.
        tokenizer: the checkpoint's own.
        rules: template and token budgets.

    Raises:
        ArtifactError: it has no layout for pairs of texts.
        RecipeError: the template holds a token that frames texts.
    """
    backend = tokenizer.backend_tokenizer
    if markers := markers_of(name, tokenizer, rules.item_template):
        rust = json.loads(backend.to_str())
        _unmark(rust["added_tokens"], markers)
        backend = Tokenizer.from_str(json.dumps(rust))
    try:
        return RequestTokenizer(backend, rules, cache_entries=100_000)
    except (TextError, ValueError) as error:
        if rules.frame is not None:
            raise RecipeError(f"model.template: {name}: {error}") from None
        raise ArtifactError(
            f"{name}: its tokenizer ({TOKENIZER_FILE}) does not say how a pair of texts is written: {error}. Rankers "
            "of pairs have a template for them (post_processor) with a token at its end; causal language models, such "
            "as Qwen3 or GPT, have none: they rank with model.architecture: decoder. If the model is an encoder, "
            "take the tokenizer of the model that it was trained from: "
            f"AutoTokenizer.from_pretrained(THAT).save_pretrained({json.dumps(name)})"
        ) from None


def markers_of(name: str, tokenizer: PreTrainedTokenizerFast, template: str) -> set[str]:
    """The special tokens that a template names beside its fields, and that may stand in a text.

    Raises:
        RecipeError: it names one that frames texts.
    """
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    special.discard("")
    if not special:
        return set()
    longest_first = "|".join(re.escape(token) for token in sorted(special, key=len, reverse=True))
    named = {token for text in re.split(r"\{\w+\}", template) for token in re.findall(longest_first, text)}
    framing = {str(getattr(tokenizer, kind)) for kind in STRUCTURAL if getattr(tokenizer, kind) is not None}
    if structural := sorted(named & framing):
        raise RecipeError(
            f"text.item_template: {', '.join(structural)} begins, ends, cuts or hides a text for {name}, and is no "
            "part of one: it would be read as plain letters. Take it out of the template; rows get theirs by themselves"
        )
    return named


def make_ordinary(folder: Path, markers: Iterable[str]) -> None:
    """Turn special tokens of a saved tokenizer into ordinary added ones, in every file that lists them."""
    names = set(markers)
    if not names:
        return
    path = folder / TOKENIZER_FILE
    rust = read_object(path)
    _unmark(rust["added_tokens"], names)
    path.write_text(json.dumps(rust, ensure_ascii=False), encoding="utf-8")
    for file in (TOKENIZER_CONFIG, SPECIAL_TOKENS_MAP):
        settings = read_object(folder / file)
        _unmark(settings.get("added_tokens_decoder", {}).values(), names)
        for key in ("additional_special_tokens", "extra_special_tokens"):
            if key in settings:
                settings[key] = _without(settings[key], names)
        for key, token in list(settings.items()):  # a named one beside the seven, such as title_token
            if key.endswith("_token") and _content(token) in names:
                del settings[key]
        if settings:
            (folder / file).write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def check_vocabulary(name: str, tokenizer: PreTrainedTokenizerFast, model: PreTrainedModel) -> None:
    """Compare a tokenizer with the model that reads its ids.

    Special tokens that no text and no row can hold need no embedding.

    Raises:
        ArtifactError: the model has no embedding for a token, or counts positions from another padding token.
    """
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    special = {place for place, token in backend.get_added_tokens_decoder().items() if token.special}
    in_rows = {*backend.encode("a", "b").ids, tokenizer.pad_token_id, *map(backend.token_to_id, ("[PAD]", "<pad>"))}
    unreachable = special - in_rows
    rows = embedding_rows(model)
    vocabulary = backend.get_vocab(with_added_tokens=True)
    beyond = sorted((place, token) for token, place in vocabulary.items() if place >= rows and place not in unreachable)
    if beyond:
        named = ", ".join(f"{token!r} ({place})" for place, token in beyond[:5])
        raise ArtifactError(
            f"{name}: {len(beyond)} tokens of {TOKENIZER_FILE} have no embedding: {named}; the model has "
            f"{rows}. Either it is another model's tokenizer, or tokens were added without "
            "model.resize_token_embeddings(len(tokenizer)): take the tokenizer that the model was trained with"
        )
    if not counts_from_padding(model.config.model_type):
        return
    padding = first_position(model.config) - 1
    if tokenizer.pad_token_id != padding:
        raise ArtifactError(
            f"{name}: the model counts positions from its padding token, {padding}; in {TOKENIZER_FILE} that is "
            f"{tokenizer.pad_token!r} ({tokenizer.pad_token_id}). It is another model's tokenizer: take the one that "
            "the model was trained with"
        )


def embedding_rows(model: PreTrainedModel) -> int:
    """Tokens that a model has an embedding for."""
    return int(model.get_input_embeddings().weight.shape[0])


def _unmark(added_tokens: Iterable[dict[str, Any]], names: set[str]) -> None:
    for token in added_tokens:
        if token["content"] in names:
            token["special"] = False


def _without(tokens: Any, names: set[str]) -> Any:
    if isinstance(tokens, dict):
        return {key: token for key, token in tokens.items() if _content(token) not in names}
    return [token for token in tokens if _content(token) not in names]


def _content(token: Any) -> Any:
    return token.get("content") if isinstance(token, dict) else token
