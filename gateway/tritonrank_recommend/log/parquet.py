"""The tables of the log, and how they get onto the disk whole."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from tritonrank_recommend.events import Event, weight_of
from tritonrank_recommend.log.impression import Impression
from tritonrank_recommend.log.layout import (
    EVENTS,
    IMPRESSIONS,
    REPLACES,
    counting_files,
    digest_of,
    flush_folder,
    new_lot,
)

EVENT_SCHEMA = pa.schema(
    [
        ("event_id", pa.string()),
        ("user_id", pa.string()),
        ("item_id", pa.string()),
        ("type", pa.string()),
        ("query", pa.string()),
        ("timestamp", pa.float64()),
        ("value", pa.float64()),
        ("page", pa.string()),
        ("position", pa.int32()),
        ("received_at", pa.float64()),
        ("weight", pa.float32()),
    ]
)
IMPRESSION_SCHEMA = pa.schema(
    [
        ("page", pa.string()),
        ("user_id", pa.string()),
        ("query", pa.string()),
        ("shown_at", pa.float64()),
        ("artifact", pa.string()),
        ("item_ids", pa.list_(pa.string())),
        ("positions", pa.list_(pa.int32())),
        ("policy_positions", pa.list_(pa.int32())),
        ("move_up", pa.list_(pa.float32())),
        ("move_down", pa.list_(pa.float32())),
    ]
)
SCHEMAS = {EVENTS: EVENT_SCHEMA, IMPRESSIONS: IMPRESSION_SCHEMA}
CAME_AT = {EVENTS: "received_at", IMPRESSIONS: "shown_at"}
"""When a row came to be: what came before its user was erased goes."""
MOST_JOINS = 3
"""Of one hour while somebody reads it; there is one when it is over, and one for each hundred parts."""


def event_table(events: Sequence[Event], now: float) -> pa.Table:
    """[events] rows; ``now`` (unix seconds) stands for a time of receiving that nobody noted."""
    rows = [msgspec.structs.asdict(one) for one in events]
    for row, event in zip(rows, events, strict=True):
        row["weight"] = weight_of(event)
        row["received_at"] = event.received_at or now
    return _table(rows, EVENT_SCHEMA)


def impression_table(shown: Sequence[Impression]) -> pa.Table:
    """[impressions] rows."""
    return _table([msgspec.structs.asdict(one) for one in shown], IMPRESSION_SCHEMA)


def _table(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    return pa.Table.from_pydict({name: [row[name] for row in rows] for name in schema.names}, schema=schema)


def without_users(table: pa.Table, kind: str, erased: Mapping[str, float]) -> pa.Table:
    """The rows of users that were not erased after the row came.

    Args:
        table: of events or impressions.
        kind: which.
        erased: by the hash of the id when, see ``layout.tombstones``.
    """
    users = table["user_id"].unique().to_pylist()
    gone = {user: erased[digest] for user in users if user and (digest := digest_of(user)) in erased}
    if not gone:
        return table
    came_at = table[CAME_AT[kind]]
    kept = [
        user not in gone or at > gone[user]
        for user, at in zip(table["user_id"].to_pylist(), came_at.to_pylist(), strict=True)
    ]
    return table.filter(pa.array(kept, pa.bool_()))


def write_whole(file: Path, tables: Iterator[pa.Table], schema: pa.Schema, replaces: Sequence[str] = ()) -> int:
    """Write a file that is there whole or not at all, and on the disk when this returns; an old one is replaced.

    Returns:
        Rows. A file without rows is not written, and an old one removed.

    Raises:
        OSError: it cannot be written; nothing is left of it.
    """
    draft = file.with_name(f".{file.name}.{new_lot()}.tmp")  # two gateways may write the same file
    folder = file.parent
    is_new_folder = not folder.is_dir()
    folder.mkdir(parents=True, exist_ok=True)
    rows = 0
    told = {REPLACES: json.dumps(list(replaces))} if replaces else None
    try:
        with draft.open("wb") as opened:
            with _writer(opened, schema.with_metadata(told)) as writer:
                for table in tables:
                    rows += table.num_rows
                    if table.num_rows:
                        writer.write_table(table.replace_schema_metadata(told))
            opened.flush()
            os.fsync(opened.fileno())
        if rows:
            draft.replace(file)
        else:
            file.unlink(missing_ok=True)
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
    flush_folder(folder)
    if is_new_folder:
        for above in (folder.parent, folder.parent.parent):
            flush_folder(above)
    return rows


def replaced_by(file: Path) -> list[str]:
    """The names of the files that a joined file replaces."""
    footer = pq.read_metadata(file)
    told = (footer.metadata or {}).get(REPLACES.encode())
    return list(json.loads(told)) if told else []


def read_in_pieces(file: Path) -> Iterator[pa.Table]:
    """The rows of a file, some ten thousand at a time."""
    with pq.ParquetFile(file) as opened:
        for batch in opened.iter_batches(batch_size=50_000):
            yield pa.Table.from_batches([batch])


def read_whole(file: Path, columns: Sequence[str] | None = None, user_id: str = "") -> pa.Table:
    """The rows of a file; of one user where one is named."""
    filters = [("user_id", "=", user_id)] if user_id else None
    # The names of the folders are no columns.
    return pq.read_table(file, columns=columns, filters=filters, partitioning=None)


def read_hour(hour: Path, columns: Sequence[str] | None = None, user_id: str = "") -> list[pa.Table]:
    """The rows of an hour's files that count, of one user where one is named; they may be joined meanwhile."""
    for _ in range(MOST_JOINS):
        with suppress(FileNotFoundError):
            return [read_whole(file, columns, user_id) for file in counting_files(hour, replaced_by)]
    return [read_whole(file, columns, user_id) for file in counting_files(hour, replaced_by)]


def conformed(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Rows with the columns of today; a file of an earlier version lacks the later ones, which are null then."""
    for field in schema:
        if field.name not in table.column_names:
            table = table.append_column(field, pa.nulls(table.num_rows, field.type))
    return table.select(schema.names).cast(schema)


def _writer(opened: BinaryIO, schema: pa.Schema) -> pq.ParquetWriter:
    return pq.ParquetWriter(opened, schema, compression="zstd")
