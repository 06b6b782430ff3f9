"""Neighbours that change places by lot, so that clicks can tell what a place is worth and what an item is.

Who is always shown first is clicked most, because it is good or because it is first: no log tells which. Here the list
is cut into pairs of neighbours, beginning with the first or the second item by the toss of a coin, and each pair
changes places with a small probability of its own. No item moves by more than one place, and how likely each was to
move is known and logged, from which its propensity follows: how likely it was to stand where it stands. (Swaps:
Joachims, Swaminathan & Schnabel 2017; pairs that begin at either of two places: FairPairs, Radlinski & Joachims 2006.)
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

from msgspec.structs import replace

from tritonrank_recommend.engine.arrange import Situation
from tritonrank_recommend.engine.listing import Listed
from tritonrank_recommend.engine.pages import Entry
from tritonrank_recommend.engine.rules import Explore


def explored(done: Listed, rule: Explore | None, situation: Situation, draw: Callable[[], float]) -> list[Entry]:
    """A list with some neighbours exchanged; every item says where it stood before and how likely it was to move.

    Args:
        done: the list that everybody would get without chance.
        rule: how likely pairs change places, and among how many of the first items; None leaves all as it is.
        situation: of the request.
        draw: uniform in [0, 1), independent each time.

    Returns:
        The same items. Pinned ones stay where they are, and so does what would have to change places with them.
    """
    entries = done.entries
    if rule is None or not rule.holds(situation.context or {}, situation.now):
        return entries
    is_fixed = [entry.item_id in done.pinned for entry in entries[: rule.first]]
    # One half: whether this pair is cut out is decided by the coin.
    moves = [0.0 if upper or lower else rule.swap / 2 for upper, lower in pairwise(is_fixed)]
    shown = [
        replace(entry, policy_position=place, move_up=_at(moves, place - 1), move_down=_at(moves, place))
        for place, entry in enumerate(entries)
    ]
    for place in range(int(2 * draw()), len(moves), 2):
        if draw() < rule.swap and moves[place]:
            shown[place], shown[place + 1] = shown[place + 1], shown[place]
    return shown


def _at(moves: Sequence[float], place: int) -> float:
    return moves[place] if 0 <= place < len(moves) else 0.0
