"""Every setting with its default and its reason: the reference behind ``tritonrank settings``."""

from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel

from tritonrank.recipe.whole import Recipe


def setting_rows(model: type[BaseModel] = Recipe, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Every setting as (key, default, description), in file order."""
    for name, field in model.model_fields.items():
        key = f"{prefix}{name}"
        sections = _sections(field.annotation)
        if name == "data":
            yield from _data_rows(key, sections)
        elif sections:
            for section in sections:
                yield from setting_rows(section, f"{key}.")
        else:
            yield key, "required" if field.is_required() else repr(field.default), field.description or ""


def _data_rows(key: str, sources: list[type[BaseModel]]) -> Iterator[tuple[str, str, str]]:
    """The source decides which settings there are; it is one setting, and the others say whose they are."""
    by_source = {get_args(source.model_fields["source"].annotation)[0]: source for source in sources}
    yield f"{key}.source", "required", f"where the data come from: {', '.join(by_source)}"
    for name, source in by_source.items():
        for nested, default, description in setting_rows(source, f"{key}."):
            if nested != f"{key}.source":
                yield f"{nested} ({name})", default, description


def _sections(annotation: Any) -> list[type[BaseModel]]:
    kinds = get_args(annotation) or (annotation,)
    return [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
