"""Visits to a shop: a home page, a search, a second page, and what was clicked and bought on the way.

An arrival of the schedule is the next page of a visit that waits, or a new visit where none does; so the load stays
open: a slow server makes more visits stand in the shop, and not fewer arrive. Events are sent when the page is there,
as a browser sends them, and are not waited for by the schedule.

Answers are checked with what the visitor knows: no item comes twice, a second page does not repeat the first, and what
was bought more than a second ago is not offered again.
"""

import json
import random
import time
import uuid
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tritonrank_client import Overloaded, ServerFault

from loadtests.callers import Answer
from loadtests.checks import BROKEN_CONTRACT, GoldenRequest, WrongAnswerError
from loadtests.json_connections import JsonConnections
from loadtests.results import LATER_PAGE, NO_ROOM, OWN_STEPS
from loadtests.workload import WorkloadRequest

STEPS = ("home", "search", "page", "home", "page", "search")
PAGE_SIZE = 20
VIEWED = 3
"""Items at the top of a page that count as viewed."""
CLICK_SHARE = 0.6
"""Of pages on which an item is clicked; which one falls off with its position."""
FALL_OFF = 0.3
BUY_SHARE = 0.25
"""Of clicks after which the item is bought."""
VISIBLE_SECONDS = 1.0
"""After an event was acknowledged, until every list has to know of it."""
EVENT_SECONDS = 5.0
SPARED = "ranker: spared"
"""Why a page is degraded that a gateway under load did not mean to rank."""


@dataclass
class Visit:
    """Somebody in the shop."""

    user: str
    query: str
    chance: random.Random
    step: int = 0
    cursor: str = ""
    page: str = ""
    shown: set[str] = field(default_factory=set)
    """on the pages of the list that ``cursor`` belongs to"""
    bought: dict[str, float] = field(default_factory=dict)
    """by item, when that was acknowledged (``time.monotonic``)"""


class DegradedError(Overloaded):
    """A page without the ranker.

    Args:
        reasons: that the answer names.
        level: at which the gateway means to have ranked, NO_ROOM where it meant to rank, or LATER_PAGE.
    """

    def __init__(self, reasons: Sequence[str], level: str) -> None:
        super().__init__(f"degraded: {', '.join(reasons)}", retryable=True)
        self.level = level


class VisitCaller:
    """See `Caller`.

    Args:
        url: of the gateway.
        visitors: users of the store for each one of the workload: user, user~1, user~2 ...
        candidates: that each list is ranked from; 0 is the gateway's own number.
    """

    def __init__(self, url: str, visitors: int = 1, candidates: int = 0) -> None:
        self._connections = JsonConnections(url)
        self._visitors, self._candidates = max(1, visitors), candidates
        self._waiting: deque[Visit] = deque()

    def call(self, request: WorkloadRequest | GoldenRequest, seconds: float) -> Answer:
        """The next page of a visit."""
        assert isinstance(request, WorkloadRequest), "golden requests are lists to rank"
        visit = self._waiting.popleft() if self._waiting else self._begin(request)
        known = {item for item, at in visit.bought.items() if time.monotonic() - at > VISIBLE_SECONDS}
        body = self._body(visit)
        told = self._connections.post("/v1/recommend", body, seconds)
        # A list stays what it was when its first page was made, whatever was bought since.
        level = "" if "cursor" in body else told.level
        items, steps = self._read(told.body, visit, set() if "cursor" in body else known, level)
        visit.step += 1
        if visit.step < len(STEPS):
            self._waiting.append(visit)
        size = told.sent_bytes + len(told.body)
        return Answer(told.artifact, size, steps, lambda: self._send_events(visit, items), level)

    def _begin(self, request: WorkloadRequest) -> Visit:
        chance = random.Random(uuid.uuid4().int)  # a workload that starts over brings other visits of its users
        copy = chance.randrange(self._visitors)
        return Visit(f"{request.user_id}~{copy}" if copy else request.user_id, request.query, chance)

    def _body(self, visit: Visit) -> dict[str, Any]:
        wanted = STEPS[visit.step]
        if wanted == "page" and visit.cursor:
            return {"user_id": visit.user, "cursor": visit.cursor, "size": PAGE_SIZE}
        body: dict[str, Any] = {"user_id": visit.user, "size": PAGE_SIZE, "context": {"page": wanted}}
        visit.cursor, visit.shown = "", set()
        return (
            body
            | ({"query": visit.query} if wanted == "search" and visit.query else {})
            | ({"candidates": self._candidates} if self._candidates else {})
        )

    def _read(self, body: bytes, visit: Visit, known: set[str], level: str) -> tuple[list[str], Mapping[str, float]]:
        try:
            answer = json.loads(body)
            items = [str(item["item_id"]) for item in answer["items"]]
            positions = [int(item["position"]) for item in answer["items"]]
            page, cursor = str(answer["page"]), str(answer.get("cursor", ""))
            steps = {name: float(value) for name, value in answer.get("milliseconds", {}).items()}
            if "retrieve" in steps:  # no step of a page that was pinned
                steps[OWN_STEPS] = sum(steps.get(name, 0.0) for name in ("profile", "retrieve", "blend"))
        except (KeyError, TypeError, ValueError) as error:
            raise ServerFault(f"the answer {BROKEN_CONTRACT}: {type(error).__name__} {error}") from error
        if answer.get("degraded"):
            reasons = [str(one) for one in answer.get("degraded_reasons", [])]
            unmeant = LATER_PAGE if not level else NO_ROOM
            raise DegradedError(reasons, level if level and reasons == [SPARED] else unmeant)
        check_page(items, positions, visit.shown, known)
        visit.shown |= set(items)
        visit.page, visit.cursor = page, cursor
        return items, steps

    def _send_events(self, visit: Visit, items: Sequence[str]) -> Mapping[str, float]:
        """What the visitor does with a page, as one batch; milliseconds until it was acknowledged."""
        now, offset = time.time(), len(visit.shown) - len(items)
        events = [_event(visit, "view", item, offset + place, now) for place, item in enumerate(items[:VIEWED])]
        bought = ""
        if visit.chance.random() < CLICK_SHARE:
            place = min(len(items) - 1, int(visit.chance.expovariate(FALL_OFF)))
            events.append(_event(visit, "click", items[place], offset + place, now))
            if visit.chance.random() < BUY_SHARE:
                bought = items[place]
                events.append(_event(visit, "purchase", bought, offset + place, now))
        began = time.perf_counter()
        told = self._connections.post("/v1/events", {"events": events}, EVENT_SECONDS)
        taken = json.loads(told.body)
        if taken.get("accepted") != len(events):
            raise WrongAnswerError(f"{len(events)} new events were sent, and {taken} was answered")
        if bought:
            visit.bought[bought] = time.monotonic()
        return {"events": 1_000 * (time.perf_counter() - began)}


def check_page(items: Sequence[str], positions: Sequence[int], shown: set[str], known: set[str]) -> None:
    """Raise unless a page is one.

    Args:
        items: ids in their order.
        positions: in the whole list.
        shown: on the pages before.
        known: bought long enough ago.

    Raises:
        WrongAnswerError: says what is wrong.
    """
    if not items:
        raise WrongAnswerError("an empty page")
    if len(set(items)) < len(items):
        raise WrongAnswerError("an item twice on one page")
    if list(positions) != list(range(positions[0], positions[0] + len(items))):
        raise WrongAnswerError(f"positions {positions[:5]} ... do not follow each other")
    if again := shown & set(items):
        raise WrongAnswerError(f"{len(again)} items of an earlier page on this one")
    if offered := known & set(items):
        raise WrongAnswerError(f"{min(offered)} was bought more than {VISIBLE_SECONDS:g} s ago and is offered again")


def _event(visit: Visit, kind: str, item: str, position: int, now: float) -> dict[str, Any]:
    return {
        "event_id": uuid.uuid4().hex,
        "user_id": visit.user,
        "type": kind,
        "timestamp": now,
        "item_id": item,
        "query": visit.query if STEPS[visit.step - 1] == "search" else "",
        "page": visit.page,
        "position": position,
    }
