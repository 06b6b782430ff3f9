"""The generated storefront as shops export it: with every kind of dirt that a first hour meets.

``products.csv`` is cut by semicolons, in cp1252, with decimal commas, HTML, line breaks within cells, cells of JSON,
products without a title and SKUs that come twice. ``events.csv.gz`` has times in milliseconds, event types, ids as
fractions (1017.0 is the product 1017), delisted products, events before a product existed and users who never buy.
The people and what they want are the storefront's (``sample.py``), so that there is something to learn.
"""

import csv
import gzip
import io
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from tritonrank.data import sample
from tritonrank.errors import StorageError
from tritonrank.recipe import SampleData

FIRST_SKU = 1_000
DELISTED = range(9_000, 9_020)
ITEMS, USERS = 240, 320
PRODUCTS, EVENTS = "products.csv", "events.csv.gz"


class Dirt(NamedTuple):
    """Shares of rows that are made dirty."""

    untitled: float = 0.02
    repeated: float = 0.03
    html: float = 0.2
    delisted: float = 0.03
    too_early: float = 0.02
    window_shoppers: float = 0.1
    """users who look and never buy"""


def write_dirty_shop(
    folder: Path, items: int = ITEMS, users: int = USERS, seed: int = 17, dirt: Dirt | None = None
) -> tuple[Path, Path]:
    """Write both tables; the same arguments write the same bytes.

    Returns:
        The files of products and of events.

    Raises:
        StorageError: one of them is there already.
    """
    products, events = folder / PRODUCTS, folder / EVENTS
    if there := [path.name for path in (products, events) if path.exists()]:
        raise StorageError(f"{folder} holds {', '.join(there)} already; name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    dirt = dirt or Dirt()
    shop = sample.generate(SampleData(items=items, users=users), seed)
    random = np.random.default_rng([seed, 2])
    skus = {item: FIRST_SKU + number for number, item in enumerate(shop.items["item_id"])}
    products.write_bytes(_table(_product_rows(shop.items, skus, dirt, random)).encode("cp1252"))
    text = _table(_event_rows(shop.events, skus, dirt, random))
    with events.open("wb") as opened, gzip.GzipFile("", "wb", fileobj=opened, mtime=0) as packed:
        packed.write(text.encode("utf-8"))
    return products, events


def _product_rows(
    items: pl.DataFrame, skus: dict[str, int], dirt: Dirt, random: np.random.Generator
) -> list[dict[str, Any]]:
    rows = []
    for item in items.iter_rows(named=True):
        text = f"{item['title']}: {item['attributes']}, für Zuhause & unterwegs, ab 5 €"
        is_html = random.random() < dirt.html
        rows.append(
            {
                "sku": skus[item["item_id"]],
                "product_title": "" if random.random() < dirt.untitled else item["title"],
                "brand": item["brand"],
                "category": item["category"],
                "properties": json.dumps({"features": item["attributes"].split(", ")}),
                "description": f"<p>{text.replace('&', '&amp;')}<br/>\n<b>Neu!</b></p>" if is_html else text,
                "price": item["price"].replace(".", ","),
                "image": f"https://img.shop.example/{skus[item['item_id']]}.jpg",
                "in_stock": random.choice(["true", "false"]),
                "online_since": f"2025-0{int(random.integers(1, 3))}-{int(random.integers(10, 28))}",
            }
        )
        if random.random() < dirt.repeated:
            rows.append(rows[-1] | {"in_stock": "false"})
    return rows


def _event_rows(
    events: pl.DataFrame, skus: dict[str, int], dirt: Dirt, random: np.random.Generator
) -> list[dict[str, Any]]:
    """A view of everything that was met; what was liked is put into the cart or bought a minute later."""
    users = events["user_id"].unique(maintain_order=True).to_list()
    watching = set(random.choice(users, size=round(dirt.window_shoppers * len(users)), replace=False).tolist())
    rows: list[tuple[int, str, float, str, str]] = []
    for event in events.iter_rows(named=True):
        second = event["timestamp"]
        sku = float(skus[event["item_id"]])
        if random.random() < dirt.delisted:
            sku = float(random.choice(DELISTED))
        if random.random() < dirt.too_early:
            second = int(datetime(2024, 12, 1, tzinfo=UTC).timestamp())
        rows.append((second, event["user_id"], sku, "view", event["query"]))
        if event["label"] and event["user_id"] not in watching:
            kind = str(random.choice(["add_to_cart", "purchase"], p=[0.3, 0.7]))
            rows.append((second + 60, event["user_id"], sku, kind, event["query"]))
    return [
        {
            "ts": second * 1000 + int(random.integers(0, 1000)),
            "customer_no": user,
            "product": sku,
            "event_type": kind,
            "search_term": query,
        }
        for second, user, sku, kind, query in sorted(rows, key=lambda row: row[0])
    ]


def _table(rows: list[dict[str, Any]]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), delimiter=";", lineterminator="\r\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()
