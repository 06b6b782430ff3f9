"""Stage ``prepare``: two tables become lists to rank, for training and for judging (data/prepare.py).

An engine makes the dataset, and is no part of what the dataset depends on: all engines make the same.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tritonrank.artifacts import Draft
from tritonrank.artifacts.stage import Stage
from tritonrank.artifacts.workspace import Workspace
from tritonrank.data.images.files import image_files
from tritonrank.data.loading import hashes_of, load_tables, source_fingerprints
from tritonrank.errors import RecipeError
from tritonrank.rankers.text_budgets import prompt_settings, tokenizer_identity
from tritonrank.recipe import Recipe
from tritonrank.system.database_url import FileLocation

REVISION = 3
TOOLS = ("numpy", "polars", "tokenizers", "transformers")

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


def _prepare_here(recipe: Recipe, draft: Draft) -> None:
    from tritonrank.data.prepare import prepare

    prepare(recipe, draft)


@dataclass(frozen=True)
class Engine:
    """What the data are read and made into lists with."""

    hashes: Callable[[Sequence[FileLocation]], Sequence[str]] = hashes_of
    """the sha256 of files"""
    prepare: Callable[[Recipe, Draft], None] = _prepare_here
    """fills the draft"""


HERE = Engine()
"""Polars, on this machine."""


def on_spark(session: "SparkSession") -> Engine:
    """The executors of a cluster, for data that outgrow this machine."""
    from tritonrank.data.spark.engine import hashes_on_spark, prepare_on_spark

    known: dict[tuple[FileLocation, ...], list[str]] = {}

    def hashes(files: Sequence[FileLocation]) -> list[str]:
        if tuple(files) not in known:  # whoever looks whether there is anything to do, asks several times
            known[tuple(files)] = hashes_on_spark(session, files)
        return known[tuple(files)]

    return Engine(hashes, lambda recipe, draft: prepare_on_spark(recipe, draft, session))


def stage(recipe: Recipe, workspace: Workspace, engine: Engine = HERE) -> Stage:
    """Other budgets count the texts again; the dataset comes out as it was, so that nothing after it is made again."""

    def settings() -> dict[str, Any]:
        fingerprints = source_fingerprints(recipe.data, engine.hashes)
        if fingerprints is None:
            # Raises with everything that is wrong, not only the first missing file.
            load_tables(recipe.data, recipe.seed, recipe.text.template_fields)
        return {
            # The catalogue reads data.fields, which no dataset depends on.
            "data": recipe.data.model_dump(mode="json", exclude={*recipe.data.LOCATIONS, "fields"}),
            "text": recipe.text.model_dump(mode="json"),
            "tokenizer": tokenizer_identity(recipe),
            "architecture": recipe.model.architecture,
            **prompt_settings(recipe.model),
            "examples": recipe.examples.model_dump(mode="json"),
            "seed": recipe.seed,
            "sources": fingerprints,
            **image_files(recipe.images),
        }

    def make(draft: Draft) -> None:
        if recipe.images and engine is not HERE:
            raise RecipeError("images: Spark does not read them; leave out --spark, or the images section")
        engine.prepare(recipe, draft)

    return Stage("prepare", workspace.dataset, settings, {}, make, REVISION, TOOLS)
