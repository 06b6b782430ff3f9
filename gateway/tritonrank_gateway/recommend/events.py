"""POST /v1/events: what users do, one event or a batch.

A batch is taken whole or not at all, and durable when it is answered. The same ids again change nothing, so a client
that got no answer sends the batch again: at least once from there, exactly once in effect.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter
from msgspec.structs import replace
from tritonrank_recommend.events import Event
from tritonrank_recommend.random_hex import random_hex
from tritonrank_recommend.sent_events import BATCH, NAMES, ONE, EventError, SentEvent, SentEvents, early, events_of

from tritonrank_gateway.call import Call, Gateway
from tritonrank_gateway.endpoint import Route, add_route
from tritonrank_gateway.recommend.access import DIALECT, keeper_of, refused
from tritonrank_gateway.refusal import Refusal

router = APIRouter()


async def take_events(call: Call) -> dict[str, Any]:
    recommender = keeper_of(call)
    is_batch = bool(bytes(call.decode(NAMES).events))
    sent: Sequence[SentEvent] = call.decode(BATCH).events if is_batch else [call.decode(ONE)]
    now = time.time()
    try:
        events = events_of(sent, now, lambda _: random_hex(16), is_batch)
    except EventError as error:
        raise Refusal("invalid", str(error)) from None
    with refused():
        try:
            async with asyncio.timeout(call.seconds_left):
                added = await recommender.users.add_events(events)
        except TimeoutError:
            said = "the store did not take the events in time; send them again with the same ids"
            raise Refusal("unavailable", said) from None
    if added.accepted:  # else all were sent again
        user_of = recommender.parts.privacy.user
        count_clicks(call.gateway, [replace(event, user_id=user_of(event.user_id)) for event in events])
    counter = call.gateway.metrics.events
    counter.labels("no").inc(added.accepted)
    counter.labels("yes").inc(added.duplicates)
    if added.accepted and call.gateway.metrics.last_event is not None:
        call.gateway.metrics.last_event.set(now)
    answer: dict[str, Any] = {"accepted": added.accepted, "duplicates": added.duplicates}
    answer |= {"queued": True} if added.is_queued else {}
    return answer | ({"taken_for_now": places} if (places := early(sent, now)) else {})


def count_clicks(gateway: Gateway, events: Sequence[Event]) -> None:
    """Tell whoever estimates clicks and compares versions of new events, under the names that users are kept by."""
    for event, sums in gateway.quality.took(events):
        gateway.versions.clicked(event.user_id, event.position or 0, sums)


EXAMPLE = {
    "events": [
        {"event_id": "5f0c-1", "type": "search", "user_id": "u1", "query": "a lamp for my desk"},
        {"event_id": "5f0c-2", "type": "click", "user_id": "u1", "item_id": "p1", "page": "", "position": 0},
    ]
}
ROUTE = Route(DIALECT, take_events, SentEvents, role="events")
add_route(router, "/v1/events", ROUTE, EXAMPLE, "Tell what users did")
