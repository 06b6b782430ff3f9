"""Reading a recipe: all faults of a file together, each with its line and its key."""

import copy
import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from tritonrank.artifacts.workspace import Target
from tritonrank.errors import RecipeError
from tritonrank.recipe.applicability import for_target
from tritonrank.recipe.base import LIST, MAPPING
from tritonrank.recipe.data import SOURCES
from tritonrank.recipe.listing import setting_rows
from tritonrank.recipe.overrides import apply_override, read_override_files
from tritonrank.recipe.paths import PATH_KEYS, begin_at_recipe
from tritonrank.recipe.removed import what_became_of
from tritonrank.recipe.shipped import find_recipe, shipped_recipes
from tritonrank.recipe.whole import Recipe
from tritonrank.system.database_url import without_password


def load_recipe(path: Path | str, overrides: Sequence[str] = (), target: Target = Target.CPU) -> Recipe:
    """Read and check a recipe.

    Args:
        path: a YAML file, or the name of a recipe that comes with tritonrank.
        overrides: ``section.key=value`` strings, the value in YAML, or ``@FILE`` with a YAML mapping of sections; they
            win over the file, and later ones over earlier ones.
        target: whose section of `serve` counts; those of the others are checked, too.

    Raises:
        RecipeError: the file is missing, is not YAML, or has faults; all faults are in the one message.
    """
    path = find_recipe(Path(path))
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        names = ", ".join(shipped_recipes())
        raise RecipeError(
            f"{path}: no such recipe. Those that come with tritonrank go by name: {names} (tritonrank recipes)"
        ) from None
    except IsADirectoryError:
        raise RecipeError(f"{path}: {_about_folder(path)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read: {error}") from None
    try:
        values = yaml.safe_load(text)
        lines = dict(_key_lines(yaml.compose(text, Loader=yaml.SafeLoader)))
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # 2015-02-30 is a ValueError, *anchors may recurse
        raise RecipeError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise RecipeError(f"{path}: a recipe is a YAML mapping with at least `name` and `data`")
    for name in PATH_KEYS:
        begin_at_recipe(name, values.get(name), path)
    told = list(read_override_files(overrides))
    serve = values.get("serve")
    others = [one for one in Target if one is not target and isinstance(serve, dict) and one in serve]
    for other in others:
        _validate(path, values, told, other, lines)
    return _validate(path, values, told, target, lines)


def _validate(
    path: Path, values: dict[str, Any], overrides: Sequence[str], target: Target, lines: dict[tuple[str, ...], int]
) -> Recipe:
    """The recipe for one target."""
    values = copy.deepcopy(values)
    if isinstance(values.get("serve"), dict):  # before the overrides, which win over any section of the file
        values["serve"] = for_target(values["serve"], target)
    for override in overrides:
        apply_override(values, override)
    try:
        return Recipe.model_validate(values, context={"target": target})
    except ValidationError as error:
        faults = [_describe_fault(fault, path, lines, target) for fault in error.errors()]
        raise RecipeError(f"{path} has {len(faults)} fault(s):\n" + "\n".join(faults)) from None


def _key_lines(node: yaml.Node | None, prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], int]]:
    if isinstance(node, yaml.MappingNode):
        for key_node, value_node in node.value:
            location = (*prefix, str(key_node.value))
            yield location, key_node.start_mark.line + 1
            yield from _key_lines(value_node, location)


def _describe_fault(fault: Any, path: Path, lines: dict[tuple[str, ...], int], target: Target) -> str:
    # pydantic puts the tag of a discriminated union (here the data source) into the location; a file has no such key.
    location = tuple(str(part) for part in fault["loc"] if part not in (LIST, MAPPING))
    if location[:1] == ("data",) and len(location) > 1 and location[1] in SOURCES:
        location = ("data", *location[2:])
    known = location
    of_target = (*location[:1], str(target), *location[1:])  # serve.tensorrt.instances is checked as serve.instances
    if location[:1] == ("serve",) and of_target in lines:
        known = location = of_target
    while known and known not in lines:
        known = known[:-1]
    place = f"{path}:{lines[known]}" if known else f"{path}"
    message = str(fault["msg"]).removeprefix("Value error, ")
    if fault["type"] == "extra_forbidden":
        names = [row[0].split(" ")[0].split(".")[-1] for row in setting_rows()] + list(Recipe.model_fields)
        near = difflib.get_close_matches(location[-1], names, n=1)
        message = what_became_of(".".join(location)) or "no such setting" + (
            f"; did you mean {near[0]}?" if near else "; see `tritonrank settings`"
        )
    elif fault["type"] == "missing":
        message = "is required"
    elif fault["type"] == "string_type" and isinstance(fault["input"], dict):
        message += " (found a mapping, which is what braces mean in YAML: put the text into quotes)"
    else:
        found = without_password(fault["input"]) if isinstance(fault["input"], str) else fault["input"]
        message += f" (found {found!r})" if not isinstance(found, dict) else ""
    return f"  {place}: {'.'.join(location) or 'recipe'}: {message}"


def _about_folder(folder: Path) -> str:
    """What a folder is that was named in a recipe's place, as far as it helps."""
    if any(folder.glob("*/manifest.json")):
        return (
            "the folder of a build, and a recipe is the YAML file that it was built from: name that file, such as "
            f"{folder.name}.yaml, and if the build is not below artifacts/ also --artifacts {folder.parent}"
        )
    if (folder / "config.json").is_file():
        return (
            f"the folder of a checkpoint, and a recipe is a YAML file. To serve it as it is: tritonrank up {folder}. "
            "To train on your data, name it in a recipe as model.base, to judge it as model.checkpoint"
        )
    found = [str(path) for path in sorted(folder.glob("*.y*ml"))[:3]]
    return "a folder; a recipe is a YAML file" + (
        f", such as {' or '.join(found)}" if found else ". Write one: tritonrank init"
    )
