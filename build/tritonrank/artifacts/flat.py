"""Nested settings as one list: ``section.key`` -> value."""

from collections.abc import Iterator
from typing import Any


def flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of nested mappings with the path to it; lists are values."""
    if isinstance(value, dict) and value:
        for name, one in value.items():
            yield from flat(one, f"{prefix}.{name}" if prefix else str(name))
    else:
        yield prefix, value
