"""Every setting with its default and its reason: the reference behind ``tritonrank settings``."""

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from tritonrank.recipe.whole import Recipe


def setting_rows(model: type[BaseModel] = Recipe, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Every setting as (key, default, description), in file order: the reference behind `tritonrank settings`."""
    for name, field in model.model_fields.items():
        key = f"{prefix}{name}"
        for nested in _nested_models(field.annotation):
            marker = f" ({nested.model_fields['source'].annotation.__args__[0]})" if name == "data" else ""  # type: ignore[union-attr]
            for nested_key, default, description in setting_rows(nested, f"{key}."):
                yield nested_key + marker, default, description
        if not _nested_models(field.annotation):
            default = "required" if field.is_required() else repr(field.default)
            yield key, default, field.description or ""


def _nested_models(annotation: Any) -> list[type[BaseModel]]:
    candidates = getattr(annotation, "__args__", (annotation,))
    return [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
