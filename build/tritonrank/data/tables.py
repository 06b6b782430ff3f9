"""The user's own tables, Parquet or CSV, under whatever column names they have.

Timestamps are unix seconds, ISO dates or a date type; milliseconds are refused rather than guessed. An event without
a label is a positive, because most logs hold clicks or purchases only.
"""

import polars as pl

from tritonrank.data import Tables, columns
from tritonrank.data.faults import Faults
from tritonrank.data.source import check_rows, read_source
from tritonrank.errors import DataError
from tritonrank.recipe import TablesData


def load(settings: TablesData) -> Tables:
    """Read both tables.

    Raises:
        DataError: all faults of both files: missing or mistyped columns, ids that are empty, repeated or unknown,
            values out of range, malformed rows, broken UTF-8.
    """
    fields = [field for field in dict.fromkeys(settings.text_fields) if field != settings.item_id]
    if "item_id" in fields:
        raise DataError(
            f"{settings.items}: the text field item_id would hide the id column {settings.item_id!r}; "
            "rename it in the file and in data.text_fields"
        )
    faults = Faults()
    items, events = read_source(settings.items, faults), read_source(settings.events, faults)
    check_rows(items, faults)
    check_rows(events, faults)

    item_ids = columns.identifiers(items, settings.item_id, faults)
    columns.check_unique(items, item_ids, faults)
    field_texts = [columns.texts(items, field, faults).alias(field) for field in fields]

    user_ids = columns.identifiers(events, settings.user_id, faults)
    event_items = columns.identifiers(events, settings.item_id, faults)
    columns.check_known(events, event_items, item_ids, items, faults)
    seconds = columns.timestamps(events, settings.timestamp, faults)
    nothing = pl.repeat("", len(user_ids), dtype=pl.String, eager=True)
    queries = columns.texts(events, settings.query, faults).str.strip_chars() if settings.query else nothing
    everything = pl.repeat(True, len(user_ids), dtype=pl.Boolean, eager=True)
    liked = columns.numbers(events, settings.label, faults) >= settings.positive_label if settings.label else everything
    faults.raise_any()

    # The id column may serve as a text field too, under the name it has in the file.
    own_name = [item_ids] if settings.item_id in settings.text_fields and settings.item_id != "item_id" else []
    return Tables(
        items=pl.DataFrame([item_ids.alias("item_id"), *own_name, *field_texts]),
        events=pl.DataFrame(
            [
                user_ids.alias("user_id"),
                event_items.alias("item_id"),
                queries.alias("query"),
                seconds.alias("timestamp"),
                liked.cast(pl.Int8).alias("label"),
            ]
        ),
    )
