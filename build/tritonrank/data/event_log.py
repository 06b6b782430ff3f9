"""The training log of a gateway as an events table: docs/events.md says what is in it.

Each event counts once, erased users not at all. A search gives its query to the events on the page that it led to; what
was shown beside an event, and passed over, becomes rows of the type ``shown``. The log may grow while it is read.
"""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl
from tritonrank_recommend.log import layout

from tritonrank.data.dropped import Dropped
from tritonrank.data.faults import Faults
from tritonrank.data.formats.cells import Cells, row_number
from tritonrank.data.parts import has_wildcard
from tritonrank.data.source import SourceTable, as_table
from tritonrank.recipe.data import SHOWN_TYPE
from tritonrank.system.database_url import AnyLocation

LIKED_RATING = 4.0
"""Stars from which a rating is one, as with MovieLens; below it says as much as a skip."""
ATTEMPTS = 5
"""To read a log whose files are being joined."""
HINT = "expected the folder that the gateway's --events-log names, with events/date=.../hour=.../*.parquet in it"
EVENT_COLUMNS: dict[str, pl.DataType] = {
    "event_id": pl.String(),
    "user_id": pl.String(),
    "item_id": pl.String(),
    "type": pl.String(),
    "query": pl.String(),
    "timestamp": pl.Float64(),
    "value": pl.Float64(),
    "page": pl.String(),
    "position": pl.Int32(),
    "received_at": pl.Float64(),
}
SHOWN_COLUMNS: dict[str, pl.DataType] = {
    "page": pl.String(),
    "user_id": pl.String(),
    "query": pl.String(),
    "shown_at": pl.Float64(),
    "item_ids": pl.List(pl.String()),
    "positions": pl.List(pl.Int32()),
}
LOT_COLUMNS: dict[str, pl.DataType] = {
    "policy_positions": pl.List(pl.Int32()),
    "move_up": pl.List(pl.Float64()),
    "move_down": pl.List(pl.Float64()),
}
"""Of what was shown, in files that were written since lots are drawn; null elsewhere."""
KNOWN_AT = "known_at"
"""Column of ``read_rows``: from when on a row can be read for certain, unix seconds."""


class _MovedError(Exception):
    """A file was joined with others after it had been listed."""


def read_log(location: AnyLocation, faults: Faults, *, every_list: bool = False) -> tuple[SourceTable, list[Dropped]]:
    """The events of a log, or of several, in the order in which they happened.

    Args:
        location: the log's folder, or a pattern.
        faults: takes what is wrong: no log there, a damaged file.
        every_list: also what was shown to known users who then did nothing, which says how likely people look at a
            position; no list is learnt from it.

    Returns:
        Rows with user_id, item_id, type, query, timestamp (unix seconds), page and position, which are empty or null
        where they are not known; and what was left out.
    """
    logs = _logs(location)
    if not logs:
        faults.add(location, "missing", f"no log of events; {HINT}")
        return SourceTable(location, pl.DataFrame(), pl.Series(dtype=pl.Boolean)), []
    events = _all(logs, layout.EVENTS, EVENT_COLUMNS, location, faults)
    shown = _all(logs, layout.IMPRESSIONS, SHOWN_COLUMNS, location, faults)
    rows = events.height
    events, erased = _without_erased(logs, events, "received_at")
    shown, _ = _without_erased(logs, shown, "shown_at")
    copies = ~first_of_each(events)
    dropped = []
    if copies.any():
        examples = events.filter(copies)["event_id"]
        dropped.append(
            Dropped.of(
                "events with an id that came before", "the first is kept", int(copies.sum()), rows, examples.head(100)
            )
        )
    table = as_events(events.filter(~copies), shown, every_list)
    # No dirt, of which there could be too much.
    notes = (f"{erased:,} events of users who were erased are left out",) if erased else ()
    cells = Cells(table, table.columns, row_number, place=": event {}", notes=notes)
    return as_table(location, cells, "parquet"), dropped


@dataclass(frozen=True)
class LogRows:
    """Rows of a log as they were written: copies of events are among them, erased users are not.

    Attributes:
        events: EVENT_COLUMNS and KNOWN_AT (Float64): when a row was received, or when the hour began in which it was
            written, whichever is later. Whoever has read all hours up to then has seen it.
        shown: SHOWN_COLUMNS, artifact, LOT_COLUMNS and KNOWN_AT, alike: a row per page.
        log: the folder.
    """

    events: pl.DataFrame
    shown: pl.DataFrame
    log: AnyLocation


def read_rows(location: AnyLocation, start: float, end: float) -> LogRows:
    """The rows that were written in the hours that lie between two moments, in the order of writing.

    Args:
        location: the log's folder, or a pattern for several.
        start, end: unix seconds; an hour that both begins and ends between them is read, and one that ``start`` cuts.

    Raises:
        DataError: no log is there, or one of its files cannot be read.
    """
    faults = Faults()
    logs = _logs(location)
    if not logs:
        faults.add(location, "missing", f"no log of events; {HINT}")
    hours = range_of_hours(start, end)
    shown_columns = {**SHOWN_COLUMNS, "artifact": pl.String(), **LOT_COLUMNS}
    events = _all(logs, layout.EVENTS, EVENT_COLUMNS, location, faults, hours)
    shown = _all(logs, layout.IMPRESSIONS, shown_columns, location, faults, hours)
    faults.raise_any()
    events, _ = _without_erased(logs, events, "received_at")
    shown, _ = _without_erased(logs, shown, "shown_at")
    return LogRows(events, shown, location)


def range_of_hours(start: float, end: float) -> tuple[float, float]:
    """First and last moment at which an hour may begin that ``read_rows`` reads."""
    return start // layout.SECONDS_PER_HOUR * layout.SECONDS_PER_HOUR, end - layout.SECONDS_PER_HOUR


def files_between(location: AnyLocation, start: float, end: float) -> dict[str, int]:
    """The files that ``read_rows`` reads: name below the log -> bytes. No file is ever written again under its name,
    but to take somebody out of it."""
    first, last = range_of_hours(start, end)
    return {
        f"{log.name}/{file.relative_to(log).as_posix()}": file.stat().st_size
        for log in _logs(location)
        for kind in layout.KINDS
        for hour in layout.hour_folders(log, kind)
        if first <= layout.hour_start(hour) <= last
        for file in layout.counting_files(hour, _replaced_by)
    }


def first_hour(location: AnyLocation) -> float | None:
    """When the first hour of a log begins, unix seconds; None where there is none."""
    starts = [
        layout.hour_start(hours[0])
        for log in _logs(location)
        for kind in layout.KINDS
        if (hours := layout.hour_folders(log, kind))
    ]
    return min(starts, default=None)


def without_erased(location: AnyLocation, rows: pl.DataFrame, came_at: str) -> pl.DataFrame:
    """Rows of users that were not erased from the log since: it may be asked of rows that were read from it before.

    Args:
        location: of the log.
        rows: with user_id.
        came_at: their column that says when each came, unix seconds.
    """
    return _without_erased(_logs(location), rows, came_at)[0]


def _logs(location: AnyLocation) -> list[Path]:
    """The folders of logs."""
    if not isinstance(location, Path):
        return []
    found = sorted(location.parent.glob(location.name)) if has_wildcard(location) else [location]
    return [one for one in found if any((one / kind).is_dir() for kind in layout.KINDS)]


def _all(
    logs: Sequence[Path],
    kind: str,
    columns: dict[str, pl.DataType],
    location: AnyLocation,
    faults: Faults,
    hours: tuple[float, float] | None = None,
) -> pl.DataFrame:
    """The rows of all hours; with ``hours`` of those that begin between two moments, and KNOWN_AT."""
    if hours is None:
        frames = [
            frame
            for log in logs
            for hour in layout.hour_folders(log, kind)
            for frame in _hour(hour, columns, location, faults)
        ]
        return pl.concat([pl.DataFrame(schema=columns), *frames])
    came_at = pl.col("received_at" if kind == layout.EVENTS else "shown_at")
    frames = [
        frame.with_columns(pl.max_horizontal(came_at, pl.lit(start, dtype=pl.Float64)).alias(KNOWN_AT))
        for log in logs
        for hour in layout.hour_folders(log, kind)
        if hours[0] <= (start := layout.hour_start(hour)) <= hours[1]
        for frame in _hour(hour, columns, location, faults)
    ]
    return pl.concat([pl.DataFrame(schema=columns | {KNOWN_AT: pl.Float64()}), *frames])


def _hour(hour: Path, columns: dict[str, pl.DataType], location: AnyLocation, faults: Faults) -> list[pl.DataFrame]:
    """The files of an hour that count; listed again where one went away meanwhile."""
    for _ in range(ATTEMPTS):
        frames: list[pl.DataFrame] = []
        try:
            for file in layout.counting_files(hour, _replaced_by):
                try:
                    frames.append(_file(file.read_bytes(), columns))
                except pl.exceptions.PolarsError as error:
                    reason = str(error).splitlines()[0]
                    message = (
                        f"cannot be read as a file of the log ({reason}); put it back, or take it out of the folder"
                    )
                    faults.add(location, "format", message, file=file)
        except FileNotFoundError:
            continue
        return frames
    faults.add(location, "access", "its files go away while they are read; read a copy of the log", file=hour)
    return []


def _file(content: bytes, columns: dict[str, pl.DataType]) -> pl.DataFrame:
    """The rows of a file; what only later versions write is null where an earlier one wrote it."""
    absent = LOT_COLUMNS.keys() - pl.read_parquet_schema(content).keys() if LOT_COLUMNS.keys() & columns.keys() else ()
    read = pl.read_parquet(content, columns=[name for name in columns if name not in absent])
    return read.select(
        (pl.lit(None) if name in absent else pl.col(name)).cast(dtype).alias(name) for name, dtype in columns.items()
    )


def _replaced_by(file: Path) -> Collection[str]:
    try:
        told = pl.read_parquet_metadata(file).get(layout.REPLACES)
    except pl.exceptions.PolarsError:
        return ()  # whoever reads its rows says that it is damaged
    return json.loads(told) if told else ()


def erased_digests(location: AnyLocation) -> dict[str, float]:
    """By the hash of the id when a user was erased for the last time, in unix seconds."""
    return _erased(_logs(location))


def _erased(logs: Sequence[Path]) -> dict[str, float]:
    erased: dict[str, float] = {}
    for log in logs:
        for digest, at in layout.tombstones(log).items():
            erased[digest] = max(at, erased.get(digest, 0.0))
    return erased


def _without_erased(logs: Sequence[Path], rows: pl.DataFrame, came_at: str) -> tuple[pl.DataFrame, int]:
    """The rows that came after their user was erased, if that happened; and how many the others are."""
    erased = _erased(logs)
    if not erased:
        return rows, 0
    users = rows["user_id"].unique().to_list()
    gone = {user: erased[digest] for user in users if (digest := layout.digest_of(user)) in erased}
    if not gone:
        return rows, 0
    erased_at = rows["user_id"].replace_strict(gone, default=None, return_dtype=pl.Float64)
    stays = (erased_at.is_null() | (rows[came_at] > erased_at)).fill_null(False)
    return rows.filter(stays), rows.height - int(stays.sum())


def as_events(events: pl.DataFrame, shown: pl.DataFrame, every_list: bool, also: Sequence[str] = ()) -> pl.DataFrame:
    """Events on items with the query of their page, and what was shown on the pages that led to any.

    Args:
        events: EVENT_COLUMNS, each event once.
        shown: SHOWN_COLUMNS.
        every_list: also what was shown to known users who then did nothing.
        also: further columns of both that are kept.

    Returns:
        Rows in order of time: user_id, item_id, type, query, timestamp (whole unix seconds), page, position, and those.
    """
    on_items = events.filter(pl.col("item_id") != "").join(
        page_queries(events, shown),
        on="page",
        how="left",
        suffix="_of_page",
        maintain_order="left",
    )
    unliked = (pl.col("type") == "rating") & ~(pl.col("value") >= LIKED_RATING).fill_null(False)
    own_query = pl.when(pl.col("query") != "").then(pl.col("query"))
    on_items = on_items.select(
        "user_id",
        "item_id",
        pl.when(unliked).then(pl.lit("skip")).otherwise(pl.col("type")).alias("type"),
        own_query.otherwise(pl.col("query_of_page").fill_null("")).alias("query"),
        "timestamp",
        "page",
        "position",
        *also,
    )
    rows = pl.concat([_beside(on_items, shown, every_list, also), on_items]).sort("timestamp", maintain_order=True)
    return rows.with_columns(pl.col("timestamp").floor().cast(pl.Int64))


def page_queries(events: pl.DataFrame, shown: pl.DataFrame) -> pl.DataFrame:
    """page, query: what each page was searched for, by whoever says it first: the page, or a search that led to it."""
    searches = events.filter(pl.col("type") == "search").select("page", "query")
    queries = pl.concat([shown.select("page", "query"), searches])
    said = queries.filter((pl.col("page") != "") & (pl.col("query") != ""))
    return said.unique("page", keep="first", maintain_order=True)


def first_of_each(events: pl.DataFrame) -> pl.Series:
    """[events] False for copies: events whose user and id came before."""
    return (events["event_id"] == "") | events.select(pl.struct("user_id", "event_id").is_first_distinct()).to_series()


def _beside(on_items: pl.DataFrame, shown: pl.DataFrame, every_list: bool, also: Sequence[str]) -> pl.DataFrame:
    """A row for each item of each list that somebody acted on; with ``every_list`` also of those of known users."""
    # A list belongs to whoever acted on it: it may have been made before they said who they are.
    users = on_items.filter(pl.col("page") != "").select("page", "user_id").unique(maintain_order=True)
    if every_list:
        others = shown.filter(pl.col("user_id") != "").join(users, on="page", how="anti", maintain_order="left")
        users = pl.concat([users, others.select("page", "user_id").unique(maintain_order=True)])
    lists = shown.drop("user_id").join(users, on="page", how="inner", maintain_order="left")
    rows = lists.explode("item_ids", "positions").select(
        "user_id",
        pl.col("item_ids").alias("item_id"),
        pl.lit(SHOWN_TYPE).alias("type"),
        "query",
        pl.col("shown_at").alias("timestamp"),
        "page",
        pl.col("positions").alias("position"),
        *also,
    )
    return rows.unique(["user_id", "page", "item_id", "position"], keep="first", maintain_order=True)
