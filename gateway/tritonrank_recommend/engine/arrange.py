"""From scores to the order that is shown: boosts, pins, caps, the share of new items. Nothing is lost, all is certain.

The list is filled place by place with the best candidate that may stand there. A cap holds while there is a candidate
that keeps it; when there is none the best one follows all the same, because a shorter list helps nobody.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
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
    caps = [_CapCount(cap, fields) for cap in rules.cap if cap.holds(context, situation.now)]
    fixed = _within(pinned or {}, len({*order, *(pinned or {}).values()}))
    if not caps and rules.new is None and not fixed:
        return list(order)
    kept = set(fixed.values())
    for place, number in fixed.items():
        for count in caps:
            if place < count.cap.first:
                count.took(number)
    return _fill([number for number in order if number not in kept], fixed, caps, _NewCount(rules.new, ages_days))


def _within(pinned: Mapping[int, int], length: int) -> dict[int, int]:
    """Pins of a list that is shorter than their places stand at its end, in the same order."""
    placed: dict[int, int] = {}
    for place in sorted(pinned, reverse=True):
        free = min(place, length - 1)
        while free in placed:
            free -= 1
        placed[free] = pinned[place]
    return placed


def _fill(waiting: list[int], fixed: Mapping[int, int], caps: "Sequence[_CapCount]", new: "_NewCount") -> list[int]:
    shown: list[int] = []
    boundary = max([new.first, max(fixed, default=-1) + 1, *(count.cap.first for count in caps)])
    while waiting or len(shown) in fixed:
        place = len(shown)
        if place in fixed:
            number = fixed[place]
        elif place >= boundary:  # no rule speaks of what follows
            return shown + waiting
        else:
            in_force = [count for count in caps if place < count.cap.first]
            number = waiting.pop(_choose(place, waiting, in_force, new))
            for count in in_force:
                count.took(number)
        new.took(place, number)
        shown.append(number)
    return shown


def _choose(place: int, waiting: Sequence[int], caps: "Sequence[_CapCount]", new: "_NewCount") -> int:
    """The place among the waiting of the best one that may stand here; of a new one where one is due and may."""
    is_due = new.is_due(place)
    allowed = None
    for at, number in enumerate(waiting):
        if all(count.allows(number) for count in caps):
            if not is_due or new.is_new(number):
                return at
            if allowed is None:
                allowed = at
    return 0 if allowed is None else allowed


class _CapCount:
    """How often each value of a cap's field was shown among the first."""

    def __init__(self, cap: Cap, fields: Sequence[Fields | None]) -> None:
        self.cap, self._fields = cap, fields
        self._counts: Counter[str] = Counter()
        self._known: dict[int, tuple[str, ...]] = {}

    def allows(self, number: int) -> bool:
        counts, most = self._counts, self.cap.most
        values = self._known.get(number)
        if values is None:
            values = self._known[number] = _values(self._fields[number], self.cap.field)
        if len(values) == 1:
            return counts[values[0]] < most
        return all(counts[value] < most for value in values)

    def took(self, number: int) -> None:
        self._counts.update(_values(self._fields[number], self.cap.field))


def _values(fields: Fields | None, name: str) -> tuple[str, ...]:
    """The different values of a field as texts; none where it is empty or not there."""
    value = None if fields is None else fields.get(name)
    if value is None or value == "":
        return ()
    return tuple(set(map(str, value))) if isinstance(value, list) else (str(value),)


class _NewCount:
    """How many new items were shown, and how many are due."""

    def __init__(self, rule: NewItems | None, ages_days: Sequence[float] | NDArray[np.float32]) -> None:
        self.first = 0 if rule is None else rule.first
        self._share, self._days = (0.0, 0.0) if rule is None else (rule.share, rule.days)
        self._ages, self._shown = ages_days, 0

    def is_new(self, number: int) -> bool:
        return bool(self._ages[number] <= self._days)  # NaN is not

    def is_due(self, place: int) -> bool:
        return place < self.first and self._shown < math.floor(self._share * (place + 1) + 1e-9)

    def took(self, place: int, number: int) -> None:
        if place < self.first:
            self._shown += self.is_new(number)
