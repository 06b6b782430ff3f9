"""One setting, or some of them, for people: ``tritonrank settings WORD``."""

import difflib
import json
import re
from collections.abc import Iterator
from typing import Any

from tritonrank.errors import RecipeError
from tritonrank.recipe.listing import SettingRow, setting_rows
from tritonrank.recipe.removed import what_became_of

FEWEST_LETTERS = 0.6
"""Likeness from which a setting may be the one that was meant."""


def find_settings(word: str) -> list[SettingRow]:
    """The setting of this key, else those of this section, else those that have the word in key or meaning.

    Args:
        word: such as ``serve.deadline_ms``, ``serve`` or ``tokens``.

    Raises:
        RecipeError: there is none; says which may have been meant, or what became of it.
    """
    rows, asked = list(setting_rows()), word.strip().lower()
    if exact := [row for row in rows if plain_key(row) == asked]:
        return exact
    if section := [row for row in rows if row.key.startswith(f"{asked}.")]:
        return section
    if became := what_became_of(asked):
        raise RecipeError(f"{word}: {became}")
    if found := [row for row in rows if asked in f"{row.key} {row.description}".lower()]:
        return found
    keys = [plain_key(row) for row in rows]
    names = {key.rpartition(".")[2]: key for key in keys}
    near = difflib.get_close_matches(asked, keys, n=3, cutoff=FEWEST_LETTERS)
    near += [names[name] for name in difflib.get_close_matches(asked, list(names), n=3, cutoff=FEWEST_LETTERS)]
    meant = f"Did you mean {' or '.join(dict.fromkeys(near))}? " if near else ""
    raise RecipeError(f"{word}: no setting has this key or word. {meant}All of them: tritonrank settings")


def explanation(row: SettingRow) -> Iterator[tuple[str, str]]:
    """What there is to say of a setting: a heading and a text each."""
    yield "default", row.default
    yield "values", values_in_words(row.schema)
    yield "meaning", row.description[:1].upper() + row.description[1:]
    yield "used with", row.used or "everything"
    value = example_value(row)
    section, _, name = plain_key(row).rpartition(".")
    yield "for once", f"--set '{plain_key(row)}={value}'"
    yield "in a recipe", f"{section}: {{{name}: {value}}}" if section else f"{name}: {value}"


def plain_key(row: SettingRow) -> str:
    """The key as a recipe has it, without the source that it belongs to."""
    return row.key.partition(" ")[0]


def example_value(row: SettingRow) -> str:
    """A value that may stand there, other than the default where that is easily told."""
    schema, default = row.schema, row.schema.get("default")
    kinds = [schema, *schema.get("anyOf", [])]
    choices = [value for kind in kinds for value in kind.get("enum", [])]
    if others := [value for value in choices if value != default]:
        return _as_yaml(others[0])
    if isinstance(default, bool):
        return _as_yaml(not default)
    number = next((kind for kind in kinds if kind.get("type") in {"integer", "number"}), None)
    if number is not None and not isinstance(default, int | float):
        return _as_yaml(max(number.get("minimum", 0), 8 if number["type"] == "integer" else 0.5))
    if default not in (None, "auto"):
        return _as_yaml(default)
    if found := re.search(r"such as (\[[\w, ]+\]|[\w./*:-]+[\w*])", row.description):
        return found.group(1)
    return row.key.partition(" ")[0].rpartition(".")[2]


def values_in_words(schema: dict[str, Any]) -> str:
    """What may stand there, such as ``integer from 1 to 64, or auto``."""
    if "anyOf" in schema:
        return ", or ".join(values_in_words(one) for one in schema["anyOf"])
    if "const" in schema:
        return _as_yaml(schema["const"])
    if "enum" in schema:
        return " | ".join(map(_as_yaml, schema["enum"]))
    kind = str(schema.get("type", "mapping"))
    if kind == "array":
        return f"list of {values_in_words(schema.get('items', {}))}"
    if kind == "null":
        return "none"
    words = [{"boolean": "true | false", "string": "text", "object": "mapping"}.get(kind, kind)]
    words += [f"from {schema['minimum']}"] if "minimum" in schema else []
    words += [f"above {schema['exclusiveMinimum']}"] if "exclusiveMinimum" in schema else []
    words += [f"to {schema['maximum']}"] if "maximum" in schema else []
    words += [f"below {schema['exclusiveMaximum']}"] if "exclusiveMaximum" in schema else []
    return " ".join(words)


def _as_yaml(value: Any) -> str:
    """A value as a recipe has it; what is no plain word is in the form that YAML shares with JSON."""
    return value if isinstance(value, str) and re.fullmatch(r"[\w./-]+", value) else json.dumps(value)
