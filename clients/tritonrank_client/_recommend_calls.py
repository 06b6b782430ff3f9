"""`recommend` and what belongs to it, as methods: for the blocking client, and the same for asyncio."""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from ._recommend import (
    Question,
    delete_questions,
    event_questions,
    put_questions,
    read_field,
    read_items,
    read_object,
    recommend_question,
    similar_question,
    user_question,
)
from ._recommend_results import Event, EventsTaken, ItemsChanged, Recommendations, SimilarItems
from ._results import ItemId
from ._retry import Call

Order = Literal["blend", "ranker", "retrieval"]
Answer = tuple[dict[str, Any], Call]


class RecommendCalls(ABC):
    """See `RankClient`. All but `recommend` is a gateway's; Triton's model `recommend` answers that one, too."""

    @abstractmethod
    def _ask(self, question: Question, timeout: float | None, request_id: str = "") -> Answer: ...

    @abstractmethod
    def _seconds(self, timeout: float | None) -> float: ...

    def recommend(
        self,
        user_id: ItemId = "",
        *,
        recent: Iterable[ItemId | Mapping[str, Any]] = (),
        query: str = "",
        size: int = 20,
        filters: Mapping[str, Any] | None = None,
        context: Mapping[str, str] | None = None,
        exclude: Iterable[ItemId] = (),
        exclude_seen: bool = True,
        cursor: str = "",
        candidates: int = 0,
        order: Order = "blend",
        explain: bool = False,
        timeout: float | None = None,
        request_id: str = "",
    ) -> Recommendations:
        """What should this user see now; what fits this query for this user.

        Args:
            user_id: whose profile is taken; empty for nobody's.
            recent: the newest items of the session, newest last: ids, or mappings of item_id, type and timestamp.
            query: what was searched for; may be empty.
            size: items on a page.
            filters: on fields of items: a value, a list of values of which one fits, or bounds such as {"lte": 50}.
            context: such as page and device, for rules and for the log.
            exclude: ids to leave out.
            exclude_seen: leave out what the user has bought, rated or skipped.
            cursor: of the page before: the next page of the same list. What else is asked is then that list's own.
            candidates: to be retrieved and ranked; 0 is the server's own number.
            order: the blend's, the ranker's alone, or that of retrieval.
            explain: say of each item what raised it.
            timeout: seconds this call may take, retries included; None is the client's. A server that runs short of
                time gives the order of retrieval and says so (`degraded`).
            request_id: as for `rank`.

        Raises:
            InvalidRequest, Overloaded, DeadlineExceeded, Unavailable, ServerFault, RuntimeError: as for `rank`; a
                page that is no longer kept is an InvalidRequest, and a server without a catalogue Unavailable.
        """
        question = recommend_question(
            user_id=user_id,
            recent=recent,
            query=query,
            size=size,
            filters=filters,
            context=context,
            exclude=exclude,
            exclude_seen=exclude_seen,
            cursor=cursor,
            candidates=candidates,
            order=order,
            explain=explain,
        )
        return _recommendations(*self._ask(question, timeout, request_id))

    def similar(
        self, item_id: ItemId, *, size: int = 20, filters: Mapping[str, Any] | None = None, timeout: float | None = None
    ) -> SimilarItems:
        """Items that are like one; arguments and errors as of `recommend`. An item that the catalogue does not hold is
        an InvalidRequest."""
        return _similar(*self._ask(similar_question(item_id, size, filters), timeout))

    def send_events(self, events: Iterable[Event | Mapping[str, Any]], *, timeout: float | None = None) -> EventsTaken:
        """Tell what users did. An event counts once, however often it is sent: after a failure send the same `Event`s
        again (mappings get an id at each call, unless they hold one).

        A batch of up to 1,000 is taken whole or not at all, and tried again whole, with the same ids. More are sent in
        several batches, one after the other.

        Args:
            events: in any order.
            timeout: seconds for all of it; None is the client's.

        Raises:
            InvalidRequest, Overloaded, DeadlineExceeded, Unavailable, ServerFault, RuntimeError: as for `rank`. Batches
                before the one that failed were taken.
        """
        return _taken(self._ask_all(event_questions(events), timeout))

    def put_items(self, items: Mapping[Any, Mapping[str, Any]], *, timeout: float | None = None) -> ItemsChanged:
        """Add items or change them while serving: from each id to all its fields. Batches and errors as of
        `send_events`; sending them again does no harm."""
        return _changed(self._ask_all(put_questions(items), timeout))

    def delete_items(self, item_ids: Iterable[ItemId], *, timeout: float | None = None) -> ItemsChanged:
        """Remove items while serving; one that is not there is no fault. As `put_items`."""
        return _changed(self._ask_all(delete_questions(item_ids), timeout))

    def user(self, user_id: ItemId, *, log: bool = False, timeout: float | None = None) -> dict[str, Any]:
        """All that is kept of a user; with `log` what the training log holds as well. Errors as of `rank`."""
        return self._ask(user_question("GET", user_id, log), timeout)[0]

    def forget_user(self, user_id: ItemId, *, timeout: float | None = None) -> dict[str, Any]:
        """Erase a user from store, cache and log; what was erased, by place. Errors as of `rank`."""
        return self._ask(user_question("DELETE", user_id), timeout)[0]

    def _ask_all(self, questions: Sequence[Question], timeout: float | None) -> tuple[float, list[Answer]]:
        started = time.monotonic()
        until = started + self._seconds(timeout)
        answers = [self._ask(question, _left(until)) for question in questions]
        return time.monotonic() - started, answers


class AsyncRecommendCalls(ABC):
    """The same with `await`: see `RankClient`."""

    @abstractmethod
    async def _ask(self, question: Question, timeout: float | None, request_id: str = "") -> Answer: ...

    @abstractmethod
    def _seconds(self, timeout: float | None) -> float: ...

    async def recommend(
        self,
        user_id: ItemId = "",
        *,
        recent: Iterable[ItemId | Mapping[str, Any]] = (),
        query: str = "",
        size: int = 20,
        filters: Mapping[str, Any] | None = None,
        context: Mapping[str, str] | None = None,
        exclude: Iterable[ItemId] = (),
        exclude_seen: bool = True,
        cursor: str = "",
        candidates: int = 0,
        order: Order = "blend",
        explain: bool = False,
        timeout: float | None = None,
        request_id: str = "",
    ) -> Recommendations:
        """What should this user see now: see `RankClient.recommend`."""
        question = recommend_question(
            user_id=user_id,
            recent=recent,
            query=query,
            size=size,
            filters=filters,
            context=context,
            exclude=exclude,
            exclude_seen=exclude_seen,
            cursor=cursor,
            candidates=candidates,
            order=order,
            explain=explain,
        )
        return _recommendations(*await self._ask(question, timeout, request_id))

    async def similar(
        self, item_id: ItemId, *, size: int = 20, filters: Mapping[str, Any] | None = None, timeout: float | None = None
    ) -> SimilarItems:
        """Items that are like one: see `RankClient.similar`."""
        return _similar(*await self._ask(similar_question(item_id, size, filters), timeout))

    async def send_events(
        self, events: Iterable[Event | Mapping[str, Any]], *, timeout: float | None = None
    ) -> EventsTaken:
        """Tell what users did: see `RankClient.send_events`."""
        return _taken(await self._ask_all(event_questions(events), timeout))

    async def put_items(self, items: Mapping[Any, Mapping[str, Any]], *, timeout: float | None = None) -> ItemsChanged:
        """Add items or change them: see `RankClient.put_items`."""
        return _changed(await self._ask_all(put_questions(items), timeout))

    async def delete_items(self, item_ids: Iterable[ItemId], *, timeout: float | None = None) -> ItemsChanged:
        """Remove items: see `RankClient.delete_items`."""
        return _changed(await self._ask_all(delete_questions(item_ids), timeout))

    async def user(self, user_id: ItemId, *, log: bool = False, timeout: float | None = None) -> dict[str, Any]:
        """All that is kept of a user: see `RankClient.user`."""
        return (await self._ask(user_question("GET", user_id, log), timeout))[0]

    async def forget_user(self, user_id: ItemId, *, timeout: float | None = None) -> dict[str, Any]:
        """Erase a user: see `RankClient.forget_user`."""
        return (await self._ask(user_question("DELETE", user_id), timeout))[0]

    async def _ask_all(self, questions: Sequence[Question], timeout: float | None) -> tuple[float, list[Answer]]:
        started = time.monotonic()
        until = started + self._seconds(timeout)
        answers = [await self._ask(question, _left(until)) for question in questions]
        return time.monotonic() - started, answers


def parsed(body: bytes, call: Call) -> Answer:
    """What `_ask` returns."""
    return read_object(body), call


def _left(until: float) -> float:
    return max(0.001, until - time.monotonic())


def _recommendations(answer: dict[str, Any], call: Call) -> Recommendations:
    return Recommendations(
        read_items(answer),
        read_field(answer, "page", str),
        read_field(answer, "cursor", str, ""),
        read_field(answer, "cold", bool, False),
        read_field(answer, "degraded", bool, False),
        tuple(map(str, read_field(answer, "degraded_reasons", list, []))),
        read_field(answer, "artifacts", dict, {}),
        read_field(answer, "milliseconds", dict, {}),
        call.seconds,
        call.attempts,
    )


def _similar(answer: dict[str, Any], call: Call) -> SimilarItems:
    return SimilarItems(read_items(answer), read_field(answer, "artifacts", dict, {}), call.seconds, call.attempts)


def _taken(asked: tuple[float, list[Answer]]) -> EventsTaken:
    seconds, answers = asked
    accepted, duplicates = (
        sum(read_field(answer, name, int) for answer, _ in answers) for name in ("accepted", "duplicates")
    )
    return EventsTaken(accepted, duplicates, seconds, sum(call.attempts for _, call in answers))


def _changed(asked: tuple[float, list[Answer]]) -> ItemsChanged:
    seconds, answers = asked
    changed, removed = (sum(read_field(answer, name, int) for answer, _ in answers) for name in ("changed", "removed"))
    is_kept = all(read_field(answer, "kept", bool) for answer, _ in answers)
    return ItemsChanged(changed, removed, is_kept, seconds, sum(call.attempts for _, call in answers))
