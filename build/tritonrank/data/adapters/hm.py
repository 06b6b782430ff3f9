"""H&M's purchases: articles.csv and transactions_train.csv, as Kaggle gives them out. Every purchase is a positive.

https://www.kaggle.com/competitions/h-and-m-personalized-fashion-recommendations/data
"""

from pathlib import Path

import polars as pl

from tritonrank.data import columns
from tritonrank.data.adapters.reading import as_tables, find_all
from tritonrank.data.faults import Faults
from tritonrank.data.loading import Tables
from tritonrank.data.source import check_rows, read_source
from tritonrank.recipe import PublicData

EXPECTED = "articles.csv and transactions_train.csv"
WHERE = "Get them from https://www.kaggle.com/competitions/h-and-m-personalized-fashion-recommendations/data"
FIELDS = (
    "prod_name", "product_type_name", "product_group_name", "graphical_appearance_name", "colour_group_name",
    "department_name", "index_name", "section_name", "garment_group_name", "detail_desc",
)  # fmt: skip


def files(folder: Path) -> list[Path]:
    """Both tables."""
    return find_all(folder, "articles.csv", "transactions_train.csv")


def template(files: list[Path]) -> str:
    """An item template for a start."""
    return "{prod_name} {product_type_name} {colour_group_name} {detail_desc}"


def load(settings: PublicData, files: list[Path]) -> Tables:
    """Read both tables; item fields are the article's texts, under the names they have.

    Raises:
        DataError: the files have faults.
    """
    faults = Faults()
    articles = read_source(files[0], faults, {"article_id", *FIELDS})
    bought = read_source(files[1], faults, {"t_dat", "customer_id", "article_id"})
    check_rows(articles, faults)
    check_rows(bought, faults)
    items = pl.DataFrame(
        [
            columns.identifiers(articles, "article_id", faults).alias("item_id"),
            *(columns.texts(articles, field, faults) for field in FIELDS),
        ]
    )
    events = pl.DataFrame(
        [
            columns.identifiers(bought, "customer_id", faults).alias("user_id"),
            columns.identifiers(bought, "article_id", faults).alias("item_id"),
            columns.timestamps(bought, "t_dat", faults).alias("timestamp"),
        ]
    )
    return as_tables(items, events.with_columns(pl.lit(1.0).alias("gain")), files[0].name, faults)
