"""Which judged lists are in which set: the windows, and the segments that the recipe names.

A segment is an SQL condition on what is known of a list. Where a column is not known of a list (when a list of the
recipe's own dataset came to be), the condition does not hold.
"""

from collections.abc import Mapping
from pathlib import Path

import polars as pl

from tritonrank.artifacts import read_manifest
from tritonrank.errors import ArtifactError, RecipeError
from tritonrank.recipe.learning import FROZEN, NEWEST, OLD, WINDOWS

SETS_FILE = "sets.parquet"
"""Beside ``test.parquet``: columns set and example_id, a row for each list in each set."""
SECONDS_PER_HOUR, HOURS_PER_DAY = 3_600, 24


def list_columns(
    lists: pl.DataFrame, windows_of: Mapping[str, pl.Series], times: pl.DataFrame, items: pl.DataFrame, now: float
) -> pl.DataFrame:
    """What segments are told apart by: a row for each judged list.

    Args:
        lists: columns of ``EXAMPLE_SCHEMA``.
        windows_of: newest, frozen and old -> ids of lists.
        times: example_id and list_at (unix seconds) of the lists of the log, and impression.
        items: item_id, its text fields, and item_positives.
        now: the end of what was read, unix seconds.

    Returns:
        example_id, user_id, query; newest, frozen and old (Boolean); query_words, history_items; item_id of what was
        liked most, its item_positives in training and its fields as item_<name>; gain; hour (0 to 23, UTC), weekday (1
        is Monday), age_hours and on_page (whether it was chosen from a page that is known), null of old lists.
    """
    best = pl.col("labels").list.arg_max()
    moment = (pl.col("list_at") * 1_000).cast(pl.Int64).cast(pl.Datetime("ms"))
    fields = items.rename({name: f"item_{name}" for name in items.columns if name not in ("item_id", "item_positives")})
    return (
        lists.join(times, on="example_id", how="left", maintain_order="left")
        .select(
            "example_id",
            "user_id",
            "query",
            *(pl.col("example_id").is_in(windows_of[name].implode()).alias(name) for name in WINDOWS),
            pl.col("query")
            .str.split(" ")
            .list.eval(pl.element().filter(pl.element() != ""))
            .list.len()
            .alias("query_words"),
            pl.col("history").list.len().alias("history_items"),
            pl.col("candidates").list.get(best).alias("item_id"),
            pl.col("labels").list.max().alias("gain"),
            moment.dt.hour().alias("hour"),
            moment.dt.weekday().alias("weekday"),
            ((now - pl.col("list_at")) / SECONDS_PER_HOUR).alias("age_hours"),
            pl.when(pl.col("list_at").is_not_null()).then(pl.col("impression").is_not_null()).alias("on_page"),
        )
        .join(fields, on="item_id", how="left", maintain_order="left")
    )


def sets_of(columns: pl.DataFrame, segments: Mapping[str, str]) -> pl.DataFrame:
    """set and example_id: windows first, then segments as the recipe has them.

    Raises:
        RecipeError: a condition is no SQL, or names a column that there is not.
    """
    found = [
        columns.filter(pl.col(name)).select(pl.lit(name).alias("set"), "example_id") for name in (NEWEST, FROZEN, OLD)
    ]
    for name, condition in segments.items():
        try:
            chosen = columns.filter(pl.sql_expr(condition))
        except (pl.exceptions.PolarsError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise RecipeError(
                f"learn.segments.{name}: {condition!r} is no condition on judged lists ({reason}); expected SQL such "
                f"as history_items < 3, with the columns {', '.join(columns.columns)}"
            ) from None
        found.append(chosen.select(pl.lit(name).alias("set"), "example_id"))
    return pl.concat(found)


def judged_sets(dataset: Path) -> dict[str, list[str]]:
    """Of a night's dataset the judged sets: name (newest, frozen, old, the segments of the recipe) -> ids of test
    examples, in the order of ``test.parquet``; sets without lists are not there.

    Raises:
        ArtifactError: the folder is no dataset of a night.
    """
    read_manifest(dataset)
    try:
        rows = pl.read_parquet(dataset / SETS_FILE, glob=False)
    except FileNotFoundError:
        raise ArtifactError(
            f"{dataset}: no {SETS_FILE} here, so that this is no dataset of a night; run tritonrank learn RECIPE --once"
        ) from None
    sets: dict[str, list[str]] = {}
    for name, example_id in rows.iter_rows():
        sets.setdefault(name, []).append(example_id)
    return sets
