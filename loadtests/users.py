"""A store's worth of users: the dataset's own, and as many copies of them as are wanted, each with their past."""

from pathlib import Path

from loadtests.console import fail

DATASET_EVENTS = Path("dataset") / "events.parquet"


def visitors_of(artifacts: Path, users: int) -> int:
    """How many users stand for each one of the dataset, rounded up."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    path = artifacts / DATASET_EVENTS
    if not path.is_file():
        fail(f"{path}: no dataset, whose users the visitors are. Build one: tritonrank build RECIPE")
    known: int = pc.count_distinct(pq.read_table(path, columns=["user_id"])["user_id"]).as_py()
    return max(1, -(-users // known))


def write_events(artifacts: Path, visitors: int, out: Path, past: int = 0) -> Path:
    """Write the past of all users as a table that ``tritonrank import-events`` reads: views and purchases.

    Args:
        artifacts: with the dataset.
        visitors: users for each one of the dataset: user, user~1, user~2 ...
        out: the Parquet file.
        past: events of each user, the newest; 0: all.
    """
    import polars as pl
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    events = pl.read_parquet(artifacts / DATASET_EVENTS, glob=False)
    events = events.select("user_id", "item_id", "query", "timestamp", "label")
    if past:
        newest = events.sort("timestamp", maintain_order=True).group_by("user_id", maintain_order=True).tail(past)
        events = newest.select(events.columns)
    table = events.to_arrow(compat_level=pl.CompatLevel.oldest())
    kinds = pc.if_else(pc.greater(table["label"], 0), "click", "view")
    table = table.drop_columns(["label"]).append_column("type", kinds)
    names = table["user_id"].combine_chunks()
    nothing = pa.scalar("", type=names.type)
    with pq.ParquetWriter(out, table.schema) as writer:
        for copy in range(visitors):
            ending = pa.scalar(f"~{copy}" if copy else "", type=names.type)
            users = pc.binary_join_element_wise(names, ending, nothing)
            writer.write_table(table.set_column(0, table.schema.field(0), users))
    return out
