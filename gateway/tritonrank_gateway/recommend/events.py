"""POST /v1/events: what users do, one event or a batch.

A batch is taken whole or not at all, and durable when it is answered. The same ids again change nothing, so a client
that got no answer sends the batch again: at least once from there, exactly once in effect.
"""

import asyncio
import secrets
import time
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter
from msgspec import Meta
from tritonrank_recommend.events import Event, EventType

from tritonrank_gateway.call import Call
from tritonrank_gateway.endpoint import Route, add_route
from tritonrank_gateway.recommend.access import DIALECT, keeper_of, refused
from tritonrank_gateway.refusal import Refusal

router = APIRouter()
MOST_EVENTS = 1_000
FUTURE_SECONDS = 300.0
"""So much may a client's clock be ahead; what is later is taken for now."""
LATEST_SECOND = 1e11
"""Of the year 5138: larger numbers are milliseconds."""
RATINGS = (0.5, 5.0)
Identifier = Annotated[str, Meta(min_length=1, max_length=256, pattern=r"^[^\x00-\x1f\x7f]+\Z")]


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


async def take_events(call: Call) -> dict[str, Any]:
    recommender = keeper_of(call)
    is_batch = bool(bytes(call.decode(NAMES).events))
    sent: Sequence[SentEvent] = call.decode(BATCH).events if is_batch else [call.decode(ONE)]
    now = time.time()
    early = [place for place, one in enumerate(sent) if (one.timestamp or now) > now + FUTURE_SECONDS]
    events = [_event(one, f"events[{place}]." if is_batch else "", now) for place, one in enumerate(sent)]
    with refused():
        try:
            async with asyncio.timeout(call.seconds_left):
                added = await recommender.users.add_events(events)
        except TimeoutError:
            said = "the store did not take the events in time; send them again with the same ids"
            raise Refusal("unavailable", said) from None
    if added.accepted:  # else all were sent again
        for event, sums in call.gateway.quality.took(events):
            user = recommender.parts.privacy.user(event.user_id)
            call.gateway.versions.clicked(user, event.position or 0, sums)
    counter = call.gateway.metrics.events
    counter.labels("no").inc(added.accepted)
    counter.labels("yes").inc(added.duplicates)
    if added.accepted and call.gateway.metrics.last_event is not None:
        call.gateway.metrics.last_event.set(now)
    answer: dict[str, Any] = {"accepted": added.accepted, "duplicates": added.duplicates}
    return answer | ({"taken_for_now": early} if early else {})


def _event(sent: SentEvent, where: str, now: float) -> Event:
    """What is kept of it.

    Raises:
        Refusal: fields that do not go together; the message names the first.
    """
    at = now if sent.timestamp is None else sent.timestamp
    if at >= LATEST_SECOND:
        raise Refusal("invalid", f"{where}timestamp: expected unix seconds, got {at:.0f}; are these milliseconds?")
    if sent.type == "search":
        if not sent.query.strip():
            raise Refusal("invalid", f"{where}query: expected what was searched for, in an event of type search")
        if sent.item_id is not None:
            raise Refusal("invalid", f"{where}item_id: a search is about no item; send a click, with the query in it")
    elif sent.item_id is None:
        raise Refusal("invalid", f"{where}item_id: expected the item's id, in an event of type {sent.type}")
    if sent.type == "rating" and (sent.value is None or not RATINGS[0] <= sent.value <= RATINGS[1]):
        low, high = RATINGS
        raise Refusal("invalid", f"{where}value: expected a rating from {low:g} to {high:g}, got {sent.value}")
    return Event(
        event_id=sent.event_id or secrets.token_hex(16),
        user_id=sent.user_id,
        type=sent.type,
        timestamp=min(at, now) if at > now + FUTURE_SECONDS else at,
        item_id=sent.item_id or "",
        query=sent.query.strip(),
        value=sent.value,
        page=sent.page,
        position=sent.position,
        received_at=now,
    )


EXAMPLE = {
    "events": [
        {"event_id": "5f0c-1", "type": "search", "user_id": "u1", "query": "a lamp for my desk"},
        {"event_id": "5f0c-2", "type": "click", "user_id": "u1", "item_id": "p1", "page": "", "position": 0},
    ]
}
ROUTE = Route(DIALECT, take_events, SentEvents, role="events")
add_route(router, "/v1/events", ROUTE, EXAMPLE, "Tell what users did")
