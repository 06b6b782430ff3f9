"""Figures that add up: those of several gateways, and those of one gateway over its restarts.

A gateway tells what it compared as sums, counts and counts per bucket. So three gateways say together what one would
have said alone, and a controller needs to know nothing of the time before it was started.
"""

from collections.abc import Mapping
from typing import Any

from tritonrank.serve.rollout.state import Seen

Sums = dict[str, Any]
"""Numbers, lists of numbers, and further Sums."""


def added(one: Mapping[str, Any], other: Mapping[str, Any], sign: int = 1) -> Sums:
    """The sum of two, or their difference; a part that only one has counts as 0 in the other."""
    result: Sums = {}
    for name in one.keys() | other.keys():
        mine, theirs = one.get(name), other.get(name)
        if isinstance(mine if mine is not None else theirs, Mapping):
            result[name] = added(mine or {}, theirs or {}, sign)
        elif isinstance(mine if mine is not None else theirs, list):
            length = max(len(mine or ()), len(theirs or ()))
            result[name] = [
                left + sign * right for left, right in zip(_padded(mine, length), _padded(theirs, length), strict=True)
            ]
        elif isinstance(mine if mine is not None else theirs, int | float):
            result[name] = (mine or 0) + sign * (theirs or 0)
    return result


def note(seen: Seen, mark: str, sums: Sums) -> None:
    """Take what a gateway tells now.

    Args:
        seen: of that gateway; is changed.
        mark: another one says that the gateway counts from 0 again.
        sums: as it tells them.
    """
    if seen.mark != mark:
        seen.banked = added(seen.banked, seen.last)
        seen.mark = mark
    seen.last = sums


def total(seen: Mapping[str, Seen]) -> Sums:
    """Of all gateways."""
    result: Sums = {}
    for one in seen.values():
        result = added(added(result, one.banked), one.last)
    return result


def _padded(values: list[float] | None, length: int) -> list[float]:
    return [*(values or ()), *[0] * (length - len(values or ()))]
