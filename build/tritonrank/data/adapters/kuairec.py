"""KuaiRec, short videos of Kuaishou: big_matrix.csv and kuairec_caption_category.csv.

https://kuairec.com/
A video that was watched for at least twice its length is a positive, as in the publishers' own paper.
"""

from pathlib import Path

import polars as pl

from tritonrank.data import columns
from tritonrank.data.adapters.reading import as_tables, find_all, usable
from tritonrank.data.dropped import require_tolerable
from tritonrank.data.faults import Faults
from tritonrank.data.loading import Tables
from tritonrank.data.source import check_rows, read_source
from tritonrank.recipe import PublicData

EXPECTED = "big_matrix.csv and kuairec_caption_category.csv (KuaiRec 2.0)"
WHERE = "Get KuaiRec.zip from https://kuairec.com/"
WATCHED_TWICE = 2.0
FIELDS = (
    "caption", "manual_cover_text", "topic_tag", "first_level_category_name", "second_level_category_name",
    "third_level_category_name",
)  # fmt: skip
UNKNOWN = "UNKNOWN"
TOLERATED = 0.2


def files(folder: Path) -> list[Path]:
    """Both tables."""
    return find_all(folder, "big_matrix.csv", "kuairec_caption_category.csv")


def template(files: list[Path]) -> str:
    """An item template for a start."""
    return "{caption} {topic_tag} {first_level_category_name}"


def load(settings: PublicData, files: list[Path]) -> Tables:
    """Read both tables; item fields are the video's texts, under the names they have; UNKNOWN is no text.

    Rows without a time, of which the files have some, are left out and counted.

    Raises:
        DataError: columns are missing, or too many rows have faults.
    """
    faults = Faults()
    videos = read_source(files[1], faults, {"video_id", *FIELDS})
    watched = read_source(files[0], faults, {"user_id", "video_id", "timestamp", "watch_ratio"})
    check_rows(videos, faults)
    check_rows(watched, faults)
    items = pl.DataFrame(
        [
            columns.identifiers(videos, "video_id", faults).alias("item_id"),
            *(columns.texts(videos, field, faults) for field in FIELDS),
        ]
    )
    ratio = columns.numbers(watched, "watch_ratio", faults)
    events = pl.DataFrame(
        [
            columns.identifiers(watched, "user_id", faults).alias("user_id"),
            columns.identifiers(watched, "video_id", faults).alias("item_id"),
            columns.timestamps(watched, "timestamp", faults).alias("timestamp"),
            (ratio >= (settings.positive_rating or WATCHED_TWICE)).cast(pl.Float32).alias("gain"),
        ]
    )
    faults.raise_of_tables()
    dropped = [
        *faults.dropped(videos.path, files[1].name, videos.frame.height),
        *faults.dropped(watched.path, files[0].name, watched.frame.height),
    ]
    require_tolerable(dropped, TOLERATED)
    texts = items.filter(usable(videos, faults)).with_columns(pl.col(FIELDS).replace(UNKNOWN, ""))
    tables = as_tables(texts, events.filter(usable(watched, faults)), files[1].name, faults)
    return Tables(tables.items, tables.events, (*dropped, *tables.dropped), tables.notes)
