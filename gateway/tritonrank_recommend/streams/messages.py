"""From events to the bodies of messages, and back.

Others write what ``POST /v1/events`` takes: one event, or ``{"events": [...]}``. Gateways write ``[...]``, events of
one user as they are kept, so that a user can be erased by removing messages.
"""

from collections.abc import Iterable, Sequence
from typing import Annotated

import msgspec
from msgspec import Meta

from tritonrank_recommend.events import Event, EventType
from tritonrank_recommend.privacy import Privacy
from tritonrank_recommend.sent_events import BATCH, LATEST_SECOND, NAMES, ONE, EventError, Identifier, events_of
from tritonrank_recommend.streams.interface import Message

MOST_BYTES = 1 << 20
"""Of a message. A larger one is a dead letter: each consumer of the group would hold it in memory."""
WRITTEN_BYTES = 256 << 10
"""A gateway begins another message beyond this."""


class PoisonError(ValueError):
    """A message that nobody can take, now or later; the message says why."""


class _KeptEvent(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """``Event`` with bounds. What was private is empty, so fields need not go together."""

    event_id: Identifier
    user_id: Identifier
    type: EventType
    timestamp: Annotated[float, Meta(gt=0, lt=LATEST_SECOND)]
    item_id: Annotated[str, Meta(max_length=256)] = ""
    query: Annotated[str, Meta(max_length=10_000)] = ""
    value: float | None = None
    page: Annotated[str, Meta(max_length=512)] = ""
    position: int | None = None
    received_at: Annotated[float, Meta(gt=0, lt=LATEST_SECOND)]


_kept = msgspec.json.Decoder(list[_KeptEvent])
_encode = msgspec.json.Encoder().encode


def bodies_of(events: Iterable[Event]) -> list[bytes]:
    """Messages for events as they are kept, each of one user; the order of a user's events stays."""
    of_users: dict[str, list[bytes]] = {}
    for event in events:
        of_users.setdefault(event.user_id, []).append(_encode(event))
    return [body for encoded in of_users.values() for body in _cut(encoded)]


def _cut(encoded: Sequence[bytes]) -> Iterable[bytes]:
    part: list[bytes] = []
    size = 0
    for one in encoded:
        if part and size + len(one) > WRITTEN_BYTES:
            yield b"[" + b",".join(part) + b"]"
            part, size = [], 0
        part.append(one)
        size += len(one) + 1
    yield b"[" + b",".join(part) + b"]"


def read_message(message: Message, privacy: Privacy) -> list[Event]:
    """The events of a message as they are kept. The same message always gives the same events, ids included.

    Raises:
        PoisonError: it is none, or an event in it cannot be taken; then none of it is.
    """
    if len(message.body) > MOST_BYTES:
        raise PoisonError(f"{len(message.body)} bytes; expected at most {MOST_BYTES}")
    try:
        if message.kept:
            return [Event(**msgspec.structs.asdict(one)) for one in _kept.decode(message.body)]
        batch = bool(bytes(NAMES.decode(message.body).events))
        sent = BATCH.decode(message.body).events if batch else [ONE.decode(message.body)]
        told = f"stream-{message.offset}-{message.appended_at * 1000:.0f}"
        events = events_of(sent, message.appended_at, lambda place: f"{told}-{place}", batch)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, EventError) as error:
        raise PoisonError(str(error) or type(error).__name__) from None
    return [privacy.event(event) for event in events]
