"""What ``--set`` changes in a recipe: one setting, or all that a file holds."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from tritonrank.errors import RecipeError


def read_override_files(overrides: Sequence[str]) -> Iterator[str]:
    """Each ``@FILE`` as the ``section.key=value`` strings that it holds; such a file is what tuning writes."""
    for override in overrides:
        if not override.startswith("@"):
            yield override
            continue
        path = Path(override[1:])
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise RecipeError(f"--set {override}: {path} cannot be read: {error}") from None
        if not isinstance(values, dict) or not all(isinstance(section, dict) for section in values.values()):
            raise RecipeError(f"--set {override}: {path}: expected sections with their settings, such as serve:")
        for section, settings in values.items():
            yield from (f"{section}.{key}={yaml.safe_dump(value)}" for key, value in settings.items())


def apply_override(values: dict[str, Any], override: str) -> None:
    key, separator, value = override.partition("=")
    if not separator or not re.fullmatch(r"\w+(\.[\w-]+)*", key):
        raise RecipeError(f"--set {override!r}: expected section.key=value, such as finetune.epochs=2")
    *sections, leaf = key.split(".")
    target = values
    for section in sections:
        child = target.setdefault(section, {})
        if not isinstance(child, dict):
            raise RecipeError(f"--set {override!r}: {section} is a single setting, not a section")
        target = child
    try:
        target[leaf] = yaml.safe_load(value)
    except (yaml.YAMLError, ValueError) as error:
        raise RecipeError(f"--set {override!r}: the value is not valid YAML: {error}") from None
