"""The dataset of a recipe, made on a Spark cluster (docs/data.md says what is done where)."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from tritonrank.artifacts import Draft
from tritonrank.data import dirt, tables
from tritonrank.data.choices import users_skipped, wanted_of
from tritonrank.data.dropped import Dropped, Loss, require_tolerable
from tritonrank.data.faults import Faults
from tritonrank.data.impressions import shown_and_clicked
from tritonrank.data.lists import negatives_key, require_unseen
from tritonrank.data.loading import hash_of, load_tables
from tritonrank.data.prepare import (
    ROWS_PER_GROUP,
    describe,
    dropped_without_text,
    left_out,
    other_losses,
    with_text,
    write_rest,
)
from tritonrank.data.source import check_rows, parts_of, read_source
from tritonrank.data.spark.files import ORDER, read_events, units_of
from tritonrank.data.spark.frames import Schema, as_batches, collected, map_frames, sql_schema
from tritonrank.data.spark.users import (
    CHUNK,
    KEPT,
    MARKS,
    PLACED,
    TOLD,
    Cut,
    Told,
    lister,
    marker,
    of_fate,
    placer,
    tell,
    writer,
)
from tritonrank.data.splits import TRAIN
from tritonrank.errors import DataError
from tritonrank.recipe import EventsData, Recipe, TablesData
from tritonrank.system.database_url import DatabaseUrl, FileLocation
from tritonrank.system.dates import latest_second

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

ROWS_PER_PARTITION = 500_000
"""Of events, about: what a Python worker holds at a time, a few times over."""
COUNTS: Schema = {"item_id": pl.String(), "count": pl.Int64()}
SHOWN: Schema = {"item_id": pl.String(), "shown_at": pl.Int64(), "shown": pl.Int64(), "clicks": pl.Int64()}


@dataclass(frozen=True)
class _Source:
    """The two tables: items here, events on the cluster."""

    items: pl.DataFrame
    """without the time from which an item existed"""
    catalogue: pl.DataFrame
    """with it"""
    events: "DataFrame"
    """columns of ``Tables.events``, and ORDER"""
    schema: dict[str, pl.DataType]
    """of events without ORDER"""
    rows: int
    """about how many events there are, at the most"""
    usable: int
    """rows of which ``losses`` were lost"""
    losses: list[Loss] | None
    """None: dirt is out already, copies too"""
    dropped: list[Dropped]
    notes: tuple[str, ...]


def prepare_on_spark(recipe: Recipe, draft: Draft, spark: "SparkSession") -> None:
    """Write what ``data.prepare.prepare`` writes.

    Raises:
        DataError: as ``make_dataset``.
    """
    source = _load(recipe, spark)
    catalogue = with_text(recipe, source.items)
    columns = {**source.schema, **ORDER}
    marks = {**columns, **MARKS}
    mark = marker(list(source.schema), catalogue.absent, recipe.examples, has_copies=source.losses is not None)
    partitions = max(spark.sparkContext.defaultParallelism, -(-source.rows // ROWS_PER_PARTITION))
    # Kept on the executors' disks, because the limits of the users' ranges are looked for in it first.
    events = source.events.persist()
    marked = map_frames(events.repartitionByRange(partitions, "user_id"), mark, columns, marks).persist()
    counted = [Told.read(text) for text in collected(map_frames(marked, tell, marks, TOLD), TOLD)["told"]]
    events.unpersist()
    told = sum(counted, Told(None, 0, 0, 0, []))
    dropped = list(source.dropped)
    if source.losses is not None:
        dropped += dirt.strays_of([*source.losses, told.loss()], source.catalogue, source.usable)
        require_tolerable(dropped, recipe.data.tolerate if isinstance(recipe.data, TablesData) else 1.0)
    lost = left_out(recipe, catalogue, told.tally.events if told.tally else 0, told.lost_events, told.lost_users)
    dropped += dropped_without_text(lost)
    require_tolerable(dropped, getattr(recipe.data, "tolerate", 1.0))
    if told.tally is None:
        raise DataError(f"{recipe.name}: no event is left; see what was dropped with: tritonrank check RECIPE")

    kept = marked.where(f"fate = {KEPT}")
    queries = sorted(kept.where("query != ''").select("query").distinct().toArrow().column(0).to_pylist())
    skipped = users_skipped(told.tally, recipe.examples)
    examples = _examples(recipe, catalogue.items["item_id"], marked, marks)
    dropped += other_losses(recipe, catalogue.items, told.tally)
    metrics = describe(recipe, catalogue, queries, told.tally, skipped, examples, lost, dropped, source.notes)
    _write_events(marked, marks, list(source.schema), draft.folder / "events.parquet")
    marked.unpersist()
    write_rest(draft, catalogue.items, examples, metrics, dropped)


def hashes_on_spark(spark: "SparkSession", files: Sequence[FileLocation]) -> list[str]:
    """The sha256 of each file, read on the executors."""
    return spark.sparkContext.parallelize(files, max(1, len(files))).map(hash_of).collect() if files else []


def _load(recipe: Recipe, spark: "SparkSession") -> _Source:
    """The tables. Events in files are read by the executors; whatever else they are in, this machine reads."""
    data = recipe.data
    if not isinstance(data, TablesData) or isinstance(data, EventsData) or isinstance(data.events, DatabaseUrl):
        read = load_tables(data, recipe.seed, recipe.text.template_fields)
        schema: dict[str, pl.DataType] = dict(read.events.schema)
        events = _sent(spark, read.events)
        return _Source(
            read.items, read.items, events, schema, read.events.height, 0, None, list(read.dropped), read.notes
        )
    faults = Faults()
    tables.check_template(data, recipe.text.template_fields, faults)
    (catalogue_at, item_columns), (log_at, event_columns) = tables.wanted(data).values()
    items = read_source(catalogue_at, faults, item_columns)
    check_rows(items, faults)
    catalogue = tables.items_of(items, data, faults)
    catalogue, repeated = dirt.without_repeats(catalogue.filter(tables.usable(items, faults)), data.items.name)
    assert not isinstance(log_at, DatabaseUrl)
    units = units_of(parts_of(log_at, faults))
    if not units:
        faults.raise_any()
    known = catalogue.select("item_id", *(name for name in (dirt.AVAILABLE_FROM,) if name in catalogue.columns))
    read_on = read_events(spark, data, units, event_columns, known, faults, latest_second())
    notes = tuple(dict.fromkeys([*items.notes, *read_on.notes]))
    return _Source(
        catalogue.drop(dirt.AVAILABLE_FROM, strict=False),
        catalogue,
        read_on.table,
        read_on.schema,
        read_on.rows,
        read_on.usable,
        read_on.losses,
        [*faults.dropped(items.path, data.items.name, items.frame.height), *read_on.dropped, *repeated],
        notes,
    )


def _sent(spark: "SparkSession", events: pl.DataFrame) -> "DataFrame":
    """Events of this machine on the cluster."""
    import pyarrow as pa

    numbered = events.with_columns(pl.lit(0, pl.Int32).alias("source_unit"), pl.int_range(pl.len()).alias("source_row"))
    schema: dict[str, pl.DataType] = dict(numbered.schema)
    return spark.createDataFrame(pa.Table.from_batches(as_batches(numbered, schema)), schema=sql_schema(schema))


def _examples(recipe: Recipe, item_ids: pl.Series, marked: "DataFrame", marks: Schema) -> dict[str, pl.DataFrame]:
    """By split, as ``ListMaker.make`` makes them, in their order."""
    settings, wanted = recipe.examples, wanted_of(recipe.examples)
    placed = map_frames(marked, placer(list(wanted), recipe.seed), marks, PLACED).persist()
    cuts = {split: _cut(placed.where(f"split = '{split}'"), count) for split, count in wanted.items()}
    placed.unpersist()
    learnt = marked.where(f"fate = {KEPT} and label = 1 and split = '{TRAIN}'")
    popularity = collected(learnt.groupBy("item_id").count(), COUNTS)
    clicks = None
    if recipe.data.weighs_positions:
        some = map_frames(marked, lambda frame: [shown_and_clicked(of_fate(frame, KEPT))], marks, SHOWN)
        summed = some.groupBy("item_id", "shown_at").sum("shown", "clicks").toDF(*SHOWN)
        clicks = collected(summed, SHOWN)
    negatives: dict[str, int] = {split: getattr(settings, negatives_key(split)) for split in wanted}
    make = lister(item_ids, popularity, settings, recipe.seed, clicks, cuts, negatives)
    found: dict[str, list[pl.DataFrame]] = {split: [] for split in wanted}
    most_met = dict.fromkeys(wanted, 0)
    for chunk in map_frames(marked, make, marks, CHUNK).toLocalIterator(prefetchPartitions=True):
        most_met[chunk["split"]] = max(most_met[chunk["split"]], chunk["most_met"])
        if chunk["rows"]:
            found[chunk["split"]].append(pl.read_parquet(BytesIO(chunk["rows"])))
    for split, most in most_met.items():
        require_unseen(negatives_key(split), negatives[split], len(item_ids), most)
    order = ["by_round", "by_lottery", "by_user_id"]
    return {split: pl.concat(parts).sort(order).drop(order) for split, parts in found.items()}


def _cut(placed: "DataFrame", wanted: int) -> Cut:
    """The place of the last of the first ``wanted`` positives."""
    left = wanted
    for round_number, count in placed.groupBy("round").count().orderBy("round").collect():
        if left <= count:
            last = placed.where(f"round = {round_number}").orderBy("lottery", "user_id").offset(left - 1).head(1)[0]
            return round_number, last["lottery"], last["user_id"]
        left -= count
    return 1 << 62, 0, ""


def _write_events(marked: "DataFrame", marks: Schema, columns: list[str], file: Path) -> None:
    """The events as one file, partition after partition: users come in their order, and no more than one partition is
    in memory here."""
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=".spark-") as scratch:
        files: list[Path] = []
        for chunk in map_frames(marked, writer(columns), marks, CHUNK).toLocalIterator(prefetchPartitions=True):
            files.append(Path(scratch) / f"{len(files):06}.parquet")
            files[-1].write_bytes(chunk["rows"])
        pl.scan_parquet(files, glob=False).sink_parquet(file, row_group_size=ROWS_PER_GROUP)
