"""Stage ``prepare``: two tables become listwise examples.

An example is what a ranker meets in production: a context (the query and the items the user liked before) and
candidates, one of which the user went on to like. Judged examples are the users' last positives against many unseen
items; training examples are earlier positives against a few. Who is judged is fixed here, by seed, before anything
is trained, and negatives are never items the user met at any time.

Items without text are none of this: a ranker can say nothing of them, and the server ranks them last. They are left out
together with their events, before anything is chosen, and counted.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl
from rich.console import Console
from tritonrank_runtime.field_text import plain_text
from tritonrank_runtime.images import without_images
from tritonrank_runtime.item_text import render_fields

from tritonrank.artifacts import Draft
from tritonrank.data.choices import Tally, choose_positives
from tritonrank.data.dropped import Dropped, as_metrics, ids_of, require_tolerable
from tritonrank.data.images.files import SOURCES_FILE, referenced
from tritonrank.data.impressions import Propensities, shown_and_clicked
from tritonrank.data.lists import ListMaker, places_of, training_popularity
from tritonrank.data.loading import load_tables
from tritonrank.data.splits import TEST, mark_splits
from tritonrank.errors import DataError
from tritonrank.rankers.text_counts import (
    IDS_SHOWN,
    TEXTS_SHOWN,
    TextLengths,
    count_texts,
    show_counts,
)
from tritonrank.recipe import Recipe

console = Console()


ROWS_PER_GROUP = 131_072
"""Of events.parquet; said, because what writes it at once and what writes it bit by bit choose others."""


@dataclass(frozen=True)
class Prepared:
    """What a recipe's data give, before anything is written."""

    items: pl.DataFrame
    events: pl.DataFrame
    """by user and time, with the column split: train, validation, test, or "" for events nobody may use"""
    examples: dict[str, pl.DataFrame]
    """by split, with the columns of ``Example``"""
    dropped: list[Dropped]
    """what the data lost, by kind"""
    metrics: dict[str, Any]
    """of the dataset's manifest"""
    images: dict[str, str]
    """reference -> path of the file, as the items' table has it; none where the recipe has no images"""


@dataclass(frozen=True)
class Catalogue:
    """The items that have text, and what is known of their texts."""

    items: pl.DataFrame
    absent: list[str]
    """ids of items without text"""
    of: int
    """how many items there are with those"""
    lengths: TextLengths
    item_lengths: Mapping[str, int]
    """tokens by id, also of those without text"""


def prepare(recipe: Recipe, draft: Draft) -> None:
    """Write items, events and examples.

    The files: items.parquet and events.parquet (the source's tables; events by user and time, with the column split),
    and train.parquet, validation.parquet, test.parquet with the columns of ``Example``. With images, items name them by
    their references, and images.json says where their files are.

    Raises:
        DataError: as ``make_dataset``.
    """
    made = make_dataset(recipe)
    if recipe.images:
        (draft.folder / SOURCES_FILE).write_text(json.dumps(made.images) + "\n", encoding="utf-8")
    made.events.lazy().sink_parquet(draft.folder / "events.parquet", row_group_size=ROWS_PER_GROUP)
    write_rest(draft, made.items, made.examples, made.metrics, made.dropped)


def write_rest(
    draft: Draft,
    items: pl.DataFrame,
    examples: Mapping[str, pl.DataFrame],
    metrics: dict[str, Any],
    dropped: Sequence[Dropped],
) -> None:
    """Write what is there besides the events, and say what the data are like."""
    items.rechunk().write_parquet(draft.folder / "items.parquet")
    for split, made in examples.items():
        made.rechunk().write_parquet(draft.folder / f"{split}.parquet")
    draft.metrics |= metrics
    for note in metrics["notes"]:
        console.print(f"  {note}", markup=False, highlight=False, soft_wrap=True)
    for one in dropped:
        console.print(f"  {one}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    show_counts(draft.metrics, console)


def make_dataset(recipe: Recipe) -> Prepared:
    """What ``prepare`` writes and ``check`` looks at.

    Raises:
        DataError: the source has faults, the template names a field the items do not have, nobody can be judged or
            nothing can be learnt, or the catalogue is too small for the negatives asked for.
    """
    source = load_tables(recipe.data, recipe.seed, recipe.text.template_fields)
    items, images = referenced(recipe.images, source.items)
    catalogue = with_text(recipe, items)
    with_item = source.events
    if catalogue.absent:
        with_item = with_item.filter(~pl.col("item_id").is_in(catalogue.absent))
    lost_users = source.events["user_id"].n_unique() - with_item["user_id"].n_unique() if catalogue.absent else 0
    lost = left_out(recipe, catalogue, with_item.height, source.events.height - with_item.height, lost_users)
    dropped = [*source.dropped, *dropped_without_text(lost)]
    require_tolerable(dropped, getattr(recipe.data, "tolerate", 1.0))
    queries = sorted(query for query in with_item["query"].unique() if query)

    events = mark_splits(with_item, recipe.examples)
    tally = Tally.of(events)
    chosen, skipped = choose_positives(events, recipe.examples, recipe.seed)
    propensities = Propensities(shown_and_clicked(events)) if recipe.data.weighs_positions else None
    ids = catalogue.items["item_id"]
    popularity = training_popularity(events, places_of(ids))
    lists = ListMaker(ids, popularity, recipe.examples, recipe.seed, propensities)
    examples = {split: lists.make(split, positives, events) for split, positives in chosen.items()}
    dropped += other_losses(recipe, catalogue.items, tally)
    metrics = describe(recipe, catalogue, queries, tally, skipped, examples, lost, dropped, source.notes)
    if recipe.images:
        metrics["images"] = len(images)
    return Prepared(catalogue.items, events.select(*with_item.columns, "split"), examples, dropped, metrics, images)


def describe(
    recipe: Recipe,
    catalogue: Catalogue,
    queries: Sequence[str],
    tally: Tally,
    skipped: Mapping[str, Mapping[str, int]],
    examples: Mapping[str, pl.DataFrame],
    lost: Mapping[str, Any],
    dropped: Sequence[Dropped],
    notes: Sequence[str],
) -> dict[str, Any]:
    """The metrics of the dataset's manifest.

    Raises:
        DataError: no budget of tokens fits the texts.
    """
    # Imported here, because most who read a dataset need no tokenizer.
    from tritonrank.rankers.text_budgets import TEXT_METRICS, Needs, resolve_rules, who_decided

    query_lengths = catalogue.lengths.of_texts(queries)
    rules = resolve_rules(recipe, Needs(max(query_lengths, default=0), max(catalogue.item_lengths.values())))
    template = recipe.text.item_template
    shown = [
        without_images(render_fields(template, row)) for row in catalogue.items.head(TEXTS_SHOWN).iter_rows(named=True)
    ]
    kept_lengths = {item: catalogue.item_lengths[item] for item in catalogue.items["item_id"]}
    return {
        "items": catalogue.items.height,
        "items_without_text": dict(lost),
        "users": tally.users,
        "events": tally.events,
        "positive_events": tally.positive_events,
        "training_events": tally.training_events,
        "examples": {split: made.height for split, made in examples.items()},
        "skipped_users": skipped,
        "dropped": as_metrics(dropped),
        "notes": list(notes),
        TEXT_METRICS: count_texts(rules, who_decided(recipe), kept_lengths, query_lengths, examples[TEST], shown),
    }


def other_losses(recipe: Recipe, items: pl.DataFrame, tally: Tally) -> list[Dropped]:
    """What is no dirt of rows: users who liked nothing, items with HTML in their text."""
    return [*tally.without_positive.in_all(tally.users), *_with_html(items, recipe.text.template_fields)]


def dropped_without_text(lost: Mapping[str, Any]) -> list[Dropped]:
    """The items without text, where there are any."""
    kind, rule = "items without text by text.item_template", "left out, with the events about them"
    return [Dropped.of(kind, rule, lost["count"], lost["of"], lost["first"])] if lost["count"] else []


def _with_html(items: pl.DataFrame, fields: Sequence[str]) -> list[Dropped]:
    suspects = items.filter(pl.any_horizontal(pl.col(fields).str.contains("[<&]")))
    found = [
        row["item_id"] for row in suspects.iter_rows(named=True) if any(plain_text(row[f]) != row[f] for f in fields)
    ]
    rule = "tags are taken out and entities decoded, on the server too"
    return ids_of("items with HTML in their text", rule, pl.Series(found, dtype=pl.String), items.height)


def with_text(recipe: Recipe, items: pl.DataFrame) -> Catalogue:
    """The items that have text by the template.

    Raises:
        DataError: the template names a field that items do not have.
    """
    from tritonrank.rankers.text_budgets import measuring_tokenizer

    available = items.columns[1:]
    if unknown := [name for name in dict.fromkeys(recipe.text.template_fields) if name not in available]:
        raise DataError(
            f"text.item_template uses {', '.join('{' + name + '}' for name in unknown)}, "
            f"which the items do not have; available: {', '.join(available)}"
        )
    lengths = TextLengths(measuring_tokenizer(recipe))
    item_lengths = lengths.of_items(items)
    absent = [item for item, tokens in item_lengths.items() if not tokens]
    kept = items.filter(~pl.col("item_id").is_in(absent)) if absent else items
    return Catalogue(kept, absent, items.height, lengths, item_lengths)


def left_out(recipe: Recipe, catalogue: Catalogue, events: int, lost_events: int, lost_users: int) -> dict[str, Any]:
    """What went with the items without text: of the manifest.

    Args:
        recipe: whose template it was.
        catalogue: the items.
        events: that are left.
        lost_events: about items without text.
        lost_users: who have no other events.

    Raises:
        DataError: too little is left.
    """
    absent, items = catalogue.absent, catalogue.items.height
    wanted = max(recipe.examples.judged_negatives, recipe.examples.training_negatives)
    if absent and (items <= wanted or not events):
        raise DataError(
            f"{len(absent)} of {catalogue.of} items have no text by text.item_template "
            f"{recipe.text.item_template!r} (first: {', '.join(absent[:IDS_SHOWN])}), which leaves {items} "
            f"items and {events} events; examples.judged_negatives and training_negatives ask for {wanted} "
            "unseen items beside a positive. Name fields that have text, or lower them"
        )
    return {
        "count": len(absent),
        "of": catalogue.of,
        "first": absent[:IDS_SHOWN],
        "events": lost_events,
        "users": lost_users,
    }
