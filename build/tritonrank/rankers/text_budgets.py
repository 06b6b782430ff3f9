"""How many tokens a ranker reads of each text: what the recipe names, and what it leaves to the model and the data.

A ranker that is trained here learns with the budgets that it is served with, so that small ones are a choice. A ready
checkpoint was trained on whole texts; cutting them would change its ranking without a word. So budgets that the recipe
does not name come from its positions, shared out by what the data need, or from the text.json beside its weights.
"""

import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer
from tritonrank_runtime.images import AnyImage, ImageRules
from tritonrank_runtime.text import RULES_FILE, TOKENIZER_FILE, RequestTokenizer, TextRules

from tritonrank.artifacts import read_manifest, sha256_file
from tritonrank.errors import ArtifactError, RecipeError
from tritonrank.rankers.architectures import architecture_named
from tritonrank.rankers.checkpoint_gguf import gguf_file
from tritonrank.rankers.checkpoint_source import PACKAGED, determining_files, folder_of, identity, is_hub_id
from tritonrank.recipe import DEFAULT_BUDGETS, PACKAGED_MINILM, ModelSettings, Recipe, TextSettings

TEXT_METRICS = "text"
"""Entry of the dataset's metrics that holds what ``prepare`` found out about texts."""

MEASURED_TOKENS = 32_768
"""Longer texts count as so long; no model here reads more."""
CACHED_TEXTS = 100_000
"""Texts whose tokens a tokenizer of a build remembers."""
ROUNDED_TO = 8
"""Budgets are rounded up to so many tokens, as joint rows are: texts to come are not exactly as long as those seen."""


class Needs(NamedTuple):
    """Tokens of the longest texts of the data."""

    query: int
    candidate: int


def text_rules(recipe: Recipe, dataset_folder: Path | None = None) -> TextRules:
    """The rules by which requests of a recipe become tokens; ``prepare`` resolved what the data decide.

    Args:
        recipe: its text and model sections.
        dataset_folder: the prepared dataset; needed only where budgets are left to a ready checkpoint.

    Raises:
        RecipeError: budgets depend on a dataset that was not named or was prepared for another recipe.
    """
    if not _depends_on_data(recipe):
        return _rules(recipe, budgets_without_data(recipe))
    metrics = read_manifest(dataset_folder).metrics.get(TEXT_METRICS) if dataset_folder else None
    if metrics is None:
        raise RecipeError(
            "text: budgets that are auto follow from the data with model.checkpoint, and the data are not prepared: "
            "tritonrank prepare RECIPE, or name text.query_tokens and text.candidate_tokens"
        )
    return TextRules.of_json(metrics["rules"])


def rules_to_try(recipe: Recipe) -> TextRules:
    """Rules to load a model with before the data are known: budgets that wait for those are as small as they can be."""
    return resolve_rules(recipe, Needs(0, 0))


def resolve_rules(recipe: Recipe, needs: Needs) -> TextRules:
    """The rules, given what the data need.

    Raises:
        ArtifactError: the model cannot be found.
    """
    if not _depends_on_data(recipe):
        return _rules(recipe, budgets_without_data(recipe))
    return rules_of_checkpoint(recipe.model, recipe.text, needs)


def rules_of_checkpoint(model: ModelSettings, text: TextSettings, needs: Needs) -> TextRules:
    """The rules of a ready checkpoint: what is named stands, the rest shares its positions by what the data need.

    Args:
        model: the checkpoint.
        text: the template, and budgets or ``auto``.
        needs: of the data.

    Raises:
        ArtifactError: the checkpoint cannot be found.
    """
    limit = longest_row(model)
    served = architecture_named(model.architecture).served
    specials = _special_tokens(model)
    longest = max(tokens for tokens in range(max(1, limit - 64), limit + 1) if served.run_tokens(tokens) <= limit)
    room = longest - specials  # what separates query and history has its place, whether they are there or not
    query = max(DEFAULT_BUDGETS["query_tokens"], _rounded(needs.query))
    candidate = max(DEFAULT_BUDGETS["candidate_tokens"], _rounded(needs.candidate))
    wants_history = text.history_tokens not in ("auto", 0)
    items = _named(text.history_items, DEFAULT_BUDGETS["history_items"] if wants_history else 0)
    # A history may have a quarter of the row, or what queries and candidates leave.
    history_need = min(items * (candidate + 1), max(room // 4, room - query - candidate))
    history = _named(text.history_tokens, history_need)
    left = room - history
    # Of a row that is too short for both, either may have half, and what the other does not need.
    query = _named(
        text.query_tokens, max(0, min(query, max(left // 2, left - _named(text.candidate_tokens, candidate))))
    )
    candidate = _named(text.candidate_tokens, max(4, min(candidate, left - query)))
    return with_frame(TextRules(text.item_template, query, items, history, candidate, served.name), model)


def budgets_without_data(recipe: Recipe) -> dict[str, int]:
    """Budgets of a recipe that does not leave any to its data; a checkpoint of our own brings its own."""
    defaults = DEFAULT_BUDGETS
    if recipe.model.checkpoint and (own := _own_rules(recipe.model.checkpoint)):
        defaults = {name: getattr(own, name) for name in DEFAULT_BUDGETS}
    return {name: _named(getattr(recipe.text, name), default) for name, default in defaults.items()}


def text_settings(recipe: Recipe) -> dict[str, Any]:
    """What a stage key records of the text section: budgets in numbers, as far as they are known without the data."""
    settings = recipe.text.model_dump(mode="json")
    if (images := image_rules(recipe)) is not None:
        settings["images"] = asdict(images)
    return settings if _depends_on_data(recipe) else settings | budgets_without_data(recipe)


def who_decided(recipe: Recipe) -> dict[str, str]:
    """Of each budget whether the recipe, the model or the default decided it."""
    otherwise = "model" if recipe.model.checkpoint else "default"
    return {name: "recipe" if getattr(recipe.text, name) != "auto" else otherwise for name in DEFAULT_BUDGETS}


def measuring_rules(item_template: str) -> TextRules:
    """Rules under which nothing of an item is cut, up to ``MEASURED_TOKENS``."""
    return TextRules(item_template, 0, 0, 0, MEASURED_TOKENS)


def measuring_tokenizer(recipe: Recipe) -> RequestTokenizer:
    """A tokenizer that cuts nothing of an item and counts an image as its soft tokens; raises as ``open_tokenizer``."""
    rules = image_rules(recipe)
    tokenizer = open_tokenizer(recipe, replace(measuring_rules(recipe.text.item_template), images=rules))
    tokenizer.images = AnyImage(rules.soft_tokens) if rules else None
    return tokenizer


def open_tokenizer(recipe: Recipe, rules: TextRules) -> RequestTokenizer:
    """A tokenizer of the recipe's model, as the artifacts will have it.

    Raises:
        ArtifactError: the model has none that can be used.
        RecipeError: the template holds a token that frames texts.
    """
    return tokenizer_of(recipe.model, rules)


def tokenizer_identity(recipe: Recipe) -> str:
    """What decides how many tokens a text has and how many are read: everything of a model but its weights.

    Raises:
        ArtifactError, RecipeError: the model cannot be found.
    """
    name, revision = recipe.model.source, recipe.model.revision
    if name in PACKAGED or is_hub_id(name) or gguf_file(name, folder_of(name)):
        return identity(name, revision)
    files = [path for path in determining_files(folder_of(name, revision)) if path.suffix != ".safetensors"]
    return " ".join(f"{path.name}:{sha256_file(path)}" for path in files)


def longest_row(model: ModelSettings) -> int:
    """Tokens that a joint row of a checkpoint may have, special tokens included.

    Raises:
        ArtifactError: the checkpoint cannot be found.
    """
    from tritonrank.rankers.modeling import first_position
    from tritonrank.rankers.pretrained import load_config, load_tokenizer

    config, tokenizer = load_config(model.source, model.revision), load_tokenizer(model.source, model.revision)
    rows = getattr(config, "max_position_embeddings", None)
    # XLNet says -1, and a tokenizer without a limit of its own 1e30.
    positions = rows - first_position(config) if isinstance(rows, int) and rows > 0 else MEASURED_TOKENS
    return min(positions, int(tokenizer.model_max_length), MEASURED_TOKENS)


def _depends_on_data(recipe: Recipe) -> bool:
    """Whether budgets are left to a ready checkpoint that does not say what it was trained with."""
    if recipe.model.checkpoint is None or not architecture_named(recipe.model.architecture).shares_positions:
        return False
    is_named = all(getattr(recipe.text, setting) != "auto" for setting in DEFAULT_BUDGETS)
    return not is_named and _own_rules(recipe.model.checkpoint) is None


def _own_rules(name: str) -> TextRules | None:
    """The text.json of a checkpoint that was written here; what is wrong with its folder ``check_models`` says."""
    if is_hub_id(name):
        return None
    try:
        path = folder_of(name) / RULES_FILE
    except ArtifactError:
        return None
    return TextRules.load(path.parent) if os.access(path, os.R_OK) else None


def _rules(recipe: Recipe, budgets: dict[str, int]) -> TextRules:
    sizes: dict[str, Any] = dict(budgets)
    rules = TextRules(
        recipe.text.item_template, **sizes, architecture=recipe.model.architecture, images=image_rules(recipe)
    )
    return with_frame(rules, recipe.model)


def image_rules(recipe: Recipe) -> ImageRules | None:
    """How the texts of a recipe name images; None where it has none."""
    images = recipe.images
    return ImageRules(images.field, images.encoder, images.soft_tokens) if images else None


def with_frame(rules: TextRules, model: ModelSettings) -> TextRules:
    """The rules with the prompt that the model reads its texts in, where its architecture has one.

    Raises:
        ArtifactError: nobody says how its prompt reads.
        RecipeError: the recipe's own prompt has a fault.
    """
    if not architecture_named(model.architecture).has_prompt:
        return rules
    from tritonrank.rankers.checkpoint_prompt import decoder_frame  # not above: it comes with transformers

    return replace(rules, frame=decoder_frame(model))


def prompt_settings(model: ModelSettings) -> dict[str, Any]:
    """What a recipe says of its prompt, as a key records it."""
    named = {name: getattr(model, name) for name in ("template", "instruction", "answers")}
    return {"prompt": named} if any(value is not None for value in named.values()) else {}


def tokenizer_of(model: ModelSettings, rules: TextRules) -> RequestTokenizer:
    """As ``open_tokenizer``, of a model section alone."""
    rules = rules if rules.frame else with_frame(rules, model)
    if model.source == PACKAGED_MINILM:
        plain = Tokenizer.from_file(str(folder_of(PACKAGED_MINILM) / TOKENIZER_FILE))
        named = [token.content for token in plain.get_added_tokens_decoder().values() if token.special]
        # Its file says all, so that checking a recipe needs no torch; what a special token in a template means is
        # said below.
        if not any(token in rules.item_template for token in named):
            return RequestTokenizer(plain, rules, cache_entries=CACHED_TEXTS)
    # Not above: these come with torch, and whether a stage is up to date is asked without.
    from tritonrank.rankers.checkpoint_tokenizer import request_tokenizer
    from tritonrank.rankers.pretrained import load_tokenizer

    return request_tokenizer(model.source, load_tokenizer(model.source, model.revision), rules)


def _special_tokens(model: ModelSettings) -> int:
    layout = tokenizer_of(model, measuring_rules("{text}")).layout
    return layout.special_tokens + layout.longest_context(0, 0)


def _named(setting: int | str, otherwise: int) -> int:
    return otherwise if setting == "auto" else int(setting)


def _rounded(tokens: int) -> int:
    return -(-tokens // ROUNDED_TO) * ROUNDED_TO
