"""Every setting with its default and its reason: the reference behind ``tritonrank settings``."""

from collections.abc import Iterator
from typing import Any, NamedTuple, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from tritonrank.recipe.applicability import used_where
from tritonrank.recipe.whole import Recipe


class SettingRow(NamedTuple):
    """One setting."""

    key: str
    default: str
    description: str
    used: str
    """where it has an effect; empty: everywhere"""
    schema: dict[str, Any]
    """JSON Schema of the value"""


def setting_rows() -> Iterator[SettingRow]:
    """Every setting, in file order."""
    return _rows(Recipe, "", "")


def _rows(model: type[BaseModel], prefix: str, used: str) -> Iterator[SettingRow]:
    properties = model.model_json_schema()["properties"]
    for name, field in model.model_fields.items():
        key = f"{prefix}{name}"
        sections = _sections(field.annotation)
        if name == "data":
            yield from _data_rows(key, sections)
        elif sections:
            for section in sections:
                yield from _rows(section, f"{key}.", _used(field))
        else:
            default = "required" if field.is_required() else repr(field.default)
            where = "; ".join(filter(None, [used, _used(field)]))
            yield SettingRow(key, default, field.description or "", where, properties[name])


def _data_rows(key: str, sources: list[type[BaseModel]]) -> Iterator[SettingRow]:
    """The source decides which settings there are; it is one setting, and the others say whose they are."""
    by_source = {get_args(source.model_fields["source"].annotation)[0]: source for source in sources}
    sources_in_words = f"where the data come from: {', '.join(by_source)}"
    yield SettingRow(f"{key}.source", "required", sources_in_words, "", {"enum": list(by_source)})
    for name, source in by_source.items():
        own = {f"{key}.{field}" for field in source.__annotations__}  # others are told with the source they are from
        for row in _rows(source, f"{key}.", ""):
            if row.key in own and row.description:
                yield row._replace(key=f"{row.key} ({name})")


def _used(field: FieldInfo) -> str:
    mark = used_where(field)
    return mark.in_words() if mark else ""


def _sections(annotation: Any) -> list[type[BaseModel]]:
    kinds = get_args(annotation) or (annotation,)
    return [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
