"""What a night learns and is judged on, as a dataset like the one that ``prepare`` makes.

Learnt are the lists of new hours, and a sample of older ones, so that old tastes are not forgotten. Judged are the
newest hours, which come after all that was learnt, the frozen ones, and the lists that the recipe's own dataset was
judged on. What is judged is not learnt: the windows part what belongs to the log, and no list is learnt whose answer is
that of a frozen or an old list.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
from rich.console import Console

from tritonrank.artifacts import Draft
from tritonrank.artifacts.manifest import sha256_json
from tritonrank.artifacts.stage import Stage
from tritonrank.data import prepare
from tritonrank.data.choices import Tally
from tritonrank.data.dropped import Dropped, ids_of
from tritonrank.data.event_log import erased_digests, files_between
from tritonrank.data.lists import learnt_positives
from tritonrank.data.loading import source_fingerprints
from tritonrank.data.splits import TEST, VALIDATION
from tritonrank.data.tables import load_items
from tritonrank.errors import DataError
from tritonrank.learn.lists.judged_lists import SETS_FILE, list_columns, sets_of
from tritonrank.learn.lists.left_out import LeftOut
from tritonrank.learn.lists.night_events import TABLE, NightEvents, log_of, night_events
from tritonrank.learn.lists.night_lists import ROW, NightLists, choose_lists
from tritonrank.learn.lists.shown_lists import LIST_AT
from tritonrank.learn.lists.windows import Windows
from tritonrank.rankers.text_budgets import prompt_settings, tokenizer_identity
from tritonrank.recipe import Recipe, TablesData

VERB = "examples"
REVISION = 1
TOOLS = ("numpy", "polars", "tokenizers", "transformers")
READ = {"delay_hours", "replay_share", "most_lists", "segments"}
"""Settings of section ``learn`` that decide the lists, beside the windows, which others decided."""

console = Console()


def stage(recipe: Recipe, base: Path, windows: Windows, folder: Path, left_out: Sequence[LeftOut] = ()) -> Stage:
    """The stage ``examples``, whose artifact stands where other stages expect a dataset.

    train.parquet: new lists and a replay of older ones; validation.parquet: newest lists of some users, and of the
    base; test.parquet: all judged lists; items.parquet and events.parquet as ``prepare`` writes them; sets.parquet:
    which judged list is in which set.

    Args:
        recipe: with its section ``learn``.
        base: the dataset that ``prepare`` made for the recipe, whose lists are the old ones.
        windows: of this night.
        folder: of the artifact: ``Workspace(night).dataset``.
        left_out: of this night and all before.
    """

    def settings() -> dict[str, Any]:
        log = log_of(recipe)
        data = recipe.data
        own_items = source_fingerprints(data, tables_read=("items",)) if isinstance(data, TablesData) else {}
        if own_items is None:
            assert isinstance(data, TablesData)
            load_items(data, recipe.text.template_fields)  # raises with everything that is wrong
        return {
            "windows": windows.as_json(),
            "left_out": [one.as_json() for one in left_out],
            "learn": recipe.learn.model_dump(mode="json", include=READ),
            "data": data.model_dump(mode="json", exclude={*data.LOCATIONS, "fields"}),
            "text": recipe.text.model_dump(mode="json"),
            "tokenizer": tokenizer_identity(recipe),
            "architecture": recipe.model.architecture,
            **prompt_settings(recipe.model),
            "examples": recipe.examples.model_dump(mode="json"),
            "seed": recipe.seed,
            "sources": own_items,
            "log": sha256_json(files_between(log, windows.read.start, windows.read.end)),
            "erased": sha256_json(erased_digests(log)),
        }

    def make(draft: Draft) -> None:
        make_examples(recipe, base, windows, draft, left_out)

    return Stage(VERB, folder, settings, {"base": base}, make, REVISION, TOOLS)


def make_examples(recipe: Recipe, base: Path, windows: Windows, draft: Draft, left_out: Sequence[LeftOut] = ()) -> None:
    """Fill the draft of ``stage``; arguments as there.

    Raises:
        NothingToLearnError: no list is new, or none can be judged.
        DataError: items or log have faults, or the catalogue is too small for the negatives asked for.
        RecipeError: a segment is no condition, or no log is named.
    """
    if windows.new.is_empty:
        raise DataError("the night has no new hours to learn; expected windows of plan_windows with some")
    items, dropped, notes = items_now(recipe, base)
    catalogue = prepare.with_text(recipe, items)
    known = catalogue.items["item_id"]
    night = night_events(recipe, base, windows, known, left_out)
    lists = choose_lists(recipe, base, windows, catalogue.items, night)
    events = _held_out(night.marked, lists.judged)
    segments = _sets(recipe, windows, catalogue.items, events, lists)

    kind = f"events of the log on items that {recipe.name}'s catalogue does not have"
    dropped += ids_of(kind, "left out", night.strangers, night.of_log + len(night.strangers))
    lost = prepare.left_out(recipe, catalogue, events.height, 0, 0)
    dropped += [*prepare.dropped_without_text(lost), *lists.dropped]
    queries = sorted(query for query in events["query"].unique() if query)
    tally = Tally.of(events)
    skipped: dict[str, dict[str, int]] = {VALIDATION: {}, TEST: {}}
    metrics = prepare.describe(
        recipe,
        catalogue,
        queries,
        tally,
        skipped,
        lists.examples,
        lost,
        dropped,
        [*notes, *_told(night, lists, windows)],
    )
    metrics |= {
        "windows": windows.as_json(),
        "lists": lists.counts,
        "positions_weighed_by": night.by,
        "sets": dict(segments.group_by("set", maintain_order=True).len().iter_rows()),
    }
    events.select(*TABLE, "split").write_parquet(draft.folder / "events.parquet", row_group_size=prepare.ROWS_PER_GROUP)
    segments.write_parquet(draft.folder / SETS_FILE)
    prepare.write_rest(draft, catalogue.items, lists.examples, metrics, dropped)


def items_now(recipe: Recipe, base: Path) -> tuple[pl.DataFrame, list[Dropped], tuple[str, ...]]:
    """The items as they are now: of a shop's own table; other sources do not change."""
    if isinstance(recipe.data, TablesData):
        return load_items(recipe.data, recipe.text.template_fields)
    return pl.read_parquet(base / "items.parquet", glob=False), [], ()


def _held_out(marked: pl.DataFrame, judged: pl.DataFrame) -> pl.DataFrame:
    """Events whose split says of the log's, too, which ones are judged and which ones validate."""
    told = marked.join(judged.select(*ROW, "held_out"), on=ROW, how="left", maintain_order="left")
    return told.with_columns(pl.coalesce("held_out", "split").alias("split"))


def _sets(
    recipe: Recipe, windows: Windows, items: pl.DataFrame, events: pl.DataFrame, lists: NightLists
) -> pl.DataFrame:
    times = lists.judged.select(
        pl.format("{}:{}", *ROW).alias("example_id"), pl.col(LIST_AT).alias("list_at"), "impression"
    )
    counted = items.join(learnt_positives(events), on="item_id", how="left", maintain_order="left")
    counted = counted.rename({"count": "item_positives"}).with_columns(pl.col("item_positives").fill_null(0))
    columns = list_columns(lists.examples[TEST], lists.sets, times, counted, windows.read.end)
    return sets_of(columns, recipe.learn.segments)


def _told(night: NightEvents, lists: NightLists, windows: Windows) -> list[str]:
    """What a night is made of, a line each."""
    counted = ", ".join(f"{count:,} {name}" for name, count in lists.counts.items())
    return [
        f"{windows.new.hours:g} new hours of the log, judged on the {windows.newest.hours:g} after them",
        f"lists: {counted}",
        f"how likely a position is looked at is told by {night.by}",
    ]
