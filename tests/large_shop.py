"""By hand: how long ``prepare`` takes with many events, and how much memory.

    python tests/large_shop.py FOLDER --events 10000000 --users 200000 --items 50000 --format parquet
    python tests/large_shop.py FOLDER --events 10000000 --users 200000 --items 50000 --format csv

The shop is generated into FOLDER (once for each size and format): Zipf-like popularity, users of unequal activity,
views, carts and purchases in order of time. Then ``prepare`` runs in a process of its own; the last line is JSON: wall
seconds, CPU seconds, the largest resident memory in bytes.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl

RECIPE = """\
name: large
data:
  source: tables
  items: {items}
  events: {events}
  item_id: sku
  user_id: customer
  timestamp: at
  query: search
  text_fields: [title, brand, price]
  label: {{column: event_type, view: 0, add_to_cart: 1, purchase: 3}}
text:
  item_template: "{{title}} {{brand}} {{price}}"
"""
WORDS = (
    "lamp",
    "tent",
    "shoe",
    "mug",
    "chair",
    "red",
    "oak",
    "steel",
    "light",
    "small",
    "wide",
    "soft",
    "alpine",
    "city",
)
FIRST_SECOND, SECONDS = 1_700_000_000, 20_000_000
EVENTS_AT_ONCE = 2_000_000


def write_shop(folder: Path, events: int, users: int, items: int, suffix: str) -> None:
    """items and events as ``suffix`` files; ids are text, times ISO dates in CSV and date-times in Parquet."""
    random = np.random.default_rng(7)
    words = [[WORDS[word] for word in row] for row in random.integers(0, len(WORDS), (items, 4))]
    catalogue = pl.DataFrame(
        {
            "sku": [f"SKU-{number:06d}" for number in range(items)],
            "title": [f"{' '.join(row)} {number}" for number, row in enumerate(words)],
            "brand": [f"brand {number % 97}" for number in range(items)],
            "price": (random.gamma(2, 20, items)).round(2),
        }
    )
    _write(catalogue, folder / f"items.{suffix}")
    popularity = 1 / np.arange(1, items + 1) ** 0.8
    activity = random.gamma(0.7, 1, users) + 0.05
    parts = []
    for start in range(0, events, EVENTS_AT_ONCE):
        count = min(EVENTS_AT_ONCE, events - start)
        seconds = (
            FIRST_SECOND + np.sort(random.integers(0, SECONDS * count // events, count)) + SECONDS * start // events
        )
        who = np.searchsorted(np.cumsum(activity) / activity.sum(), random.random(count))
        what = np.searchsorted(np.cumsum(popularity) / popularity.sum(), random.random(count))
        kind = np.searchsorted([0.75, 0.9], random.random(count))
        frame = pl.DataFrame({"who": who, "what": what, "kind": kind, "second": seconds, "asks": random.random(count)})
        parts.append(
            frame.select(
                pl.format("customer-{}", "who").alias("customer"),
                pl.format("SKU-{}", pl.col("what").cast(pl.String).str.zfill(6)).alias("sku"),
                pl.col("kind").replace_strict({0: "view", 1: "add_to_cart", 2: "purchase"}).alias("event_type"),
                pl.from_epoch("second").alias("at"),
                pl.when(pl.col("asks") < 0.3)
                .then(pl.format("{} {}", pl.lit("buy"), pl.col("what") % 500))
                .otherwise(pl.lit(""))
                .alias("search"),
            )
        )
    _write(pl.concat(parts), folder / f"events.{suffix}")


def _write(frame: pl.DataFrame, path: Path) -> None:
    if path.suffix == ".csv":
        frame.write_csv(path, datetime_format="%Y-%m-%dT%H:%M:%SZ")
    else:
        frame.write_parquet(path)


def measure(recipe: Path, artifacts: Path) -> dict[str, float]:
    """One ``prepare`` from the start: wall and CPU seconds, and bytes of memory."""
    command = [sys.executable, "-m", "tritonrank", "prepare", str(recipe), "--artifacts", str(artifacts), "--force"]
    started = time.monotonic()
    process = subprocess.Popen(command)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"prepare ended with status {status}")
    return {
        "seconds": round(time.monotonic() - started, 1),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        "peak_bytes": used.ru_maxrss * 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--events", type=int, default=10_000_000)
    parser.add_argument("--users", type=int, default=200_000)
    parser.add_argument("--items", type=int, default=50_000)
    parser.add_argument("--format", choices=("parquet", "csv"), default="parquet")
    asked = parser.parse_args()
    folder = asked.folder / f"{asked.events}-{asked.users}-{asked.items}"
    folder.mkdir(parents=True, exist_ok=True)
    files = {name: folder / f"{name}.{asked.format}" for name in ("items", "events")}
    if not all(file.is_file() for file in files.values()):
        write_shop(folder, asked.events, asked.users, asked.items, asked.format)
    recipe = folder / f"{asked.format}.yaml"
    recipe.write_text(RECIPE.format(**{name: file.absolute() for name, file in files.items()}), encoding="utf-8")
    print(json.dumps(vars(asked) | {"folder": str(folder)} | measure(recipe, folder / "artifacts")))


if __name__ == "__main__":
    main()
