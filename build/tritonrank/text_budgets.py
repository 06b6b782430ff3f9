"""How many tokens a ranker reads of each text: what the recipe names, and what it leaves to the model and the data.

A ranker that is trained here learns with the budgets that it is served with, so that small ones are a choice. A ready
checkpoint was trained on whole texts; cutting them would change its ranking without a word. So budgets that the recipe
does not name come from its positions, shared out by what the data need, or from the text.json beside its weights.
"""

from pathlib import Path
from typing import Any, NamedTuple

from tritonrank.artifacts import read_manifest, sha256_file
from tritonrank.engine import padded_length
from tritonrank.errors import RecipeError
from tritonrank.modeling import first_position
from tritonrank.pretrained import load_config, load_tokenizer
from tritonrank.recipe import DEFAULT_BUDGETS, Recipe, TextSettings
from tritonrank.text import JOINT, RULES_FILE, TOKENIZER_FILE, RequestTokenizer, TextRules

TEXT_METRICS = "text"
"""Entry of the dataset's metrics that holds what ``prepare`` found out about texts."""

MEASURED_TOKENS = 32_768
"""Longer texts count as so long; no model here reads more."""
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
    return TextRules(**metrics["rules"])


def resolve_rules(recipe: Recipe, needs: Needs) -> TextRules:
    """The rules, given what the data need.

    Raises:
        ArtifactError: the model cannot be found.
    """
    if not _depends_on_data(recipe):
        return _rules(recipe, budgets_without_data(recipe))
    return rules_of_checkpoint(str(recipe.model.checkpoint), recipe.text, needs)


def rules_of_checkpoint(name: str, text: TextSettings, needs: Needs) -> TextRules:
    """The rules of a joint checkpoint: what is named stands, the rest shares its positions by what the data need.

    Args:
        name: the checkpoint, a folder or a hub id.
        text: the template, and budgets or ``auto``.
        needs: of the data.

    Raises:
        ArtifactError: the checkpoint cannot be found.
    """
    limit = longest_row(name)
    specials = _special_tokens(name)
    longest = max(tokens for tokens in range(max(1, limit - 64), limit + 1) if padded_length(tokens) <= limit)
    room = (
        longest - specials - 1
    )  # the separator between query and history has its place, whether they are there or not
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
    return TextRules(text.item_template, query, items, history, candidate, JOINT)


def budgets_without_data(recipe: Recipe) -> dict[str, int]:
    """Budgets of a recipe that does not leave any to its data; a checkpoint of our own brings its own."""
    defaults = DEFAULT_BUDGETS
    if recipe.model.checkpoint and (own := _own_rules(recipe.model.checkpoint)):
        defaults = {name: getattr(own, name) for name in DEFAULT_BUDGETS}
    return {name: _named(getattr(recipe.text, name), default) for name, default in defaults.items()}


def text_settings(recipe: Recipe) -> dict[str, Any]:
    """What a stage key records of the text section: budgets in numbers, as far as they are known without the data."""
    settings = recipe.text.model_dump(mode="json")
    return settings if _depends_on_data(recipe) else settings | budgets_without_data(recipe)


def who_decided(recipe: Recipe) -> dict[str, str]:
    """Of each budget whether the recipe, the model or the default decided it."""
    otherwise = "model" if recipe.model.checkpoint else "default"
    return {name: "recipe" if getattr(recipe.text, name) != "auto" else otherwise for name in DEFAULT_BUDGETS}


def measuring_rules(item_template: str) -> TextRules:
    """Rules under which nothing of an item is cut, up to ``MEASURED_TOKENS``."""
    return TextRules(item_template, 0, 0, 0, MEASURED_TOKENS)


def tokenizer_name(recipe: Recipe) -> str:
    return recipe.model.checkpoint or recipe.model.base


def request_tokenizer(recipe: Recipe, rules: TextRules) -> RequestTokenizer:
    """A tokenizer of the recipe's model.

    Raises:
        ArtifactError: the model has none that can be used.
    """
    return RequestTokenizer(load_tokenizer(tokenizer_name(recipe)).backend_tokenizer, rules)


def tokenizer_identity(recipe: Recipe) -> str:
    """What decides how texts become tokens, cheap to find out: the hash of a local tokenizer, or the model's name."""
    folder = Path(tokenizer_name(recipe))
    if (folder / TOKENIZER_FILE).is_file():
        return sha256_file(folder / TOKENIZER_FILE)
    files = sorted(path for path in folder.iterdir() if path.suffix in {".txt", ".model"}) if folder.is_dir() else []
    return " ".join([tokenizer_name(recipe), *(f"{path.name}:{sha256_file(path)}" for path in files)])


def longest_row(name: str) -> int:
    """Tokens that a joint row of a checkpoint may have, special tokens included.

    Raises:
        ArtifactError: the checkpoint cannot be found.
    """
    config, tokenizer = load_config(name), load_tokenizer(name)
    positions = int(config.max_position_embeddings) - first_position(config)
    return min(positions, int(tokenizer.model_max_length))  # without a limit of its own it says 1e30


def _depends_on_data(recipe: Recipe) -> bool:
    """Whether budgets are left to a joint checkpoint that does not say what it was trained with."""
    name = recipe.model.checkpoint
    is_named = all(getattr(recipe.text, setting) != "auto" for setting in DEFAULT_BUDGETS)
    return bool(name) and not is_named and recipe.model.architecture == JOINT and _own_rules(str(name)) is None


def _own_rules(name: str) -> TextRules | None:
    """The text.json of a checkpoint that was written here."""
    return TextRules.load(Path(name)) if (Path(name) / RULES_FILE).is_file() else None


def _rules(recipe: Recipe, budgets: dict[str, int]) -> TextRules:
    sizes: dict[str, Any] = dict(budgets)
    return TextRules(recipe.text.item_template, **sizes, architecture=recipe.model.architecture)


def _special_tokens(name: str) -> int:
    rules = measuring_rules("{text}")
    tokenizer = RequestTokenizer(load_tokenizer(name).backend_tokenizer, rules)
    return tokenizer.row_tokens - rules.context_tokens - rules.candidate_tokens


def _named(setting: int | str, otherwise: int) -> int:
    return otherwise if setting == "auto" else int(setting)


def _rounded(tokens: int) -> int:
    return -(-tokens // ROUNDED_TO) * ROUNDED_TO
