"""The best trial as a recipe: the file that was searched with other values, and what the trial has trained beside it.

The recipe has a name of its own, ``<name>-tuned``, so that building it replaces nothing. The dataset and the artifacts
of the trial are put where that build looks for them, as hard links where the file system has them: nothing is trained
twice.
"""

import os
import shlex
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from optuna.trial import FrozenTrial

from tritonrank.artifacts import read_manifest, write_whole
from tritonrank.artifacts.locks import only_writer
from tritonrank.artifacts.workspace import Workspace
from tritonrank.errors import ArtifactError, RecipeError
from tritonrank.recipe import Recipe, load_recipe
from tritonrank.recipe.overrides import apply_override, read_override_files
from tritonrank.recipe.shipped import find_recipe
from tritonrank.search.recipe_text import with_settings
from tritonrank.search.space import Point, as_yaml
from tritonrank.search.trial import Bench
from tritonrank.system.database_url import DatabaseUrl

SUFFIX = "-tuned"
MOST_LETTERS = 64
DEFAULT_ARTIFACTS = Path("artifacts")
PLACES = {"path", "items", "events"}
"""Settings of `data` that are files, folders or tables."""
WAY_OUT = "name another place: --out FILE.yaml"


@dataclass(frozen=True)
class Winner:
    """What a search leaves."""

    recipe: Path
    """the file"""
    is_trained: bool
    """what the trial has trained is where a build of it looks"""


def write_winner(bench: Bench, study: str, best: FrozenTrial, out: Path, artifacts: Path) -> Winner:
    """Write the recipe, and hand over what the trial made.

    Args:
        bench: what was searched.
        study: its name, for the first lines of the file.
        best: the trial.
        out: the file.
        artifacts: folder that holds one folder per recipe.

    Raises:
        ArtifactError: the file cannot be written.
    """
    point = bench.space.point_of(best.params)
    name = bench.recipe.name[: MOST_LETTERS - len(SUFFIX)] + SUFFIX
    text = recipe_of_point(bench, point, name, out)
    settings = "\n".join(f"#   {key}: {as_yaml(value)}" for key, value in point.items())
    build = shlex.join(build_command(out, artifacts))
    head = (
        f"# Found by `tritonrank search {bench.recipe_path}`: trial {best.number} of the study {study}, "
        f"validation NDCG@10 {best.value:.4f}, with\n{settings}\n# Build it: {build}\n"
    )
    write_whole(out, head + text, WAY_OUT)
    is_trained = bench.has_result(point)
    if is_trained:
        hand_over(bench, point, load_recipe(out), artifacts)
    return Winner(out, is_trained)


def build_command(recipe: Path, artifacts: Path) -> list[str]:
    """The words that build a winner."""
    words = ["tritonrank", "build", str(recipe)]
    return words if artifacts == DEFAULT_ARTIFACTS else [*words, "--artifacts", str(artifacts)]


def recipe_of_point(bench: Bench, point: Point, name: str, out: Path) -> str:
    """The recipe's text at a point of the space, with what ``--set`` said, to be read from another folder.

    Comments stay; where YAML's anchors or merges would make that another recipe, they are lost.
    """
    source = find_recipe(bench.recipe_path)
    text = source.read_text(encoding="utf-8")
    told: dict[str, Any] = {}
    for override in read_override_files(bench.overrides):
        apply_override(told, override)
    settings = {"name": name, **_flat(told), **point, **_places(bench.recipe)}
    wanted = bench.recipe_of(point).model_copy(update={"name": name})
    with suppress(yaml.YAMLError, RecipeError, AttributeError, IndexError):
        edited = with_settings(text, settings)
        if _reads_as(edited, wanted, out):
            return edited
    values = yaml.safe_load(text)
    for key, value in settings.items():
        apply_override(values, f"{key}={as_yaml(value)}")
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def hand_over(bench: Bench, point: Point, recipe: Recipe, artifacts: Path) -> None:
    """Put the dataset and the trial's artifacts where a build of the winner looks for them.

    What lies there and is no artifact of tritonrank stays; the build then makes its own.
    """
    source, target = bench.workspace_of(point), Workspace.of(recipe, artifacts)
    last = bench.result_of(point)
    with only_writer(target.root):
        for name in ("dataset", "teacher", "pruned", "student", "onnx", "int8"):
            made = getattr(source, name)
            if (made / "manifest.json").is_file():
                _link(made, target.root / name)
            if made == last:
                break


def _link(source: Path, target: Path) -> None:
    if target.is_symlink():
        return  # to a build that was promoted
    if target.exists():
        try:
            if read_manifest(target).artifact == read_manifest(source).artifact:
                return
        except ArtifactError:
            return  # somebody's own
        shutil.rmtree(target)
    draft = target.with_name(target.name + ".tmp")
    shutil.rmtree(draft, ignore_errors=True)
    shutil.copytree(source, draft, copy_function=_link_or_copy)
    draft.rename(target)


def _link_or_copy(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)
    return target


def _places(recipe: Recipe) -> dict[str, Any]:
    """Where the data are as seen from anywhere, as a recipe's own paths begin at its folder; without a password."""
    found = {}
    for name in sorted(PLACES):
        place = getattr(recipe.data, name, None)
        if isinstance(place, DatabaseUrl):
            found[f"data.{name}"] = place.within(Path.cwd()).written()
        elif isinstance(place, Path):
            found[f"data.{name}"] = str(place.absolute())
    return found


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _reads_as(text: str, wanted: Recipe, out: Path) -> bool:
    """Whether a text is a recipe with these settings."""
    draft = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        write_whole(draft, text, WAY_OUT)
        found = load_recipe(draft)
    finally:
        draft.unlink(missing_ok=True)
    left, right = (
        one.model_dump(mode="json", exclude={"data": {"path", "items", "events"}}) for one in (found, wanted)
    )
    return left == right
