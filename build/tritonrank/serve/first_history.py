"""Give a new store of the sample shop a past: what its generated users did before today.

Without it every user of the demo were a stranger. How other data come in, docs/stores.md says.
"""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tritonrank.artifacts import MANIFEST, read_manifest

if TYPE_CHECKING:
    from tritonrank_recommend.events import Event

SAMPLE = "sample"
DONE = "history.json"
"""Beside the store: of which dataset the past is in it."""
EVENTS_PER_BATCH = 5_000


def give_first_history(root: Path, store_file: Path) -> int:
    """Import the events of the sample data once, and say how many there were.

    A store that was given its past is left alone from then on: who was erased stays erased. A process that is killed
    while it imports does so again, and what is there already counts once.

    Args:
        root: ``artifacts/<recipe>``.
        store_file: the recipe's own SQLite store.

    Returns:
        Events that were imported now; 0 where the data are not generated, or were imported before.
    """
    dataset, done = root / "dataset", store_file.with_name(DONE)
    if done.is_file() or not (dataset / MANIFEST).is_file():
        return 0
    manifest = read_manifest(dataset)
    if manifest.settings.get("data", {}).get("source") != SAMPLE:
        return 0
    store_file.parent.mkdir(parents=True, exist_ok=True)
    count = asyncio.run(_import(dataset, store_file))
    draft = done.with_name(f"{DONE}.tmp")
    draft.write_text(f'{{"dataset": "{manifest.artifact}", "events": {count}}}\n', encoding="utf-8")
    draft.replace(done)
    return count


async def _import(dataset: Path, store_file: Path) -> int:
    from tritonrank_recommend.privacy import read_privacy
    from tritonrank_recommend.stores import open_store

    store, count, privacy = open_store(f"sqlite:{store_file}"), 0, read_privacy(os.environ)
    try:
        for batch in _batches(dataset):
            # Not into the training log: the recipe's own data hold them already.
            count += (await store.add_events([privacy.event(event) for event in batch], log=False)).accepted
    finally:
        await store.close()
    return count


def _batches(dataset: Path) -> "Iterator[list[Event]]":
    import polars as pl  # where nothing is imported, `up` starts without it

    table = pl.read_parquet(dataset / "events.parquet", glob=False)
    for part in table.iter_slices(EVENTS_PER_BATCH):
        yield [_event(row) for row in part.iter_rows(named=True)]


def _event(row: "dict[str, Any]") -> "Event":
    """What the generator calls liked is a purchase, so that the shop does not offer it again; the rest is a skip."""
    from tritonrank_recommend.events import Event

    return Event(
        event_id=f"sample:{row['user_id']}:{row['item_id']}:{row['timestamp']}",
        user_id=row["user_id"],
        type="purchase" if row["label"] else "skip",
        timestamp=float(row["timestamp"]),
        item_id=row["item_id"],
        query=row["query"],
    )
