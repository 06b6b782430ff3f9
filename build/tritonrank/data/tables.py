"""The user's own tables, Parquet or CSV, in one file or many, under whatever column names they have.

Timestamps are dates, or numbers that can only be unix seconds or dates; what could be anything else is refused rather
than guessed. An event without a label is a positive, because most logs hold clicks or purchases only.
"""

from collections.abc import Sequence

import polars as pl

from tritonrank.data import columns
from tritonrank.data.dropped import EXAMPLES_SHOWN, Dropped
from tritonrank.data.faults import Faults
from tritonrank.data.labels import gains
from tritonrank.data.loading import Tables
from tritonrank.data.source import SourceTable, check_rows, read_source
from tritonrank.errors import DataError
from tritonrank.recipe import TablesData
from tritonrank.system.database_url import Location

UNKNOWN_SHARE = 0.2
"""Of the events, that may be of items which are not in the catalogue (any more); more means that ids do not match."""


def wanted(settings: TablesData) -> dict[str, tuple[Location, set[str]]]:
    """Per table where it is and which of its columns are read."""
    optional = {name for name in (settings.query, settings.label_column) if name}
    return {
        "items": (settings.items, {settings.items_key, *settings.text_fields}),
        "events": (settings.events, {settings.user_id, settings.events_key, settings.timestamp, *optional}),
    }


def load(settings: TablesData, template_fields: Sequence[str] = ()) -> Tables:
    """Read both tables.

    Events of items that the catalogue does not have are left out and counted, up to UNKNOWN_SHARE; so are rows of the
    items table that repeat an earlier one word for word.

    Raises:
        DataError: all faults of both tables: missing or mistyped columns, ids that are empty, repeated or unknown,
            values out of range, malformed rows, broken UTF-8, fields of the template that are no text fields.
    """
    fields = [field for field in dict.fromkeys(settings.text_fields) if field != settings.items_key]
    if "item_id" in fields:
        raise DataError(
            f"{settings.items}: the text field item_id would hide the id column {settings.items_key!r}; "
            "rename it in the file and in data.text_fields"
        )
    faults = Faults()
    _check_template(settings, template_fields, faults)
    items, events = (read_source(location, faults, needed) for location, needed in wanted(settings).values())
    check_rows(items, faults)
    check_rows(events, faults)

    item_ids = columns.identifiers(items, settings.items_key, faults, "data.item_id")
    field_texts = [columns.texts(items, field, faults, "data.text_fields").alias(field) for field in fields]
    repeated = _repeated(items, item_ids, field_texts)
    columns.check_unique(items, item_ids.set(repeated, None), faults)

    user_ids = columns.identifiers(events, settings.user_id, faults, "data.user_id")
    event_items = columns.identifiers(events, settings.events_key, faults, "data.item_id")
    is_known = columns.known(events, event_items, item_ids, items)
    if (~is_known).sum() > UNKNOWN_SHARE * len(is_known):
        columns.check_known(events, event_items, item_ids, items, faults)
    seconds = columns.timestamps(events, settings.timestamp, faults, "data.timestamp")
    nothing = pl.repeat("", len(user_ids), dtype=pl.String, eager=True)
    queries = (
        columns.texts(events, settings.query, faults, "data.query").str.strip_chars() if settings.query else nothing
    )
    gain = gains(events, settings, faults)
    faults.raise_any()

    # The id column may serve as a text field too, under the name it has in the file.
    own_name = [item_ids] if settings.items_key in settings.text_fields and settings.items_key != "item_id" else []
    unknown = event_items.filter(~is_known)
    found = {
        f"events of items that {settings.items.name} does not have": (unknown, len(is_known)),
        f"repeated rows of {settings.items.name}": (item_ids.filter(repeated), len(repeated)),
    }
    dropped = [
        Dropped.of(kind, "left out", len(ids), rows, ids.unique(maintain_order=True).head(EXAMPLES_SHOWN))
        for kind, (ids, rows) in found.items()
        if len(ids)
    ]
    return Tables(
        items=pl.DataFrame([item_ids.alias("item_id"), *own_name, *field_texts]).filter(~repeated),
        events=pl.DataFrame(
            [
                user_ids.alias("user_id"),
                event_items.alias("item_id"),
                queries.alias("query"),
                seconds.alias("timestamp"),
                (gain > 0).cast(pl.Int8).alias("label"),
                gain,
            ]
        ).filter(is_known),
        dropped=tuple(dropped),
    )


def _check_template(settings: TablesData, template_fields: Sequence[str], faults: Faults) -> None:
    unknown = [name for name in dict.fromkeys(template_fields) if name not in settings.text_fields]
    if unknown:
        named = ", ".join(f"{{{name}}}" for name in unknown)
        message = f"text.item_template uses {named}, which data.text_fields does not list"
        faults.add(settings.items, "template", f"{message}; it lists: {', '.join(settings.text_fields)}")


def _repeated(items: SourceTable, item_ids: pl.Series, field_texts: Sequence[pl.Series]) -> pl.Series:
    """[rows] True where a whole and sound row says what an earlier one said already."""
    rows = pl.DataFrame([item_ids.alias("item_id"), *field_texts])
    first = pl.Series(rows.select(pl.struct(pl.all()).is_first_distinct()).to_series())
    return ~first & items.sound & item_ids.is_not_null() & (item_ids != "")
