"""Amazon's Shopping Queries (ESCI): queries with products judged Exact, Substitute, Complement or Irrelevant.

https://github.com/amazon-science/esci-data
There are no users and no times: each query is a user who asked once and was shown the judged products, and its rows are
one second apart. The gains are those of the publishers' own NDCG. A product id may stand for different texts in several
shops, so one shop is read: the American one where it is there.
"""

from pathlib import Path

import polars as pl

from tritonrank.data import columns
from tritonrank.data.adapters.reading import as_tables, find_all
from tritonrank.data.faults import Faults
from tritonrank.data.loading import Tables
from tritonrank.data.source import check_rows, read_source
from tritonrank.errors import DataError
from tritonrank.recipe import PublicData
from tritonrank.system.dates import FIRST_SECOND

EXPECTED = "shopping_queries_dataset_examples.parquet and shopping_queries_dataset_products.parquet"
WHERE = "Get them from https://github.com/amazon-science/esci-data"
FILES = ("shopping_queries_dataset_examples.parquet", "shopping_queries_dataset_products.parquet")
GAINS = {"E": 1.0, "S": 0.1, "C": 0.01, "I": 0.0}
FIELDS = ("product_title", "product_brand", "product_color", "product_bullet_point", "product_description")
LOCALE = "product_locale"


def files(folder: Path) -> list[Path]:
    """Both tables."""
    return find_all(folder, *FILES)


def template(files: list[Path]) -> str:
    """An item template for a start."""
    return "{product_title} {product_brand} {product_color}"


def load(settings: PublicData, files: list[Path]) -> Tables:
    """Read both tables; item fields are the product's texts, under the names they have.

    Raises:
        DataError: columns are missing, or a label is none of the four.
    """
    faults = Faults()
    examples = read_source(files[0], faults, {"query", "query_id", "product_id", LOCALE, "esci_label"})
    products = read_source(files[1], faults, {"product_id", LOCALE, *FIELDS})
    check_rows(examples, faults)
    check_rows(products, faults)
    labels = columns.texts(examples, "esci_label", faults)
    words = {word: gain for letter, gain in GAINS.items() for word in (letter, NAMES[letter])}
    gain = labels.replace_strict(words, default=None, return_dtype=pl.Float64)
    columns.report(examples, labels, gain.is_null(), "one of E, S, C and I", faults)
    events = pl.DataFrame(
        [
            columns.identifiers(examples, "query_id", faults).alias("user_id"),
            columns.identifiers(examples, "product_id", faults).alias("item_id"),
            columns.texts(examples, "query", faults).str.strip_chars().alias("query"),
            columns.texts(examples, LOCALE, faults),
            gain.alias("gain"),
        ]
    )
    items = pl.DataFrame(
        [
            columns.identifiers(products, "product_id", faults).alias("item_id"),
            columns.texts(products, LOCALE, faults),
            *(columns.texts(products, field, faults) for field in FIELDS),
        ]
    )
    faults.raise_any()
    shops = events[LOCALE].unique().sort()
    shop = "us" if "us" in shops else shops[0]
    notes = [f"{files[0].name}: of the shops {', '.join(shops)} {shop} is read"] if len(shops) > 1 else []
    events = events.filter(pl.col(LOCALE) == shop).with_columns(
        (FIRST_SECOND + pl.int_range(pl.len())).alias("timestamp"),
        pl.col("user_id").alias("impression"),
        pl.when(pl.col("gain") >= (settings.positive_rating or 0)).then(pl.col("gain")).otherwise(0.0).alias("gain"),
    )
    if events.is_empty():
        raise DataError(f"{files[0]}: has no rows of the shop {shop!r}")
    items = items.filter(pl.col(LOCALE) == shop).drop(LOCALE)
    return as_tables(items, events, files[1].name, faults, notes)


NAMES = {"E": "Exact", "S": "Substitute", "C": "Complement", "I": "Irrelevant"}
"""Copies of the data set spell the labels out."""
