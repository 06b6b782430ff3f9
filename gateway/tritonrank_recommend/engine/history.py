"""What is known of a user now: the profile's events, and the items that the request itself carries behind them."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from tritonrank_recommend.catalogue.interface import Liked
from tritonrank_recommend.engine.wire import RecentItem
from tritonrank_recommend.events import DEFAULT_WEIGHTS
from tritonrank_recommend.stores.interface import Profile, Seen


class HistoryError(ValueError):
    """An item of a request's history that is none; the message names it."""


@dataclass(frozen=True, slots=True)
class History:
    """A user's items.

    Attributes:
        liked: each item once, at the place of its newest event, newest last.
        seen: ids whose events are of the types that count as seen.
        types: by id the type of the event that counts.
    """

    liked: tuple[Liked, ...] = ()
    seen: frozenset[str] = frozenset()
    types: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        """Nothing is known: the user is cold."""
        return not self.liked

    def newest_liked(self, most: int) -> list[str]:
        """Ids of the newest items that the user liked, newest last."""
        ids = [one.item_id for one in self.liked if one.weight > 0]
        return ids[-most:] if most else []


def history_of(
    profile: Profile,
    recent: Sequence[str | RecentItem],
    seen_types: Collection[str],
    now: float,
    seen_since: float = 0.0,
) -> History:
    """Profile and request as one history.

    Of several events on one item the one counts that says most: a purchase, and not the view after it.

    Args:
        profile: of the store; empty where there is none.
        recent: of the request, newest last.
        seen_types: types of events that count as seen.
        now: unix seconds, for items of the request without a timestamp.
        seen_since: unix seconds; older events do not count as seen.

    Raises:
        HistoryError: a type of an item of the request is not known.
    """
    events = [*profile.events, *(_seen(one, place, now) for place, one in enumerate(recent))]
    liked: dict[str, Liked] = {}
    types: dict[str, str] = {}
    seen = set()
    for event in events:
        before = liked.pop(event.item_id, None)
        says_more = before is not None and abs(before.weight) > abs(event.weight)
        weight = before.weight if says_more and before is not None else event.weight
        types[event.item_id] = types[event.item_id] if says_more else event.type
        liked[event.item_id] = Liked(event.item_id, weight, event.timestamp)
        if event.type in seen_types and event.timestamp >= seen_since:
            seen.add(event.item_id)
    return History(tuple(liked.values()), frozenset(seen), types)


def _seen(one: str | RecentItem, place: int, now: float) -> Seen:
    item = RecentItem(one) if isinstance(one, str) else one
    weight = DEFAULT_WEIGHTS.get(item.type)
    if weight is None:
        raise HistoryError(f"recent[{place}].type: expected one of {', '.join(DEFAULT_WEIGHTS)}, got {item.type!r}")
    return Seen(item.item_id, item.type, item.timestamp or now, weight)
