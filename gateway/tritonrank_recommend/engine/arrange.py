"""From scores to the order that is shown: boosts, pins, caps, the share of new items. Nothing is lost, all is certain.

The list is filled place by place with the best candidate that may stand there. A cap holds while there is a candidate
that keeps it; when there is none the best one follows all the same, because a shorter list helps nobody.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tritonrank_recommend.engine.conditions import meets
from tritonrank_recommend.engine.rules import Boost, Cap, NewItems, Rules
from tritonrank_recommend.stores.interface import FieldValue

LOWEST_SCORE = -1e30
"""Below it a score says that there was nothing to score; it is left out of averages."""
Fields = Mapping[str, FieldValue]


@dataclass(frozen=True, slots=True)
class Situation:
    """Of a request, what rules ask about.

    Attributes:
        query: as it came.
        context: of the request.
        now: unix seconds.
    """

    query: str = ""
    context: Mapping[str, str] | None = None
    now: float = 0.0


def boosted(
    scores: NDArray[np.float32], fields: Sequence[Fields | None], boosts: Sequence[Boost], situation: Situation
) -> NDArray[np.float32]:
    """Scores with what the boosts add, in the scale of the scores.

    Args:
        scores: [n], higher is better.
        fields: of the items.
        boosts: of the rules.
        situation: of the request.
    """
    in_force = [boost for boost in boosts if boost.holds(situation.context or {}, situation.now)]
    if not in_force or not len(scores):
        return scores
    told = scores[scores > LOWEST_SCORE].astype(np.float64)
    spread = float(told.std()) if len(told) else 0.0
    unit = spread if spread > 0 else 1.0
    added = [_effect(one, in_force) for one in fields]
    return (scores.astype(np.float64) + unit * np.array(added)).astype(np.float32)


def _effect(fields: Fields | None, boosts: Sequence[Boost]) -> float:
    if fields is None:
        return 0.0
    total = 0.0
    for boost in boosts:
        if meets(fields, boost.when):
            total += (boost.add + math.log(boost.multiply)) * _amount(fields, boost.by)
    return total


def _amount(fields: Fields, by: str) -> float:
    if not by:
        return 1.0
    value = fields.get(by)
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number and isinstance(value, int | float) else 0.0


def arranged(
    order: Sequence[int],
    fields: Sequence[Fields | None],
    ages_days: Sequence[float] | NDArray[np.float32],
    rules: Rules,
    situation: Situation,
    pinned: Mapping[int, int] | None = None,
) -> list[int]:
    """All candidates in the order in which they are shown.

    Args:
        order: candidates by number, best first.
        fields: of each candidate by its number.
        ages_days: of each candidate; NaN where that is not known.
        rules: caps and the share of new items are taken from here.
        situation: of the request.
        pinned: the candidate that stands at a place.

    Returns:
        the same numbers, each once.
    """
    context = situation.context or {}
    caps = [_CapCount(cap) for cap in rules.cap if cap.holds(context, situation.now)]
    fixed = _within(pinned or {}, len(order))
    if not caps and rules.new is None and not fixed:
        return list(order)
    kept = set(fixed.values())
    for place, number in fixed.items():
        _note(caps, place, fields[number])
    return _fill(
        [number for number in order if number not in kept], fixed, fields, caps, _NewCount.of(rules.new, ages_days)
    )


def _within(pinned: Mapping[int, int], length: int) -> dict[int, int]:
    """Pins of a list that is shorter than their places stand at its end, in the same order."""
    placed: dict[int, int] = {}
    for place in sorted(pinned, reverse=True):
        free = min(place, length - 1)
        while free in placed:
            free -= 1
        placed[free] = pinned[place]
    return placed


def _fill(
    waiting: list[int],
    fixed: Mapping[int, int],
    fields: Sequence[Fields | None],
    caps: "Sequence[_CapCount]",
    new: "_NewCount",
) -> list[int]:
    shown: list[int] = []
    boundary = max((count.cap.first for count in caps), default=0)
    boundary = max(boundary, new.first, max(fixed, default=-1) + 1)
    while waiting or len(shown) in fixed:
        place = len(shown)
        if place in fixed:
            shown.append(fixed[place])
            new.took(place, fixed[place])
            continue
        if place >= boundary:  # no rule speaks of what follows
            shown += waiting
            break
        in_force = [count for count in caps if place < count.cap.first]
        allowed = [at for at, number in enumerate(waiting) if all(count.allows(fields[number]) for count in in_force)]
        at = new.choose(place, waiting, allowed) if allowed else 0
        number = waiting.pop(at)
        _note(caps, place, fields[number])
        new.took(place, number)
        shown.append(number)
    return shown


def _note(caps: "Iterable[_CapCount]", place: int, fields: Fields | None) -> None:
    for count in caps:
        if place < count.cap.first:
            count.took(fields)


class _CapCount:
    """How often each value of a cap's field was shown among the first."""

    def __init__(self, cap: Cap) -> None:
        self.cap = cap
        self._counts: Counter[str] = Counter()

    def allows(self, fields: Fields | None) -> bool:
        return all(self._counts[value] < self.cap.most for value in self._values(fields))

    def took(self, fields: Fields | None) -> None:
        self._counts.update(self._values(fields))

    def _values(self, fields: Fields | None) -> set[str]:
        value = None if fields is None else fields.get(self.cap.field)
        if value is None or value == "":
            return set()
        return set(map(str, value)) if isinstance(value, list) else {str(value)}


class _NewCount:
    """How many new items were shown, and how many are due."""

    def __init__(self, share: float, first: int, is_new: Sequence[bool]) -> None:
        self.first = first
        self._share, self._is_new, self._shown = share, is_new, 0

    @classmethod
    def of(cls, rule: NewItems | None, ages_days: Sequence[float] | NDArray[np.float32]) -> "_NewCount":
        if rule is None:
            return cls(0.0, 0, ())
        return cls(rule.share, rule.first, [bool(age <= rule.days) for age in ages_days])  # NaN is not new

    def choose(self, place: int, waiting: Sequence[int], allowed: Sequence[int]) -> int:
        """Which of the waiting, by its place among them: the best new one where one is due, else the best."""
        if place < self.first and self._shown < math.floor(self._share * (place + 1) + 1e-9):
            return next((at for at in allowed if self._is_new[waiting[at]]), allowed[0])
        return allowed[0]

    def took(self, place: int, number: int) -> None:
        if place < self.first:
            self._shown += self._is_new[number]
