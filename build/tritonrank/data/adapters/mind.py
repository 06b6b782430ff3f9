"""MIND, Microsoft's news: behaviors.tsv (what each user was shown, and clicked) and news.tsv, without headers.

https://learn.microsoft.com/azure/open-datasets/dataset-microsoft-news
What was shown together is one impression; where the items stood is not known (the publishers shuffled them). The clicks
of a user before the first list have an order but no times: they stand one second apart before it.
"""

from pathlib import Path

import polars as pl

from tritonrank.data import columns
from tritonrank.data.adapters.reading import as_tables, find_one, read_plain, usable
from tritonrank.data.faults import Faults
from tritonrank.data.loading import Tables
from tritonrank.errors import DataError
from tritonrank.recipe import PublicData

EXPECTED = "behaviors.tsv and news.tsv, or folders with them such as MINDsmall_train and MINDsmall_dev"
WHERE = "Get MINDsmall_train.zip from https://msnews.github.io/"
BEHAVIORS = ("impression_id", "user_id", "time", "history", "impressions")
NEWS = ("item_id", "category", "subcategory", "title", "abstract", "url", "title_entities", "abstract_entities")
FIELDS = ("title", "abstract", "category", "subcategory")
TIME_FORM = "%m/%d/%Y %I:%M:%S %p"


def files(folder: Path) -> list[Path]:
    """All behaviors.tsv, each followed by its news.tsv."""
    if not folder.is_dir():
        return []
    places = [folder, *sorted(one for one in folder.iterdir() if one.is_dir())]
    pairs = [(find_one(place, "behaviors.tsv"), find_one(place, "news.tsv")) for place in places]
    return [file for pair in pairs if all(pair) for file in pair if file]


def template(files: list[Path]) -> str:
    """An item template for a start."""
    return "{title} {category} {subcategory}"


def load(settings: PublicData, files: list[Path]) -> Tables:
    """Read all parts; item fields are title, abstract, category and subcategory.

    Raises:
        DataError: lines have faults, or the lists say nothing of clicks, as those of the test set do.
    """
    faults = Faults()
    parts, catalogues = [], []
    for behaviors, news in zip(files[::2], files[1::2], strict=True):
        read = read_plain(news, "\t", NEWS, faults, may_lack=2)
        ids = columns.identifiers(read, "item_id", faults)
        catalogues.append(read.frame.select(ids, *FIELDS))
        parts.append(_lists(behaviors, faults))
    items = pl.concat(catalogues).unique("item_id", keep="first", maintain_order=True)
    lists = pl.concat(parts)
    return as_tables(items, pl.concat([_before(lists), _seen(lists)]), "news.tsv", faults)


def _lists(file: Path, faults: Faults) -> pl.DataFrame:
    """What users were shown: user_id, history, impressions, timestamp, and impression, unique over all parts."""
    table = read_plain(file, "\t", BEHAVIORS, faults)
    users = columns.identifiers(table, "user_id", faults)
    seconds = table.frame["time"].str.to_datetime(TIME_FORM, strict=False, time_unit="us").dt.epoch("s")
    columns.report(table, table.frame["time"], seconds.is_null(), "a time such as 11/13/2019 8:36:57 AM", faults)
    number = (f"{file.parent.name}-" + pl.col("impression_id")).alias("impression")
    lists = table.frame.select(users, pl.col("history"), pl.col("impressions"), seconds.alias("timestamp"), number)
    lists = lists.filter(usable(table, faults))
    silent = lists.filter(~pl.col("impressions").str.contains(r"^(\S+-[01] ?)+$"))
    if not silent.is_empty():
        example = silent["impressions"][0].split(" ")[0]
        raise DataError(f"{file}: the impression {example!r} says nothing of a click; expected such as N1-1 N2-0")
    return lists


def _seen(lists: pl.DataFrame) -> pl.DataFrame:
    """An event for each item of each list."""
    shown = (
        lists.select("user_id", "timestamp", "impression", pl.col("impressions").str.split(" ").alias("shown"))
        .explode("shown")
        .filter(pl.col("shown") != "")
    )
    return shown.select(
        "user_id",
        pl.col("shown").str.slice(0, pl.col("shown").str.len_chars() - 2).alias("item_id"),
        "timestamp",
        pl.col("shown").str.ends_with("-1").cast(pl.Float64).alias("gain"),
        "impression",
    )


def _before(lists: pl.DataFrame) -> pl.DataFrame:
    """An event for each click that a user's first list tells of."""
    first = lists.sort("timestamp", maintain_order=True).unique("user_id", keep="first", maintain_order=True)
    return (
        first.with_columns(pl.col("history").str.split(" ").list.reverse().alias("item_id"))
        .with_columns(pl.int_ranges(1, pl.col("item_id").list.len() + 1).alias("back"))
        .explode("item_id", "back")
        .filter(pl.col("item_id") != "")
        .select(
            "user_id",
            "item_id",
            pl.col("timestamp") - pl.col("back"),
            pl.lit(1.0).alias("gain"),
            pl.lit(None, dtype=pl.String).alias("impression"),
        )
        .reverse()
    )
