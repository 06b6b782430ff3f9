"""What ``prepare`` wrote, as every later stage reads it: the items, and the lists that are learnt and judged."""

from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from tritonrank.artifacts import read_manifest
from tritonrank.data.splits import TEST, TRAIN, VALIDATION


@dataclass(frozen=True)
class Example:
    """One list to rank."""

    example_id: str
    """``user_id:n``, where n is the number of the positive event among the user's events in order of time"""
    user_id: str
    query: str
    """empty when there was none"""
    history: list[str]
    """ids of items liked before, newest last, at most 200; never the positive itself"""
    candidates: list[str]
    """item ids in an order that says nothing"""
    labels: list[float]
    """per candidate its gain: above 0 where it is positive (1 unless events have weights), else 0"""
    weights: list[float] = field(default_factory=list)
    """per candidate what it counts beside its gain, in training alone; empty: 1 each"""


@dataclass(frozen=True)
class Dataset:
    """What ``prepare`` wrote, read back."""

    items: dict[str, dict[str, str]]
    """item id -> field name -> text, in the order of the items table"""
    training: list[Example]
    validation: list[Example]
    test: list[Example]
    training_events: pl.DataFrame
    """the events that may be learnt from (columns of Tables.events), by user and time: what baselines may count"""

    @classmethod
    def read(cls, folder: Path) -> "Dataset":
        """Read the artifact of ``prepare``.

        Raises:
            ArtifactError: there is no artifact in the folder.
        """
        read_manifest(folder)
        fields = pl.read_parquet(folder / "items.parquet", glob=False).rows_by_key("item_id", named=True, unique=True)
        events = pl.read_parquet(folder / "events.parquet", glob=False)
        return cls(
            items=fields,
            training=_read_examples(folder, TRAIN),
            validation=_read_examples(folder, VALIDATION),
            test=_read_examples(folder, TEST),
            training_events=events.filter(pl.col("split") == TRAIN).drop("split"),
        )


def _read_examples(folder: Path, split: str) -> list[Example]:
    return [Example(**row) for row in pl.read_parquet(folder / f"{split}.parquet", glob=False).iter_rows(named=True)]
