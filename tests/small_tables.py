"""Two products and what two people thought of them, as the files of a shop: what tests of reading write."""

from pathlib import Path

import polars as pl
from tritonrank.recipe import TablesData

ITEMS = pl.DataFrame({"sku": [10, 11], "name": ["Lamp", None], "watts": [5.5, 7.0]})
EVENTS = pl.DataFrame(
    {
        "who": ["a", "b"],
        "sku": [11, 10],
        "at": [1_000_000_100, 1_000_000_200],
        "search": [" lamp ", None],
        "stars": [1.0, 3.0],
    }
)


def write_tables(folder: Path, suffix: str, items: pl.DataFrame = ITEMS, events: pl.DataFrame = EVENTS) -> TablesData:
    for name, frame in (("items", items), ("events", events)):
        path = folder / f"{name}.{suffix}"
        frame.write_csv(path) if suffix == "csv" else frame.write_parquet(path)
    return TablesData(
        source="tables",
        items=folder / f"items.{suffix}",
        events=folder / f"events.{suffix}",
        item_id="sku",
        text_fields=["name", "watts", "sku"],
        user_id="who",
        timestamp="at",
        query="search",
        label="stars",
        positive_label=3,
        tolerate=0,
    )
