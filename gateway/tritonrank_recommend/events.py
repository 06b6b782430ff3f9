"""What users do, as one record each: from the body of ``POST /v1/events`` to the training log."""

from typing import Literal

import msgspec

EventType = Literal["view", "click", "cart", "purchase", "rating", "skip", "search"]

DEFAULT_WEIGHTS: dict[str, float] = {
    "view": 0.25,
    "click": 0.5,
    "cart": 0.75,
    "purchase": 1.0,
    "rating": 1.0,
    "skip": -0.25,
    "search": 0.0,
}
"""What an event says about the user's liking. A rating counts by its value, see ``weight_of``."""
MIDDLE_RATING = 3.0
"""On a scale to 5: a rating says the more, the further it lies from here."""


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One thing that a user did.

    Attributes:
        event_id: made by the client; the same id again is the same event, and counts once.
        user_id: who.
        type: what.
        timestamp: unix seconds; events may come in any order.
        item_id: on which item; empty for a search.
        query: what was searched for, here or on the page on which the item was shown.
        value: of a rating 0.5 to 5; of a purchase what was paid; else None.
        page: the token of the page (``RecommendAnswer.page``) on which the item was shown.
        position: of the item in that list, from 0.
        received_at: unix seconds at which a gateway took it, by its own clock; 0 where none did. What was received
            before its user was erased is erased, too, wherever it was on its way.
    """

    event_id: str
    user_id: str
    type: EventType
    timestamp: float
    item_id: str = ""
    query: str = ""
    value: float | None = None
    page: str = ""
    position: int | None = None
    received_at: float = 0.0


def weight_of(event: Event) -> float:
    """What the event says about the user's liking, from -1 to 1."""
    if event.type == "rating" and event.value is not None:
        return max(-1.0, min(1.0, (event.value - MIDDLE_RATING) / 2))
    return DEFAULT_WEIGHTS[event.type]
