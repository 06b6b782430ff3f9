"""Days that nobody should learn from, planted into a log whose other days are sound."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, get_args

from msgspec.structs import replace
from tritonrank_recommend.events import Event

from loadtests.shoppers.played import DayLog, page_of
from loadtests.shoppers.world import DAY_SECONDS

Poison = Literal["flipped", "bot", "copied", "resent", "drought", "strangers"]
POISONS: tuple[Poison, ...] = get_args(Poison)
BOT = "shopper-bot"
BOT_PAGES, BOT_ITEMS = 400, 3
LIKES = ("click", "cart", "purchase")
KEPT_IN_DROUGHT = 20
"""One event of so many is left."""


def poisoned(day: DayLog, poison: Poison) -> DayLog:
    """A day as the log has it when something went wrong.

    ``flipped``: what was clicked is logged as passed over, and what was passed over on the same page as clicked.
    ``bot``: a user who was not there before clicks the same few items on hundreds of pages, among the others' events.
    ``copied``: a client sent every batch three times and made new ids each time.
    ``resent``: a client sent every batch three times with the same ids, and the store had forgotten them.
    ``drought``: most events did not arrive.
    ``strangers``: events name items that the catalogue does not have.

    Raises:
        ValueError: the day has no pages to poison.
    """
    if not day.impressions or not day.events:
        raise ValueError(f"day {day.day}: nothing happened, so that nothing can be poisoned")
    return _MAKERS[poison](day)


def _flipped(day: DayLog) -> DayLog:
    events = [event for event in day.events if event.type not in (*LIKES, "skip")]
    liked = {(event.page, event.item_id): event for event in day.events if event.type in LIKES}
    clicked_pages = {page for page, _ in liked}
    for page in day.impressions:
        if page.page not in clicked_pages:
            continue
        for order, (item, position) in enumerate(zip(page.item_ids, page.positions, strict=True)):
            at = page.shown_at + 1.0 + order
            events.append(
                Event(
                    event_id=f"{page.page}/{item}/flipped",
                    user_id=page.user_id,
                    type="skip" if (page.page, item) in liked else "click",
                    timestamp=at,
                    item_id=item,
                    query=page.query,
                    page=page.page,
                    position=position,
                    received_at=at,
                )
            )
    return replace_events(day, events)


def _bot(day: DayLog) -> DayLog:
    items = sorted({item for page in day.impressions for item in page.item_ids})
    begins = day.impressions[0].shown_at // DAY_SECONDS * DAY_SECONDS
    pages, events = list(day.impressions), list(day.events)
    for number in range(BOT_PAGES):
        at = begins + (number + 0.5) * DAY_SECONDS / BOT_PAGES
        first = items[:BOT_ITEMS]
        shown = [*first, *(items[(number + place) % len(items)] for place in range(BOT_ITEMS, 10))]
        shown = list(dict.fromkeys(shown))
        page = f"bot-{day.day}-{number}"
        pages.append(page_of(page, "", shown, user=BOT, at=at))
        events += [
            Event(
                event_id=f"{page}/{item}",
                user_id=BOT,
                type="click",
                timestamp=at + 0.1 * (1 + place),
                item_id=item,
                page=page,
                position=place,
                received_at=at + 0.1 * (1 + place),
            )
            for place, item in enumerate(first)
        ]
    pages.sort(key=lambda page: page.shown_at)
    return replace_events(DayLog(day.day, day.events, pages), events)


def _copied(day: DayLog) -> DayLog:
    times = range(3)
    return replace_events(
        day, [replace(event, event_id=f"{event.event_id}/{time}") for event in day.events for time in times]
    )


def _resent(day: DayLog) -> DayLog:
    return replace_events(day, [event for event in day.events for _ in range(3)])


def _drought(day: DayLog) -> DayLog:
    return replace_events(day, day.events[::KEPT_IN_DROUGHT])


def _strangers(day: DayLog) -> DayLog:
    return replace_events(
        day, [replace(event, item_id=f"no-{event.item_id}" if event.item_id else "") for event in day.events]
    )


def replace_events(day: DayLog, events: Sequence[Event]) -> DayLog:
    """The day with other events, in order of time."""
    return DayLog(day.day, sorted(events, key=lambda event: event.timestamp), day.impressions)


_MAKERS: Mapping[Poison, Callable[[DayLog], DayLog]] = {
    "flipped": _flipped,
    "bot": _bot,
    "copied": _copied,
    "resent": _resent,
    "drought": _drought,
    "strangers": _strangers,
}
