"""A table of events, as a store takes them: one row each, users together, in the table's own order.

Users together, because a profile is written once per batch that holds events of it. The order of a user's own events
stays, for it decides among events of the same second.
"""

from dataclasses import dataclass

import polars as pl

from tritonrank.data import columns
from tritonrank.data.dropped import Dropped, require_tolerable
from tritonrank.data.faults import Faults
from tritonrank.data.guess import guess_events
from tritonrank.data.loading import Tables
from tritonrank.data.peek import peek
from tritonrank.data.source import SourceTable, check_rows, read_source
from tritonrank.recipe import TablesData
from tritonrank.retrieval.event_types import types_of_numbers, types_of_words
from tritonrank.system.database_url import AnyLocation, Location

TOLERATE = 0.2
"""Share of rows that one kind of dirt may cost, where no recipe says it."""
EVENT_ID, VALUE = "event_id", "value"
"""Columns that are taken where a table calls them so, as a gateway's log does."""


@dataclass(frozen=True)
class EventColumns:
    """Which column is what.

    Attributes:
        user_id, item_id, timestamp: columns.
        query: None where there is none.
        label: of the type or the rating; None where there is neither.
        are_words: whether the label holds types.
    """

    user_id: str
    item_id: str
    timestamp: str
    query: str | None = None
    label: str | None = None
    are_words: bool = False

    @classmethod
    def of(cls, settings: TablesData) -> "EventColumns":
        """As a recipe says."""
        return cls(
            settings.user_id,
            settings.events_key,
            settings.timestamp,
            settings.query,
            settings.label_column,
            settings.event_weights is not None,
        )

    @classmethod
    def guessed(cls, location: Location, named: dict[str, str]) -> "EventColumns":
        """By their names and first rows.

        Raises:
            DataError: the table cannot be read, or a column cannot be found; how to name it.
        """
        guess = guess_events(peek(location, 2_000).frame, named)
        label = guess.label
        return cls(
            guess.user_id,
            guess.item_id,
            guess.timestamp,
            guess.query,
            label.column if label else None,
            bool(label and label.weights is not None),
        )


@dataclass(frozen=True)
class ImportedEvents:
    """What will be sent.

    Attributes:
        frame: user_id, item_id, type, query and event_id, String, "" where there is none; timestamp Int64, unix
            seconds; value Float64, null where there is none.
        dropped: what was left out.
    """

    frame: pl.DataFrame
    dropped: tuple[Dropped, ...]


def read_events(
    location: AnyLocation, chosen: EventColumns, *, default: str, tolerate: float = TOLERATE
) -> ImportedEvents:
    """Read a table of events.

    Args:
        location: where it is.
        chosen: its columns.
        default: type of events that say no other.
        tolerate: share of the rows that one kind of dirt may cost.

    Raises:
        DataError: it cannot be read, a column is missing, or too many rows are no events; no event is known by type.
    """
    faults = Faults()
    names = {chosen.user_id, chosen.item_id, chosen.timestamp, chosen.query, chosen.label, EVENT_ID, VALUE} - {None}
    table = read_source(location, faults, names)  # type: ignore[arg-type]  # without None
    check_rows(table, faults)
    types, values = _types(table, chosen, faults, default)
    may_lack_items = (types == "search").any()
    read_ids = columns.texts if may_lack_items else columns.identifiers
    frame = pl.DataFrame(
        [
            columns.identifiers(table, chosen.user_id, faults, "data.user_id").alias("user_id"),
            read_ids(table, chosen.item_id, faults, "data.item_id").alias("item_id"),
            types.alias("type"),
            columns.timestamps(table, chosen.timestamp, faults, "data.timestamp").alias("timestamp"),
            values.alias("value"),
            _text(table, chosen.query, faults).str.strip_chars().alias("query"),
            _text(table, EVENT_ID if EVENT_ID in table.header else None, faults).alias("event_id"),
        ]
    )
    faults.raise_of_tables()
    dropped = faults.dropped(table.path, table.path.name, frame.height)
    require_tolerable(dropped, tolerate)
    frame = frame.filter(table.sound & ~faults.unusable(table.path, frame.height))
    return _known(frame, dropped)


def events_of(tables: Tables, default: str) -> ImportedEvents:
    """Those of a recipe's tables, whatever its source: positives are of the default type, others say as much as a skip.

    Such a source is of ratings, of which the tables keep whether they are positive: who gave two stars did not like it.
    """
    events = tables.events
    frame = events.select(
        "user_id",
        "item_id",
        pl.when(pl.col("label") == 1).then(pl.lit(default)).otherwise(pl.lit("skip")).alias("type"),
        "timestamp",
        pl.lit(None, dtype=pl.Float64).alias("value"),
        "query",
        pl.lit("").alias("event_id"),
    )
    return _known(frame, list(tables.dropped))


def _types(table: SourceTable, chosen: EventColumns, faults: Faults, default: str) -> tuple[pl.Series, pl.Series]:
    rows = table.frame.height
    nothing = pl.repeat(None, rows, dtype=pl.Float64, eager=True)
    if chosen.label is None:
        return pl.repeat(default, rows, dtype=pl.String, eager=True), nothing
    if not chosen.are_words:
        return types_of_numbers(columns.numbers(table, chosen.label, faults, "data.label"), default)
    types = types_of_words(columns.texts(table, chosen.label, faults, "data.label"))
    return types, columns.numbers_or_none(table, VALUE, faults) if VALUE in table.header else nothing


def _text(table: SourceTable, name: str | None, faults: Faults) -> pl.Series:
    if name is None:
        return pl.repeat("", table.frame.height, dtype=pl.String, eager=True)
    return columns.texts(table, name, faults, "data.query")


def _known(frame: pl.DataFrame, dropped: list[Dropped]) -> ImportedEvents:
    """Without what is no event, users together."""
    is_event = pl.col("type").is_not_null() & ((pl.col("item_id") != "") | (pl.col("type") == "search"))
    events = frame.filter(is_event)
    if others := frame.height - events.height:
        examples = frame.filter(~is_event)["item_id"].head(10)
        dropped.append(
            Dropped.of(
                "rows that were only shown, or of a type that is not known", "left out", others, frame.height, examples
            )
        )
    return ImportedEvents(events.sort("user_id", maintain_order=True), tuple(dropped))
