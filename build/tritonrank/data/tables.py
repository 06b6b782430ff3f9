"""The user's own tables, in files or databases, under whatever column names they have.

Timestamps are dates, or numbers that can only be unix seconds or dates; what could be anything else is refused rather
than guessed. An event without a label is a positive, because most logs hold clicks or purchases only.
"""

from collections.abc import Iterator, Sequence

import polars as pl

from tritonrank.data import columns, dirt
from tritonrank.data.catalogue_items import with_catalogue
from tritonrank.data.dropped import Dropped, require_tolerable
from tritonrank.data.event_log import read_log
from tritonrank.data.faults import Faults
from tritonrank.data.labels import gains
from tritonrank.data.loading import Tables
from tritonrank.data.source import SourceTable, check_rows, read_source
from tritonrank.errors import DataError
from tritonrank.recipe import EventsData, TablesData
from tritonrank.system.database_url import AnyLocation
from tritonrank.system.dates import latest_second


def wanted(settings: TablesData) -> dict[str, tuple[AnyLocation, set[str]]]:
    """Per table where it is and which of its columns are read."""
    shown = settings.impressions
    more = (shown.id, shown.position) if shown else ()
    optional = {name for name in (settings.query, settings.label_column, *more) if name}
    since = {settings.available_from} if settings.available_from else set()
    item_columns = {settings.items_key, *settings.text_columns.values(), *since}
    return {
        "items": (with_catalogue(settings.items, settings.items_key, item_columns), item_columns),
        "events": (settings.events, {settings.user_id, settings.events_key, settings.timestamp, *optional}),
    }


def load(settings: TablesData, template_fields: Sequence[str] = ()) -> Tables:
    """Read both tables.

    Rows that cannot be used are left out and counted, each kind up to ``data.tolerate``: those with cells that are no
    values of their column, broken ones, and what ``dirt`` finds.

    Raises:
        DataError: all faults of both tables: missing or mistyped columns, event types without a weight, fields of the
            template that are no text fields; or the kinds of dirt of which there is too much.
    """
    faults = Faults()
    check_template(settings, template_fields, faults)
    (catalogue_at, item_columns), (log_at, event_columns) = wanted(settings).values()
    items = read_source(catalogue_at, faults, item_columns)
    if isinstance(settings, EventsData):
        events, of_log = read_log(log_at, faults, every_list=settings.weighs_positions)
    else:
        events, of_log = read_source(log_at, faults, event_columns), []
    check_rows(items, faults)
    check_rows(events, faults)

    catalogue = items_of(items, settings, faults)
    log = events_of(events, settings, faults)
    raise_faults(faults, settings)

    dropped = [
        *of_log,
        *faults.dropped(items.path, settings.items.name, items.frame.height),
        *faults.dropped(events.path, settings.events.name, events.frame.height),
    ]
    catalogue, repeated = dirt.without_repeats(catalogue.filter(usable(items, faults)), settings.items.name)
    log, strays = dirt.without_strays(
        log.filter(usable(events, faults)), catalogue, settings.items.name, latest_second()
    )
    dropped += [*repeated, *strays]
    require_tolerable(dropped, settings.tolerate)
    notes = tuple(dict.fromkeys([*items.notes, *events.notes]))
    return Tables(catalogue.drop(dirt.AVAILABLE_FROM, strict=False), log, tuple(dropped), notes)


def load_items(
    settings: TablesData, template_fields: Sequence[str] = ()
) -> tuple[pl.DataFrame, list[Dropped], tuple[str, ...]]:
    """The items table alone, as ``load`` reads it: item_id and text fields, what was left out, what was guessed.

    Raises:
        DataError: its faults.
    """
    faults = Faults()
    check_template(settings, template_fields, faults)
    location, item_columns = wanted(settings)["items"]
    items = read_source(location, faults, item_columns)
    check_rows(items, faults)
    catalogue = items_of(items, settings, faults)
    raise_faults(faults, settings)
    dropped = faults.dropped(items.path, settings.items.name, items.frame.height)
    catalogue, repeated = dirt.without_repeats(catalogue.filter(usable(items, faults)), settings.items.name)
    return catalogue.drop(dirt.AVAILABLE_FROM, strict=False), [*dropped, *repeated], tuple(items.notes)


def raise_faults(faults: Faults, settings: TablesData) -> None:
    """Raise what nobody can do without; where no dirt is tolerated, all there is, by line and cell.

    Raises:
        DataError: there are such faults.
    """
    if settings.tolerate:
        faults.raise_of_tables()
    else:
        faults.raise_any()


def items_of(items: SourceTable, settings: TablesData, faults: Faults) -> pl.DataFrame:
    """item_id, the text fields, and the time from which an item existed where there is one."""
    item_ids = columns.identifiers(items, settings.items_key, faults, "data.item_id")
    # The id column may serve as a text field too, and comes first then.
    fields = {name: column for name, column in settings.text_columns.items() if name != "item_id"}
    of_id = [item_ids.alias(name) for name, column in fields.items() if column == settings.items_key]
    field_texts = [
        columns.texts(items, column, faults, "data.text_fields").alias(name)
        for name, column in fields.items()
        if column != settings.items_key
    ]
    since = settings.available_from
    available = [columns.timestamps(items, since, faults, "data.available_from")] if since else []
    return pl.DataFrame(
        [
            item_ids.alias("item_id"),
            *of_id,
            *field_texts,
            *(seconds.alias(dirt.AVAILABLE_FROM) for seconds in available),
        ]
    )


def events_of(events: SourceTable, settings: TablesData, faults: Faults) -> pl.DataFrame:
    """The columns of ``Tables.events``."""
    user_ids = columns.identifiers(events, settings.user_id, faults, "data.user_id")
    item_ids = columns.identifiers(events, settings.events_key, faults, "data.item_id")
    seconds = columns.timestamps(events, settings.timestamp, faults, "data.timestamp")
    nothing = pl.repeat("", len(user_ids), dtype=pl.String, eager=True)
    queries = (
        columns.texts(events, settings.query, faults, "data.query").str.strip_chars() if settings.query else nothing
    )
    gain = gains(events, settings, faults)
    return pl.DataFrame(
        [
            user_ids.alias("user_id"),
            item_ids.alias("item_id"),
            queries.alias("query"),
            seconds.alias("timestamp"),
            (gain > 0).cast(pl.Int8).alias("label"),
            gain,
            *_impressions(events, settings, faults),
        ]
    )


def _impressions(events: SourceTable, settings: TablesData, faults: Faults) -> Iterator[pl.Series]:
    """impression and shown_at, where the recipe names them; null where an event has none."""
    shown = settings.impressions
    if shown is None:
        return
    ids = columns.texts(events, shown.id, faults, "data.impressions.id").str.strip_chars()
    yield ids.set(ids == "", None).alias("impression")
    if shown.position is not None:
        positions = columns.numbers_or_none(events, shown.position, faults, "data.impressions.position")
        yield positions.floor().cast(pl.Int64).alias("shown_at")


def usable(table: SourceTable, faults: Faults) -> pl.Series:
    """[rows] True where a row is whole and each of its cells is a value."""
    return table.sound & ~faults.unusable(table.path, table.frame.height)


def check_template(settings: TablesData, template_fields: Sequence[str], faults: Faults) -> None:
    """Report fields of the template that are no text fields.

    Raises:
        DataError: a text field has the name of the id column and is another one.
    """
    if settings.text_columns.get("item_id", settings.items_key) != settings.items_key:
        raise DataError(
            f"{settings.items}: the text field item_id would hide the id column {settings.items_key!r}; "
            "call it otherwise: data.text_fields: {NAME: item_id}"
        )
    unknown = [name for name in dict.fromkeys(template_fields) if name not in settings.text_columns]
    if unknown:
        named = ", ".join(f"{{{name}}}" for name in unknown)
        message = f"text.item_template uses {named}, which data.text_fields does not list"
        faults.add(settings.items, "template", f"{message}; it lists: {', '.join(settings.text_columns)}")
