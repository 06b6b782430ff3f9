"""Events as others send them, in ``POST /v1/events`` or in a message of a stream: checked in one place.

Whoever receives them notes when: the first event of a batch at that second, each further one a microsecond later, so
that events that tell no time of their own keep the order in which they were sent, wherever they go.
"""

from collections.abc import Callable, Sequence
from typing import Annotated

import msgspec
from msgspec import Meta

from tritonrank_recommend.events import Event, EventType

MOST_EVENTS = 1_000
"""Of a batch."""
FUTURE_SECONDS = 300.0
"""So much may a client's clock be ahead; what is later is taken for now."""
LATEST_SECOND = 1e11
"""Of the year 5138: larger numbers are milliseconds."""
RATINGS = (0.5, 5.0)
STEP_SECONDS = 1e-6
Identifier = Annotated[str, Meta(min_length=1, max_length=256, pattern=r"^[^\x00-\x1f\x7f]+\Z")]


class EventError(ValueError):
    """An event that cannot be taken; the message names its place and its field."""


class SentEvent(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """One thing that a user did. A field that is not known is an error: it would be kept by nobody."""

    type: EventType
    user_id: Identifier
    item_id: Identifier | None = None
    query: Annotated[str, Meta(max_length=10_000)] = ""
    value: Annotated[float, Meta(ge=-1e12, le=1e12)] | None = None
    timestamp: Annotated[float, Meta(gt=0)] | None = None
    event_id: Identifier | None = None
    page: Annotated[str, Meta(max_length=512)] = ""
    position: Annotated[int, Meta(ge=0, le=1_000_000)] | None = None


class SentEvents(msgspec.Struct, forbid_unknown_fields=True):
    """A batch, or ``SentEvent`` alone as the body."""

    events: Annotated[list[SentEvent], Meta(min_length=1, max_length=MOST_EVENTS)]


class Names(msgspec.Struct):
    """What tells a batch from an event."""

    events: msgspec.Raw = msgspec.Raw()


ONE, BATCH, NAMES = msgspec.json.Decoder(SentEvent), msgspec.json.Decoder(SentEvents), msgspec.json.Decoder(Names)


def events_of(sent: Sequence[SentEvent], received_at: float, new_id: Callable[[int], str], batch: bool) -> list[Event]:
    """What is kept of events that were sent together.

    Args:
        sent: their bodies.
        received_at: unix seconds.
        new_id: for the event at a place that has no id.
        batch: whether messages name the place.

    Raises:
        EventError: fields that do not go together; the message names the first.
    """
    return [
        _event(one, f"events[{place}]." if batch else "", received_at + place * STEP_SECONDS, new_id(place))
        for place, one in enumerate(sent)
    ]


def early(sent: Sequence[SentEvent], received_at: float) -> list[int]:
    """The places of events that are from the future, and are taken for now."""
    return [place for place, one in enumerate(sent) if (one.timestamp or received_at) > received_at + FUTURE_SECONDS]


def _event(sent: SentEvent, where: str, received_at: float, new_id: str) -> Event:
    at = received_at if sent.timestamp is None else sent.timestamp
    if at >= LATEST_SECOND:
        raise EventError(f"{where}timestamp: expected unix seconds, got {at:.0f}; are these milliseconds?")
    if sent.type == "search":
        if not sent.query.strip():
            raise EventError(f"{where}query: expected what was searched for, in an event of type search")
        if sent.item_id is not None:
            raise EventError(f"{where}item_id: a search is about no item; send a click, with the query in it")
    elif sent.item_id is None:
        raise EventError(f"{where}item_id: expected the item's id, in an event of type {sent.type}")
    if sent.type == "rating" and (sent.value is None or not RATINGS[0] <= sent.value <= RATINGS[1]):
        low, high = RATINGS
        raise EventError(f"{where}value: expected a rating from {low:g} to {high:g}, got {sent.value}")
    return Event(
        event_id=sent.event_id or new_id,
        user_id=sent.user_id,
        type=sent.type,
        timestamp=received_at if at > received_at + FUTURE_SECONDS else at,
        item_id=sent.item_id or "",
        query=sent.query.strip(),
        value=sent.value,
        page=sent.page,
        position=sent.position,
        received_at=received_at,
    )
