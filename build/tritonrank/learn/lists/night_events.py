"""All events that a night knows, in one table: those of the recipe's own dataset, and those of the log.

What may be learnt follows from the windows alone. Events of the dataset keep what ``prepare`` said of them; of the log
what is settled before the newest window is learnt, and of the rest nothing is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from tritonrank.data.event_log import LogRows, read_rows, without_erased
from tritonrank.data.impressions import Propensities, shown_and_clicked
from tritonrank.data.negatives import stable_hash
from tritonrank.data.splits import CHOSEN, TRAIN, UNUSED, mark_splits
from tritonrank.errors import DataError, RecipeError
from tritonrank.learn.clicks.click_estimates import looked_at
from tritonrank.learn.lists.left_out import LeftOut, without_left_out
from tritonrank.learn.lists.shown_lists import LIST_AT, SETTLED_AT, settled_events, shown_pages
from tritonrank.learn.lists.windows import Span, Windows
from tritonrank.recipe import EventsData, Recipe
from tritonrank.recipe.data import EVENT_WEIGHTS, SHOWN_TYPE
from tritonrank.system.database_url import AnyLocation

VALIDATING = 5
"""One user in so many validates: their newest lists choose the best weights, and are judged by no night."""
FEWEST_CLICKS = 200
"""On neighbours that might have changed places, for lots to tell how likely a place is looked at."""
TABLE: dict[str, pl.DataType] = {
    "user_id": pl.String(),
    "item_id": pl.String(),
    "query": pl.String(),
    "timestamp": pl.Int64(),
    "label": pl.Int8(),
    "gain": pl.Float32(),
    "impression": pl.String(),
    "shown_at": pl.Int64(),
}
"""Columns of events.parquet of a night; shown_at is the position, as ``prepare`` calls it."""
BASE_PLACE = "base_place"
"""Of an event of the base: its number within its user there, by which its lists are called."""


@dataclass(frozen=True)
class NightEvents:
    """Events by user and time.

    Attributes:
        marked: as ``mark_splits`` returns them, with SETTLED_AT, LIST_AT (null for events of the base) and BASE_PLACE
            (null for those of the log). ``split`` says what may be learnt, and nothing of the log is held out yet.
        propensities: what positives weigh by their position; None: all alike.
        by: who says how likely a position is looked at: lots, clicks or nobody.
        strangers: events of the log that were about unknown items.
        of_log: how many events of the log there were on items.
    """

    marked: pl.DataFrame
    propensities: Propensities | None
    by: str
    strangers: pl.Series
    of_log: int


def log_of(recipe: Recipe) -> AnyLocation:
    """Where the recipe's log is.

    Raises:
        RecipeError: it names none, or its ranker is one that no night trains.
    """
    if recipe.images is not None:  # its examples have no table of images, and would train a ranker of texts
        raise RecipeError(
            f"{recipe.name}: images: no night learns a ranker that reads them: tritonrank build RECIPE does"
        )
    if recipe.learn.log is not None:
        return recipe.learn.log
    if isinstance(recipe.data, EventsData):
        return recipe.data.events
    raise RecipeError(
        f"{recipe.name}: learn.log: without it nothing can be learnt from what happened; name the folder that the "
        "gateway's --events-log names, such as --set learn.log=log"
    )


def gains_of(recipe: Recipe) -> dict[str, float]:
    """What the types of a log's events are worth; recipes that were built from something else take the defaults."""
    own = recipe.data.event_weights if isinstance(recipe.data, EventsData) else None
    return own or EVENT_WEIGHTS | {SHOWN_TYPE: 0.0}


def night_events(
    recipe: Recipe, base: Path, windows: Windows, known_items: pl.Series, left_out: Sequence[LeftOut] = ()
) -> NightEvents:
    """Read what a night knows.

    Args:
        recipe: with a log.
        base: the dataset that ``prepare`` made.
        windows: of the night.
        known_items: ids of the items that have text.
        left_out: what does not count.

    Raises:
        DataError: the log is not there, or one of its files cannot be read.
    """
    gains = gains_of(recipe)
    rows = without_left_out(read_rows(log_of(recipe), windows.read.start, windows.read.end), left_out)
    events = settled_events(rows, recipe.learn.delay_hours, every_list=recipe.data.weighs_positions)
    events = _as_table(events, gains)
    is_known = events["item_id"].is_in(known_items.implode())
    strangers, events = events.filter(~is_known)["item_id"], events.filter(is_known)
    before = _base_events(rows.log, base, known_items)
    if isinstance(recipe.data, EventsData):  # the base was made of the same log
        events = events.join(before, on=["user_id", "item_id", "timestamp", "gain"], how="anti", maintain_order="left")
    together = pl.concat([before, events], how="diagonal")
    marked = mark_splits(together.rename({"split": "base_split"}), recipe.examples.model_copy(update={"cutoff": None}))
    marked = _with_split(marked, windows)
    propensities, by = _propensities(recipe, rows, windows, gains, marked)
    return NightEvents(marked, propensities, by, strangers, events.height)


def settled_in(span: Span) -> pl.Expr:
    """Events of the log that are settled in a span."""
    return pl.col(SETTLED_AT).is_between(span.start, span.end, closed="left").fill_null(False)


def validates(users: pl.Series, seed: int) -> pl.Series:
    """[users] whether a user is one of those who validate, in all nights alike."""
    ids = users.unique()
    chosen = pl.Series([stable_hash(seed, f"validates:{user}") % VALIDATING == 0 for user in ids], dtype=pl.Boolean)
    return users.replace_strict(ids, chosen, return_dtype=pl.Boolean) if len(ids) else chosen


def learnt_until(recipe: Recipe, base: Path) -> float | None:
    """Up to where the recipe's own dataset holds the log, unix seconds; None where it was made of something else.

    Raises:
        ArtifactError, OSError: no dataset is there.
    """
    if not isinstance(recipe.data, EventsData):
        return None
    last = pl.scan_parquet(base / "events.parquet", glob=False).select(pl.col("timestamp").max()).collect().item()
    return None if last is None else float(last) + 1


def _as_table(events: pl.DataFrame, gains: Mapping[str, float]) -> pl.DataFrame:
    """Events of the log with the columns of TABLE, SETTLED_AT and LIST_AT."""
    gain = pl.col("type").replace_strict(dict(gains), default=0.0, return_dtype=pl.Float32)
    return events.select(
        pl.col("user_id").str.strip_chars(),
        pl.col("item_id").str.strip_chars(),
        pl.col("query").str.strip_chars(),
        "timestamp",
        (gain > 0).cast(pl.Int8).alias("label"),
        gain.alias("gain"),
        pl.when(pl.col("page") != "").then(pl.col("page")).alias("impression"),
        pl.col("position").cast(pl.Int64).alias("shown_at"),
        SETTLED_AT,
        LIST_AT,
    )


def _base_events(log: AnyLocation, base: Path, known_items: pl.Series) -> pl.DataFrame:
    """Events of the base with BASE_PLACE and split, of users who were not erased since, on items that are there."""
    events = pl.read_parquet(base / "events.parquet", glob=False)
    events = events.with_columns(pl.int_range(pl.len(), dtype=pl.Int64).over("user_id").alias(BASE_PLACE))
    absent = [pl.lit(None, dtype=TABLE[name]).alias(name) for name in TABLE if name not in events.columns]
    events = events.with_columns(absent).select(*TABLE, "split", BASE_PLACE)
    events = events.filter(pl.col("item_id").is_in(known_items.implode()))
    return without_erased(log, events, "timestamp")


def _with_split(marked: pl.DataFrame, windows: Windows) -> pl.DataFrame:
    """Events of the log by what may be learnt of them; those of the base as they were."""
    is_learnt = (pl.col(SETTLED_AT) < windows.newest.start) & ~settled_in(windows.frozen)
    of_log = pl.when(is_learnt).then(pl.lit(TRAIN)).otherwise(pl.lit(UNUSED))
    return marked.with_columns(
        pl.when(pl.col(BASE_PLACE).is_null()).then(of_log).otherwise(pl.col("base_split")).alias("split")
    ).drop("base_split")


def _propensities(
    recipe: Recipe, rows: LogRows, windows: Windows, gains: dict[str, float], marked: pl.DataFrame
) -> tuple[Propensities | None, str]:
    """By lots where enough clicks were made among them, else as the recipe says."""
    try:
        shown = shown_pages(rows, recipe.learn.delay_hours, windows.newest.start, gains=gains).shown
    except DataError:
        pass  # nothing was shown, or by nobody's lot
    else:
        if shown.clicked[(shown.move_up > 0) | (shown.move_down > 0)].sum() >= FEWEST_CLICKS:
            return Propensities.of_curve(looked_at(shown).tolist()), "lots"
    if recipe.data.weighs_positions:
        return Propensities(shown_and_clicked(marked)), "clicks"
    return None, "nobody"


def chosen_of_log(marked: pl.DataFrame, condition: pl.Expr) -> pl.DataFrame:
    """Positives of the log that may become lists, one for each page."""
    return marked.filter(CHOSEN & pl.col(BASE_PLACE).is_null() & condition)
