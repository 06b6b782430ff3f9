"""Whether one item meets conditions on its fields, as the catalogue's filters would say of it."""

import operator
from collections.abc import Callable, Mapping
from typing import Any

from tritonrank_recommend.catalogue.columns import as_tag
from tritonrank_recommend.stores.interface import FieldValue

BOUNDS: dict[str, Callable[[float, float], bool]] = {
    "gt": operator.gt,
    "gte": operator.ge,
    "lt": operator.lt,
    "lte": operator.le,
}


def meets(fields: Mapping[str, FieldValue], conditions: Mapping[str, Any]) -> bool:
    """Whether every condition is met, see ``catalogue.interface.Filters``; a field that is not there meets none."""
    return all(_fits(fields.get(name), condition) for name, condition in conditions.items())


def _fits(value: FieldValue, condition: Any) -> bool:
    if value is None:
        return False
    if isinstance(value, list):
        return any(_fits(one, condition) for one in value)
    if isinstance(condition, Mapping):
        return isinstance(value, int | float) and all(BOUNDS[name](value, bound) for name, bound in condition.items())
    if isinstance(condition, list | tuple):
        return any(as_tag(value) == as_tag(one) for one in condition)
    return as_tag(value) == as_tag(condition)
