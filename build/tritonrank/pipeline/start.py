"""From two files of a shop to a recipe: guess the columns, measure the texts, size the examples, write it with reasons.

Everything that is written can be changed; nothing is written over. What the guesses rest on is in ``data/guess.py``,
what the numbers rest on is measured here on the user's own tables, by the code that ``prepare`` uses.
"""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from tritonrank.data.choices import choose_positives
from tritonrank.data.guess import Guess, field_name, guess_columns
from tritonrank.data.loading import Tables, load_tables
from tritonrank.data.peek import Glimpse, peek
from tritonrank.data.splits import TEST, TRAIN, VALIDATION, mark_splits
from tritonrank.errors import DataError, RecipeError, TritonRankError
from tritonrank.pipeline.estimates import about_seconds
from tritonrank.rankers.text_budgets import measuring_tokenizer
from tritonrank.rankers.text_counts import TextLengths
from tritonrank.recipe import ExampleSettings, Recipe
from tritonrank.system.database_url import DatabaseUrl, Location, is_url

LOOKED_AT = 50_000
"""Rows of each table that the columns are guessed from."""
MEASURED_ROWS = 3_000_000
"""Events up to which the tables are read whole to size the examples; reading more takes minutes."""
MEASURED_TEXTS = 5_000
MINUTES = 20.0
"""What training may take on this machine, and judging half of it: more is better, and is for the night."""
FEWEST_EXAMPLES = 400
"""To learn from, whatever the minutes; fewer are hardly a training."""
FEWEST_USERS = 40
"""Judged, whatever the minutes; check says what they can show."""
GPU_EXAMPLES = 50_000
FEWEST_NEGATIVES = 9
SHORTEST, LONGEST = 8, 128
"""Tokens of a candidate's budget."""
LONGEST_HISTORY = 256
HISTORY_ITEMS = 8
STEP = 4
"""Budgets are rounded up to so many tokens: texts to come are not exactly as long as those seen."""


class Measured(NamedTuple):
    """What the tables hold, read whole."""

    items: int
    users: int
    events: int
    positives: int
    item_tokens: tuple[int, int]
    """median and 95%"""
    query_tokens: tuple[int, int]
    history: float
    """items that a judged user liked before, in the median"""
    trainable: int
    """positives that may be learnt from"""
    validated: int
    """users who can be judged while training"""
    judged: int
    unseen: int
    """items that the user who met the most did not meet"""


@dataclass(frozen=True)
class Drafted:
    """A recipe to be, and what it rests on."""

    values: dict[str, Any]
    """as YAML holds them; paths are absolute"""
    guess: Guess
    items: Glimpse
    events: Glimpse
    measured: Measured | None
    """None where the tables are too big to be read just now, or have faults"""
    fault: str
    """why not; empty where they were"""


def location_of(text: str) -> Location:
    """A path or a database's URL, as the command line gives it.

    Raises:
        RecipeError: the URL cannot be understood.
    """
    try:
        return DatabaseUrl.parse(text) if is_url(text) else Path(text).expanduser()
    except ValueError as error:
        raise RecipeError(str(error)) from None


def draft(items: Location, events: Location, name: str, named: Mapping[str, str], minutes: float = MINUTES) -> Drafted:
    """Guess and measure.

    Args:
        items: where the items table is.
        events: where the events table is.
        name: of the recipe.
        named: what a person said of columns, as ``guess_columns`` takes it.
        minutes: what training may take.

    Raises:
        DataError: a table cannot be read, or has no columns that could be ids, times or texts.
    """
    glimpses = peek(items, LOOKED_AT), peek(events, LOOKED_AT)
    guess = guess_columns(glimpses[0].frame, glimpses[1].frame, named)
    values: dict[str, Any] = {
        "name": name,
        "data": _data_section(_absolute(items), _absolute(events), guess),
        "text": {"item_template": guess.template},
    }
    if (glimpses[1].rows or 0) > MEASURED_ROWS:
        about = f"about {glimpses[1].rows:,} events are more than is read at once here; tritonrank check reads them"
        return Drafted(values, guess, *glimpses, None, about)
    measured, fault = measure(values, minutes)
    return Drafted(values, guess, *glimpses, measured, fault)


def measure(values: dict[str, Any], minutes: float = MINUTES) -> tuple[Measured | None, str]:
    """Read the tables of a recipe whole, and give it budgets and examples that fit them.

    Args:
        values: the recipe so far; it gets the sections text and examples.
        minutes: what training may take.

    Returns:
        What was found; or None and why the tables cannot be learnt from as they are.
    """
    try:
        recipe = Recipe.model_validate(values)
        measured = _measure(recipe)
        values["text"] |= text_budgets(measured)
        values["examples"] = example_counts(Recipe.model_validate(values), measured, minutes)
    except TritonRankError as error:
        return None, str(error)
    return measured, ""


def text_budgets(measured: Measured) -> dict[str, int]:
    """Budgets that hold 95% of the texts whole, and a history of about eight items of median length."""
    median, most = measured.item_tokens
    candidate = min(LONGEST, max(SHORTEST, _rounded(most)))
    items = max(1, min(HISTORY_ITEMS, math.ceil(measured.history)))
    history = min(LONGEST_HISTORY, _rounded(items * (min(median, candidate) + 1)))
    return {
        "query_tokens": max(SHORTEST, _rounded(measured.query_tokens[1])),
        "history_items": items,
        "history_tokens": max(history, candidate),
        "candidate_tokens": candidate,
    }


def example_counts(recipe: Recipe, measured: Measured, minutes: float) -> dict[str, int]:
    """As many examples as the data have and this machine learns from in so many minutes, and judges in half of them.

    Raises:
        DataError: the catalogue is too small to rank.
    """
    defaults = ExampleSettings()
    if measured.unseen < FEWEST_NEGATIVES:
        raise DataError(
            f"the user who met the most items leaves {measured.unseen} of {measured.items} unseen, and a judged list "
            f"takes {FEWEST_NEGATIVES}: a catalogue this small needs no ranker"
        )
    sized = {
        "training_examples": max(1, min(measured.trainable, defaults.training_examples)),
        "training_negatives": min(defaults.training_negatives, measured.unseen),
        "judged_negatives": min(defaults.judged_negatives, measured.unseen),
        "validation_users": max(1, min(defaults.validation_users, measured.validated)),
        "test_users": max(1, min(defaults.test_users, measured.judged)),
    }
    seconds = about_seconds(recipe.model_copy(update={"examples": recipe.examples.model_copy(update=sized)}))
    if "finetune" not in seconds:
        return sized | {"training_examples": max(1, min(measured.trainable, GPU_EXAMPLES))}
    judging = seconds["compare"] + seconds["quantize"]
    users = min(sized["test_users"], max(FEWEST_USERS, int(sized["test_users"] * minutes * 30 / judging)))
    affordable = max(FEWEST_EXAMPLES, int(sized["training_examples"] * minutes * 60 / seconds["finetune"]))
    return sized | {
        "training_examples": max(1, min(measured.trainable, affordable)),
        "validation_users": min(sized["validation_users"], users),
        "test_users": users,
    }


def name_from(path: Path) -> str:
    """A recipe's name that its file suggests: small letters, digits and signs."""
    letters = "".join(sign if sign.isascii() and sign.isalnum() else "-" for sign in path.stem.casefold())
    return letters.strip("-")[:64] or "shop"


def relative_to_recipe(location: Location, recipe: Path) -> str:
    """A location as the recipe's file names it."""
    folder = recipe.absolute().parent
    if isinstance(location, DatabaseUrl):
        file = Path(os.path.relpath(location.file.absolute(), folder)) if location.file else None
        return replace(location, file=file).written()
    return Path(os.path.relpath(location.absolute(), folder)).as_posix()


def _absolute(location: Location) -> Location:
    if isinstance(location, DatabaseUrl):
        return location.within(Path.cwd()) if location.file and not location.file.is_absolute() else location
    return location.absolute()


def _data_section(items: Location, events: Location, guess: Guess) -> dict[str, Any]:
    of_items, of_events = guess.item_ids
    section: dict[str, Any] = {
        "source": "tables",
        "items": items,
        "events": events,
        "item_id": of_items if of_items == of_events else {"items": of_items, "events": of_events},
        "text_fields": _text_fields(guess.text_fields),
        "user_id": guess.user_id,
        "timestamp": guess.timestamp,
    }
    if guess.query:
        section["query"] = guess.query
    if guess.impressions and guess.label:
        section["impressions"] = {"id": guess.impressions[0], "position": guess.impressions[1]}
    if guess.available_from:
        section["available_from"] = guess.available_from
    if label := guess.label:
        if label.weights is None:
            section |= {"label": label.column, "positive_label": label.positive_label}
        else:
            section["label"] = {"column": label.column} | label.weights
    return section


def _text_fields(names: Sequence[str]) -> list[str] | dict[str, str]:
    """The columns; with names for the template where it cannot hold theirs."""
    named = {field_name(name): name for name in names}
    return list(names) if list(named) == list(names) else named


def _measure(recipe: Recipe) -> Measured:
    tables = load_tables(recipe.data, recipe.seed, recipe.text.template_fields)
    lengths = TextLengths(measuring_tokenizer(recipe))
    sampled = tables.items.sample(min(MEASURED_TEXTS, tables.items.height), seed=recipe.seed)
    item_tokens = [tokens for tokens in lengths.of_items(sampled).values() if tokens]
    queries = tables.events["query"].unique(maintain_order=True).head(MEASURED_TEXTS).to_list()
    query_tokens = [tokens for tokens in lengths.of_texts([query for query in queries if query]) if tokens]
    events = mark_splits(tables.events, recipe.examples)
    everyone = tables.events["user_id"].n_unique()
    all_there_are = recipe.examples.model_copy(
        update={"training_examples": tables.events.height, "validation_users": everyone, "test_users": everyone}
    )
    chosen, _ = choose_positives(events, all_there_are, recipe.seed)
    return Measured(
        items=tables.items.height,
        users=everyone,
        events=tables.events.height,
        positives=tables.events.filter(pl.col("label") > 0).height,
        item_tokens=_median_and_most(item_tokens),
        query_tokens=_median_and_most(query_tokens),
        history=float(chosen[TEST]["others_before"].median() or 0),  # type: ignore[arg-type]  # whole numbers
        trainable=chosen[TRAIN].height,
        validated=chosen[VALIDATION].height,
        judged=chosen[TEST].height,
        unseen=tables.items.height - _most_met(tables),
    )


def _most_met(tables: Tables) -> int:
    """Items that the user who met the most has met."""
    met = tables.events.group_by("user_id").agg(pl.col("item_id").n_unique())["item_id"].max()
    return int(met) if met is not None else 0  # type: ignore[arg-type]  # a whole number


def _median_and_most(tokens: list[int]) -> tuple[int, int]:
    if not tokens:
        return 0, 0
    low, high = np.quantile(np.array(tokens), [0.5, 0.95], method="inverted_cdf")
    return int(low), int(high)


def _rounded(tokens: int) -> int:
    return -(-tokens // STEP) * STEP
