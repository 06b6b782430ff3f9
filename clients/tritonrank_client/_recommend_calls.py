"""`recommend` and what belongs to it, as methods: for the blocking client, and the same for asyncio."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar

from ._recommend import (
    Question,
    delete_questions,
    event_questions,
    explain_question,
    put_questions,
    read_explained,
    read_field,
    read_items,
    recommend_question,
    similar_question,
    user_question,
)
from ._recommend_results import Event, EventsTaken, Explanations, ItemsChanged, Recommendations, SimilarItems
from ._results import ItemId
from ._retry import Call

Order = Literal["blend", "ranker", "retrieval"]
Read = TypeVar("Read")
Reading = Callable[[dict[str, Any], Call], Read]
"""From an answer's object to what the caller gets; raises ServerFault where it is not as it should be."""


class RecommendCalls(ABC):
    """See `RankClient`. All but `recommend` is a gateway's; Triton's model `recommend` answers that one, too."""

    @abstractmethod
    def _ask(self, question: Question, read: Reading[Read], timeout: float | None, request_id: str = "") -> Read: ...

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
        return self._ask(question, _recommendations, timeout, request_id)

    def similar(
        self, item_id: ItemId, *, size: int = 20, filters: Mapping[str, Any] | None = None, timeout: float | None = None
    ) -> SimilarItems:
        """Items that are like one; arguments and errors as of `recommend`. An item that the catalogue does not hold is
        an InvalidRequest."""
        return self._ask(similar_question(item_id, size, filters), _similar, timeout)

    def explain(
        self,
        item_ids: Iterable[ItemId],
        user_id: ItemId = "",
        *,
        recent: Iterable[ItemId | Mapping[str, Any]] = (),
        query: str = "",
        context: Mapping[str, str] | None = None,
        page: str = "",
        candidates: int = 0,
        timeout: float | None = None,
    ) -> Explanations:
        """Why items stand where they stand, for this user and this query: up to 20 at once.

        Args:
            item_ids: to be explained.
            page: `Recommendations.page` of a list that was shown; query and history are then those of the list.
            user_id, recent, query, context, candidates, timeout: as of `recommend`, and so are the errors.
        """
        question = explain_question(
            item_ids=item_ids,
            user_id=user_id,
            recent=recent,
            query=query,
            context=context,
            page=page,
            candidates=candidates,
        )
        return self._ask(question, _explanations, timeout)

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
        return _all_taken(self._ask_all(event_questions(events), _taken, timeout))

    def put_items(self, items: Mapping[Any, Mapping[str, Any]], *, timeout: float | None = None) -> ItemsChanged:
        """Add items or change them while serving: from each id to all its fields. Batches and errors as of
        `send_events`; sending them again does no harm."""
        return _all_changed(self._ask_all(put_questions(items), _changed, timeout))

    def delete_items(self, item_ids: Iterable[ItemId], *, timeout: float | None = None) -> ItemsChanged:
        """Remove items while serving; one that is not there is no fault. As `put_items`."""
        return _all_changed(self._ask_all(delete_questions(item_ids), _changed, timeout))

    def user(self, user_id: ItemId, *, log: bool = False, timeout: float | None = None) -> dict[str, Any]:
        """All that is kept of a user; with `log` what the training log holds as well. Errors as of `rank`."""
        return self._ask(user_question("GET", user_id, log), _whole, timeout)

    def forget_user(self, user_id: ItemId, *, timeout: float | None = None) -> dict[str, Any]:
        """Erase a user from store, cache and log; what was erased, by place. Errors as of `rank`."""
        return self._ask(user_question("DELETE", user_id), _whole, timeout)

    def _ask_all(self, questions: Sequence[Question], read: Reading[Read], timeout: float | None) -> list[Read]:
        until = time.monotonic() + self._seconds(timeout)
        return [self._ask(question, read, _left(until)) for question in questions]


class AsyncRecommendCalls(ABC):
    """The same with `await`: see `RankClient`."""

    @abstractmethod
    async def _ask(
        self, question: Question, read: Reading[Read], timeout: float | None, request_id: str = ""
    ) -> Read: ...

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
        return await self._ask(question, _recommendations, timeout, request_id)

    async def similar(
        self, item_id: ItemId, *, size: int = 20, filters: Mapping[str, Any] | None = None, timeout: float | None = None
    ) -> SimilarItems:
        """Items that are like one: see `RankClient.similar`."""
        return await self._ask(similar_question(item_id, size, filters), _similar, timeout)

    async def explain(
        self,
        item_ids: Iterable[ItemId],
        user_id: ItemId = "",
        *,
        recent: Iterable[ItemId | Mapping[str, Any]] = (),
        query: str = "",
        context: Mapping[str, str] | None = None,
        page: str = "",
        candidates: int = 0,
        timeout: float | None = None,
    ) -> Explanations:
        """Why items stand where they stand: see `RankClient.explain`."""
        question = explain_question(
            item_ids=item_ids,
            user_id=user_id,
            recent=recent,
            query=query,
            context=context,
            page=page,
            candidates=candidates,
        )
        return await self._ask(question, _explanations, timeout)

    async def send_events(
        self, events: Iterable[Event | Mapping[str, Any]], *, timeout: float | None = None
    ) -> EventsTaken:
        """Tell what users did: see `RankClient.send_events`."""
        return _all_taken(await self._ask_all(event_questions(events), _taken, timeout))

    async def put_items(self, items: Mapping[Any, Mapping[str, Any]], *, timeout: float | None = None) -> ItemsChanged:
        """Add items or change them: see `RankClient.put_items`."""
        return _all_changed(await self._ask_all(put_questions(items), _changed, timeout))

    async def delete_items(self, item_ids: Iterable[ItemId], *, timeout: float | None = None) -> ItemsChanged:
        """Remove items: see `RankClient.delete_items`."""
        return _all_changed(await self._ask_all(delete_questions(item_ids), _changed, timeout))

    async def user(self, user_id: ItemId, *, log: bool = False, timeout: float | None = None) -> dict[str, Any]:
        """All that is kept of a user: see `RankClient.user`."""
        return await self._ask(user_question("GET", user_id, log), _whole, timeout)

    async def forget_user(self, user_id: ItemId, *, timeout: float | None = None) -> dict[str, Any]:
        """Erase a user: see `RankClient.forget_user`."""
        return await self._ask(user_question("DELETE", user_id), _whole, timeout)

    async def _ask_all(self, questions: Sequence[Question], read: Reading[Read], timeout: float | None) -> list[Read]:
        until = time.monotonic() + self._seconds(timeout)
        return [await self._ask(question, read, _left(until)) for question in questions]


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


def _explanations(answer: dict[str, Any], call: Call) -> Explanations:
    unknown, reasons = (tuple(map(str, read_field(answer, name, list, []))) for name in ("unknown", "degraded_reasons"))
    artifacts = read_field(answer, "artifacts", dict, {})
    return Explanations(read_explained(answer), unknown, reasons, artifacts, call.seconds, call.attempts)


def _whole(answer: dict[str, Any], call: Call) -> dict[str, Any]:
    return answer


def _taken(answer: dict[str, Any], call: Call) -> EventsTaken:
    accepted, duplicates = (read_field(answer, name, int) for name in ("accepted", "duplicates"))
    return EventsTaken(accepted, duplicates, call.seconds, call.attempts)


def _all_taken(batches: Sequence[EventsTaken]) -> EventsTaken:
    return EventsTaken(
        sum(one.accepted for one in batches),
        sum(one.duplicates for one in batches),
        sum(one.seconds for one in batches),
        sum(one.attempts for one in batches),
    )


def _changed(answer: dict[str, Any], call: Call) -> ItemsChanged:
    changed, removed = (read_field(answer, name, int) for name in ("changed", "removed"))
    return ItemsChanged(changed, removed, read_field(answer, "kept", bool), call.seconds, call.attempts)


def _all_changed(batches: Sequence[ItemsChanged]) -> ItemsChanged:
    return ItemsChanged(
        sum(one.changed for one in batches),
        sum(one.removed for one in batches),
        all(one.is_kept for one in batches),
        sum(one.seconds for one in batches),
        sum(one.attempts for one in batches),
    )
