"""What filters, rules and the blend ask of items: a price as a number, genres one by one.

A dataset's items hold texts, as the ranker reads them. Here the texts that are numbers or lists become such again, by
what is known of the source; ``data.fields`` of a recipe adds columns of the items table that the ranker never sees.
"""

import polars as pl

from tritonrank.data import columns
from tritonrank.data.faults import Faults
from tritonrank.data.loading import hash_of
from tritonrank.data.parts import files_of, is_there
from tritonrank.data.source import read_source
from tritonrank.recipe import DataSettings, PublicData, SampleData, TablesData
from tritonrank.system.database_url import DatabaseUrl

NUMBERS: dict[str, tuple[str, ...]] = {"sample": ("price",), "movielens": ("year",)}
LISTS: dict[str, dict[str, str]] = {
    "sample": {"attributes": ", "},
    "movielens": {"genres": " ", "tags": ", "},
}
"""By source the fields that hold several things, and what stands between them."""


def item_fields(settings: DataSettings, items: pl.DataFrame) -> pl.DataFrame:
    """The items with typed fields; null where an item does not have one.

    Args:
        settings: the recipe's ``data`` section.
        items: of the dataset: item_id and texts.

    Returns:
        item_id, the fields of the dataset, and those of ``data.fields``, which hide a text field of the same name.

    Raises:
        DataError: the items table lacks a column that ``data.fields`` names, or cannot be read.
    """
    match settings:
        case SampleData() | PublicData():
            return _typed(items, settings.source)
        case TablesData():
            return _with_columns(settings, _typed(items, settings.source))


def field_fingerprints(settings: DataSettings) -> dict[str, str]:
    """What ``data.fields`` is read from, by content; empty where it is not asked for.

    Raises:
        DataError: a database does not answer.
    """
    from tritonrank.data.formats.databases import fingerprint

    if not isinstance(settings, TablesData) or not settings.field_columns:
        return {}
    if isinstance(settings.items, DatabaseUrl):
        return {"items": fingerprint(settings.items, _needed(settings))}
    return {f"items/{name}": hash_of(file) for name, file in files_of(settings.items).items() if is_there(file)}


def _typed(items: pl.DataFrame, source: str) -> pl.DataFrame:
    numbers = [name for name in NUMBERS.get(source, ()) if name in items.columns]
    lists = {name: between for name, between in LISTS.get(source, {}).items() if name in items.columns}
    texts = [name for name in items.columns[1:] if name not in lists and name not in numbers]
    return items.with_columns(
        *(pl.col(name).replace("", None) for name in texts),
        *(pl.col(name).cast(pl.Float64, strict=False) for name in numbers),
        *(_parts(name, between) for name, between in lists.items()),
    )


def _parts(name: str, between: str) -> pl.Expr:
    cells = pl.col(name)
    return pl.when(cells != "").then(cells.str.split(between)).otherwise(None)


def _needed(settings: TablesData) -> set[str]:
    return {settings.items_key, *settings.field_columns.values()}


def _with_columns(settings: TablesData, items: pl.DataFrame) -> pl.DataFrame:
    if not settings.field_columns:
        return items
    faults = Faults()
    table = read_source(settings.items, faults, _needed(settings))
    ids = columns.identifiers(table, settings.items_key, faults, "data.item_id")
    values = [
        columns.plain_values(table, column, faults, "data.fields").alias(name)
        for name, column in settings.field_columns.items()
    ]
    # Broken rows were counted when the dataset was made; here they only lack their fields.
    faults.raise_of_tables()
    read = pl.DataFrame([ids.alias("item_id"), *values]).unique("item_id", keep="last")
    kept = items.drop([name for name in settings.field_columns if name in items.columns])
    return kept.join(read, on="item_id", how="left", maintain_order="left")
