"""Filters of a request, checked, and put together with those that always hold.

What is checked here needs no catalogue; whether items have such a field the catalogue says when it is asked.
"""

from collections.abc import Mapping
from typing import Any

from tritonrank_recommend.catalogue.columns import MOST_VALUES, FilterError
from tritonrank_recommend.engine.conditions import BOUNDS


def check_filters(filters: Mapping[str, Any], where: str = "filters") -> None:
    """Make sure that every condition is one.

    Raises:
        FilterError: one is not.
    """
    for name, condition in filters.items():
        place = f"{where}.{name}"
        if isinstance(condition, Mapping):
            if not condition or any(bound not in BOUNDS for bound in condition):
                raise FilterError(f"{place}: expected bounds out of {', '.join(BOUNDS)}, got {', '.join(condition)}")
            if not all(_is_number(bound) for bound in condition.values()):
                raise FilterError(f"{place}: expected numbers as bounds")
        elif isinstance(condition, list | tuple):
            if not condition or len(condition) > MOST_VALUES or not all(_is_value(one) for one in condition):
                raise FilterError(f"{place}: expected 1 to {MOST_VALUES} texts, numbers or truth values")
        elif not _is_value(condition):
            raise FilterError(f"{place}: expected a value, a list of values, or bounds such as {{'lte': 20}}")


def together(filters: Mapping[str, Any], always: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Conditions for retrieval, and those that have to be looked at afterwards.

    A field has one condition in retrieval. Where both name a field and differ, the request's is retrieved by and the
    other one is checked on what was found.
    """
    later = {name: condition for name, condition in always.items() if name in filters and filters[name] != condition}
    return {**always, **filters}, later


def _is_value(value: Any) -> bool:
    return isinstance(value, str | int | float | bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
