"""Stage ``prepare``: two tables become listwise examples.

An example is what a ranker meets in production: a context (the query and the items the user liked before) and
candidates, one of which the user went on to like. Judged examples are the users' last positives against many unseen
items; training examples are earlier positives against a few. Who is judged is fixed here, by seed, before anything
is trained, and negatives are never items the user met at any time.

Items without text are none of this: a ranker can say nothing of them, and the server ranks them last. They are left out
together with their events, before anything is chosen, and counted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import polars as pl
from rich.console import Console
from tritonrank_runtime.field_text import plain_text
from tritonrank_runtime.item_text import render_fields

from tritonrank.artifacts import Draft
from tritonrank.data.choices import choose_positives
from tritonrank.data.dropped import Dropped, as_metrics, ids_of, require_tolerable
from tritonrank.data.impressions import Propensities
from tritonrank.data.lists import ListMaker
from tritonrank.data.loading import Tables, load_tables
from tritonrank.data.splits import LIKED, TEST, TRAIN, mark_splits
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


def prepare(recipe: Recipe, draft: Draft) -> None:
    """Write items, events and examples.

    The files: items.parquet and events.parquet (the source's tables; events by user and time, with the column split),
    and train.parquet, validation.parquet, test.parquet with the columns of ``Example``.

    Raises:
        DataError: as ``make_dataset``.
    """
    made = make_dataset(recipe)
    made.items.write_parquet(draft.folder / "items.parquet")
    made.events.write_parquet(draft.folder / "events.parquet")
    for split, examples in made.examples.items():
        examples.write_parquet(draft.folder / f"{split}.parquet")
    draft.metrics |= made.metrics
    for note in made.metrics["notes"]:
        console.print(f"  {note}", markup=False, highlight=False, soft_wrap=True)
    for dropped in made.dropped:
        console.print(f"  {dropped}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    show_counts(draft.metrics, console)


def make_dataset(recipe: Recipe) -> Prepared:
    """What ``prepare`` writes and ``check`` looks at.

    Raises:
        DataError: the source has faults, the template names a field the items do not have, nobody can be judged or
            nothing can be learnt, or the catalogue is too small for the negatives asked for.
    """
    # Imported here, because most who read a dataset need no tokenizer.
    from tritonrank.rankers.text_budgets import (
        TEXT_METRICS,
        Needs,
        measuring_rules,
        open_tokenizer,
        resolve_rules,
        who_decided,
    )

    source = load_tables(recipe.data, recipe.seed, recipe.text.template_fields)
    _check_template(recipe, source)
    lengths = TextLengths(open_tokenizer(recipe, measuring_rules(recipe.text.item_template)))
    item_lengths = lengths.of_items(source.items)
    tables, without_text = _with_text(recipe, source, item_lengths)
    dropped = [*source.dropped, *_dropped_without_text(without_text)]
    require_tolerable(dropped, getattr(recipe.data, "tolerate", 1.0))
    queries = sorted(query for query in tables.events["query"].unique() if query)
    query_lengths = lengths.of_texts(queries)
    rules = resolve_rules(recipe, Needs(max(query_lengths, default=0), max(item_lengths.values())))

    events = mark_splits(tables.events, recipe.examples)
    chosen, skipped = choose_positives(events, recipe.examples, recipe.seed)
    propensities = Propensities(events) if recipe.data.weighs_positions else None
    lists = ListMaker(tables.items["item_id"], events, recipe.examples, recipe.seed, propensities)

    dropped += [*_without_positives(events), *_with_html(tables.items, recipe.text.template_fields)]
    examples = {split: lists.make(split, positives) for split, positives in chosen.items()}
    template = recipe.text.item_template
    shown = [render_fields(template, row) for row in tables.items.head(TEXTS_SHOWN).iter_rows(named=True)]
    kept_lengths = {item: item_lengths[item] for item in tables.items["item_id"]}
    metrics = {
        "items": tables.items.height,
        "items_without_text": without_text,
        "users": events["user_id"].n_unique(),
        "events": events.height,
        "positive_events": events.filter(LIKED).height,
        "training_events": events.filter(pl.col("split") == TRAIN).height,
        "examples": {split: made.height for split, made in examples.items()},
        "skipped_users": skipped,
        "dropped": as_metrics(dropped),
        "notes": list(source.notes),
        TEXT_METRICS: count_texts(rules, who_decided(recipe), kept_lengths, query_lengths, examples[TEST], shown),
    }
    return Prepared(tables.items, events.select(*tables.events.columns, "split"), examples, dropped, metrics)


def _dropped_without_text(found: Mapping[str, Any]) -> list[Dropped]:
    kind, rule = "items without text by text.item_template", "left out, with the events about them"
    return [Dropped.of(kind, rule, found["count"], found["of"], found["first"])] if found["count"] else []


def _without_positives(events: pl.DataFrame) -> list[Dropped]:
    """Not limited: a shop where most only look is a shop."""
    users, with_positives = (frame["user_id"].unique() for frame in (events, events.filter(LIKED)))
    without = users.filter(~users.is_in(with_positives.implode())).sort()
    rule = "nothing is learnt or judged of them"
    return ids_of("users without a positive", rule, without, len(users))


def _with_html(items: pl.DataFrame, fields: Sequence[str]) -> list[Dropped]:
    suspects = items.filter(pl.any_horizontal(pl.col(fields).str.contains("[<&]")))
    found = [
        row["item_id"] for row in suspects.iter_rows(named=True) if any(plain_text(row[f]) != row[f] for f in fields)
    ]
    rule = "tags are taken out and entities decoded, on the server too"
    return ids_of("items with HTML in their text", rule, pl.Series(found, dtype=pl.String), items.height)


def _check_template(recipe: Recipe, tables: Tables) -> None:
    available = tables.items.columns[1:]
    if unknown := [name for name in dict.fromkeys(recipe.text.template_fields) if name not in available]:
        raise DataError(
            f"text.item_template uses {', '.join('{' + name + '}' for name in unknown)}, "
            f"which the items do not have; available: {', '.join(available)}"
        )


def _with_text(recipe: Recipe, source: Tables, lengths: Mapping[str, int]) -> tuple[Tables, dict[str, Any]]:
    """The tables without the items that have no text and the events about them, and what was left out."""
    absent = [item for item, tokens in lengths.items() if not tokens]
    items = source.items.filter(~pl.col("item_id").is_in(absent))
    events = source.events.filter(~pl.col("item_id").is_in(absent))
    wanted = max(recipe.examples.judged_negatives, recipe.examples.training_negatives)
    if absent and (items.height <= wanted or events.is_empty()):
        raise DataError(
            f"{len(absent)} of {source.items.height} items have no text by text.item_template "
            f"{recipe.text.item_template!r} (first: {', '.join(absent[:IDS_SHOWN])}), which leaves {items.height} "
            f"items and {events.height} events; examples.judged_negatives and training_negatives ask for {wanted} "
            "unseen items beside a positive. Name fields that have text, or lower them"
        )
    left_out = {
        "count": len(absent),
        "of": source.items.height,
        "first": absent[:IDS_SHOWN],
        "events": source.events.height - events.height,
        "users": source.events["user_id"].n_unique() - events["user_id"].n_unique(),
    }
    return (replace(source, items=items, events=events) if absent else source), left_out
