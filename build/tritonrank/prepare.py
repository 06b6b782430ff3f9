"""Stage ``prepare``: two tables become listwise examples.

An example is what a ranker meets in production: a context (the query and the items the user liked before) and
candidates, one of which the user went on to like. Judged examples are the users' last positives against many unseen
items; training examples are earlier positives against a few. Who is judged is fixed here, by seed, before anything
is trained, and negatives are never items the user met at any time.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from tritonrank.artifacts import Manifest, read_manifest, sha256_file, write_artifact
from tritonrank.data import Tables, load_tables, source_files
from tritonrank.data.choices import choose_positives
from tritonrank.data.lists import ListMaker
from tritonrank.data.splits import LIKED, TEST, TRAIN, VALIDATION, mark_splits
from tritonrank.errors import DataError
from tritonrank.recipe import Recipe


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
    labels: list[int]
    """per candidate 1 or 0"""


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


def prepare(recipe: Recipe, folder: Path) -> Manifest:
    """Write items, events and examples as an artifact.

    The files: items.parquet and events.parquet (the source's tables; events by user and time, with the column split:
    train, validation, test, or "" for events nobody may use), and train.parquet, validation.parquet, test.parquet
    with the columns of ``Example``.

    Raises:
        DataError: the source has faults, the template names a field the items do not have, nobody can be judged or
            nothing can be learnt, or the catalogue is too small for the negatives asked for.
    """
    settings = prepare_settings(recipe)
    with write_artifact(folder, "prepare", settings, parents={}) as draft:
        tables = load_tables(recipe.data, recipe.seed, recipe.text.template_fields)
        _check_template(recipe, tables)
        events = mark_splits(tables.events, recipe.examples)
        chosen, skipped = choose_positives(events, recipe.examples, recipe.seed)
        lists = ListMaker(tables.items["item_id"], events, recipe.examples, recipe.seed)

        tables.items.write_parquet(draft.folder / "items.parquet")
        events.select(*tables.events.columns, "split").write_parquet(draft.folder / "events.parquet")
        for split, positives in chosen.items():
            lists.make(split, positives).write_parquet(draft.folder / f"{split}.parquet")
        draft.metrics |= {
            "items": tables.items.height,
            "users": events["user_id"].n_unique(),
            "events": events.height,
            "positive_events": events.filter(LIKED).height,
            "training_events": events.filter(pl.col("split") == TRAIN).height,
            "examples": {split: positives.height for split, positives in chosen.items()},
            "skipped_users": skipped,
            "left_out": tables.left_out,
        }
    return read_manifest(folder)


def prepare_settings(recipe: Recipe) -> dict[str, Any]:
    """What the dataset depends on, JSON-able: the settings and the content (sha256) of the source files.

    Raises:
        DataError: a source file is missing; the loader's message says what was expected.
    """
    files = list(source_files(recipe.data))
    if not all(file.is_file() for file in files):
        load_tables(
            recipe.data, recipe.seed, recipe.text.template_fields
        )  # raises with everything that is wrong, not only the first missing file
    return {
        "data": recipe.data.model_dump(mode="json"),
        "template_fields": sorted(set(recipe.text.template_fields)),
        "examples": recipe.examples.model_dump(mode="json"),
        "seed": recipe.seed,
        "sources": {str(file): sha256_file(file) for file in files},
    }


def _check_template(recipe: Recipe, tables: Tables) -> None:
    available = tables.items.columns[1:]
    if unknown := [name for name in dict.fromkeys(recipe.text.template_fields) if name not in available]:
        raise DataError(
            f"text.item_template uses {', '.join('{' + name + '}' for name in unknown)}, "
            f"which the items do not have; available: {', '.join(available)}"
        )


def _read_examples(folder: Path, split: str) -> list[Example]:
    return [Example(**row) for row in pl.read_parquet(folder / f"{split}.parquet", glob=False).iter_rows(named=True)]
