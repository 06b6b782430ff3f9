"""What a stream holds of one user: to be read, or to be taken out.

A message of the user alone is removed. Of one that tells of others, too, the others' events are appended again as a
gateway keeps them, with the ids that they have anyway, so that they count once.
"""

from collections.abc import AsyncIterator, Collection

from tritonrank_recommend.events import Event
from tritonrank_recommend.privacy import Privacy
from tritonrank_recommend.streams.interface import Message, Stream
from tritonrank_recommend.streams.messages import PoisonError, bodies_of, read_message

TOGETHER = 1_000


async def events_of_user(stream: Stream, names: Collection[str], privacy: Privacy) -> list[Event]:
    """As they are kept, oldest first.

    Raises:
        StreamError: the stream does not answer.
    """
    return [event async for _, events in _messages_of(stream, names, privacy) for event in events
            if event.user_id in names]  # fmt: skip


async def erase_from(stream: Stream, names: Collection[str], privacy: Privacy) -> int:
    """Take a user out; how many messages were removed. Nothing where the stream cannot erase.

    Raises:
        StreamError: the stream does not answer; what was appended again counts once.
    """
    if not stream.can_erase:
        return 0
    removed, offsets, others = 0, [], []
    async for message, events in _messages_of(stream, names, privacy):
        offsets.append(message.offset)
        others += [event for event in events if event.user_id not in names]
        if len(offsets) >= TOGETHER:
            removed += await _replace(stream, offsets, others)
            offsets, others = [], []
    return removed + await _replace(stream, offsets, others)


async def _replace(stream: Stream, offsets: list[str], others: list[Event]) -> int:
    if others:  # first: they must not be lost in between
        await stream.append(bodies_of(others), kept=True)
    return await stream.delete(offsets) if offsets else 0


async def _messages_of(
    stream: Stream, names: Collection[str], privacy: Privacy
) -> AsyncIterator[tuple[Message, list[Event]]]:
    """The messages that tell of a user, poison ones that hold the name included; of these no events."""
    told = [name.encode("utf-8", "surrogatepass") for name in names]
    async for message in stream.replay():
        # Texts may be escaped where there is a backslash, and behind a pseudonym the name itself stands nowhere.
        if not (b"\\" in message.body or any(name in message.body for name in told)):
            continue
        try:
            events = read_message(message, privacy)
        except PoisonError:
            if any(name in message.body for name in told):
                yield message, []
            continue
        if any(event.user_id in names for event in events):
            yield message, events
