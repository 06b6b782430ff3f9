"""Yoochoose (RecSys Challenge 2015): clicks and purchases of sessions, without headers and without texts.

https://www.kaggle.com/datasets/chadgostopp/recsys-challenge-2015
A session is a user. A click has the weight 1 and a purchase 3. All that is known of an item in words is its category
when it was clicked last and its price when it was bought last.
"""

from pathlib import Path

import polars as pl

from tritonrank.data import columns
from tritonrank.data.adapters.reading import as_tables, find_all, read_plain
from tritonrank.data.faults import Faults
from tritonrank.data.loading import Tables
from tritonrank.data.source import SourceTable
from tritonrank.recipe import PublicData

EXPECTED = "yoochoose-clicks.dat and yoochoose-buys.dat"
WHERE = "Get them from https://www.kaggle.com/datasets/chadgostopp/recsys-challenge-2015"
CLICKS = ("session", "timestamp", "item_id", "category")
BUYS = ("session", "timestamp", "item_id", "price", "quantity")
CLICK, PURCHASE = 1.0, 3.0
OFFER = "S"
UNKNOWN = "0"


def files(folder: Path) -> list[Path]:
    """Both logs."""
    return find_all(folder, "yoochoose-clicks.dat", "yoochoose-buys.dat")


def template(files: list[Path]) -> str:
    """An item template for a start."""
    return "category {category} {price}"


def load(settings: PublicData, files: list[Path]) -> Tables:
    """Read both logs; item fields are category and price.

    Raises:
        DataError: lines have faults.
    """
    faults = Faults()
    clicks, buys = read_plain(files[0], ",", CLICKS, faults), read_plain(files[1], ",", BUYS, faults)
    clicked, bought = _events(clicks, CLICK, faults), _events(buys, PURCHASE, faults)
    faults.raise_any()
    categories = clicked.select("item_id", clicks.frame["category"]).filter(pl.col("category") != UNKNOWN)
    prices = bought.select("item_id", buys.frame["price"]).filter(pl.col("price") != UNKNOWN)
    events = pl.concat([clicked, bought])
    items = (
        events.select("item_id")
        .unique(keep="first", maintain_order=True)
        .join(categories.unique("item_id", keep="last"), on="item_id", how="left", maintain_order="left")
        .join(prices.unique("item_id", keep="last"), on="item_id", how="left", maintain_order="left")
        .with_columns(pl.col("category").replace(OFFER, "special offer"))
    )
    least = settings.positive_rating or 0
    events = events.with_columns(pl.when(pl.col("gain") >= least).then("gain").otherwise(0.0).alias("gain"))
    return as_tables(items, events, files[0].name, faults)


def _events(table: SourceTable, weight: float, faults: Faults) -> pl.DataFrame:
    return pl.DataFrame(
        [
            columns.identifiers(table, "session", faults).alias("user_id"),
            columns.identifiers(table, "item_id", faults),
            columns.timestamps(table, "timestamp", faults),
        ]
    ).with_columns(pl.lit(weight).alias("gain"))
