"""Why an item stands where it stands: by leaving one thing out, ranking again, and saying the difference.

Left out one at a time: an item of the history, a word of the query, a field of the shown items. The shown items alone
are ranked again, not the hundreds that were retrieved, and the ranker computes a context once for all of them. Fields
need no other context, so they cost one request together; each item of the history and each word costs one:

    1 request of  context + shown * (1 + fields) * item  tokens
    1 request of  context + shown * item                 tokens, for each item of the history and each word

The ranker gives an item the same logit whatever else is in the request, so differences are exact. What the blend makes
of it comes from its own account of features (``Blend.parts``) and costs nothing. Work is bounded by the constants here
and by the seconds that are given; what was not looked at in time is named in the answer.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tritonrank_client import NO_TEXT_SCORE, RankError

from tritonrank_recommend.engine.ranker import Ranker
from tritonrank_recommend.engine.sentences import sentence
from tritonrank_recommend.engine.wire import Explanation, Reason
from tritonrank_recommend.stores.interface import FieldValue

MOST_SHOWN = 20
MOST_HISTORY = 8
MOST_WORDS = 8
MOST_FIELDS = 6
MOST_FEATURES = 8
"""Of the blend, for each item: those that say most."""
AT_ONCE = 2
"""Requests to the ranker: an explanation may wait, recommendations may not."""
SMALLEST_EFFECT = 1e-6
"""Below it a thing did nothing."""

Fields = Mapping[str, FieldValue]
Kind = Literal["history", "query", "field"]


@dataclass(frozen=True, slots=True)
class PastItem:
    """An item of the history, as the ranker saw it.

    Attributes:
        item_id: its id.
        text: what the ranker read.
        type: of the event, such as ``purchase``.
        fields: of the item, as far as they are known.
    """

    item_id: str
    text: str
    type: str = "click"
    fields: Fields | None = None


@dataclass(frozen=True, slots=True)
class ShownItem:
    """An item to be explained.

    Attributes:
        item_id: its id.
        text: what the ranker reads.
        fields: of the item.
    """

    item_id: str
    text: str
    fields: Fields


@dataclass(frozen=True, slots=True)
class BlendParts:
    """What each feature of the blend adds to the score of each shown item: ``values`` is [shown, names]."""

    names: Sequence[str]
    values: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Question:
    """What to explain, and everything that the ranker was told then.

    Attributes:
        shown: items, of which the first ``MOST_SHOWN`` are explained.
        history: what the ranker read, newest last; no more than that.
        query: may be empty.
        render: fields -> the text that the ranker reads; None leaves fields out.
        blend: where there is one.
        user_id: for the way to a replica.
    """

    shown: Sequence[ShownItem]
    history: Sequence[PastItem] = ()
    query: str = ""
    render: Callable[[Fields], str] | None = None
    blend: BlendParts | None = None
    user_id: str = ""


@dataclass(frozen=True, slots=True)
class _Trial:
    """One request to the ranker, in which something is missing."""

    kind: Kind
    name: str
    query: str
    history: Sequence[str]


def explain_without_ranker(question: Question, why: str) -> list[Explanation]:
    """What can be said of the shown items without asking anybody: the blend's own account.

    Args:
        question: what was shown, and to whom.
        why: there is no ranker, in few words.
    """
    shown = question.shown[:MOST_SHOWN]
    return _explanations(question, [[] for _ in shown], [f"ranker: {why}"])


async def explain(question: Question, ranker: Ranker, *, seconds: float) -> list[Explanation]:
    """Explain the shown items, the first ``MOST_SHOWN`` of them.

    Args:
        question: what was shown, and to whom.
        ranker: that ranked it.
        seconds: until nobody waits any more; what is not known by then is named in ``Explanation.left_out``.
    """
    shown = question.shown[:MOST_SHOWN]
    if not shown:
        return []
    reasons: list[list[Reason]] = [[] for _ in shown]
    left_out: list[str] = []
    trials = [*_without_history(question), *_without_words(question)]
    async with _Asking(ranker, question.user_id, seconds) as asking:
        whole = asking.begin(_whole(question, shown, asking))
        others = [asking.begin(asking.score(one.query, one.history, [item.text for item in shown])) for one in trials]
        await asking.finish()
    found = whole.result()
    if found is None:
        left_out.append("the ranker did not answer in time")
    else:
        logits, field_reasons = found
        for known, new in zip(reasons, field_reasons, strict=True):
            known += new
        missed: dict[Kind, int] = {}
        for trial, task in zip(trials, others, strict=True):
            without = task.result()
            if without is None:
                missed[trial.kind] = missed.get(trial.kind, 0) + 1
                continue
            for known, effect in zip(reasons, _effects(logits, without), strict=True):
                if effect is not None:
                    known.append(Reason(trial.kind, trial.name, effect))
        left_out += [f"{kind}: {count} not looked at in time" for kind, count in missed.items()]
    return _explanations(question, reasons, left_out)


def _explanations(question: Question, reasons: list[list[Reason]], left_out: list[str]) -> list[Explanation]:
    for place, known in enumerate(reasons):
        known += _of_blend(question.blend, place)
        known.sort(key=lambda reason: -abs(reason.effect))
    called = {past.item_id: past for past in question.history}
    return [Explanation(known, sentence(known, called), left_out) for known in reasons]


class _Asking:
    """Requests to the ranker, few at a time, all of which end when the seconds are over."""

    def __init__(self, ranker: Ranker, user_id: str, seconds: float) -> None:
        self._ranker = ranker
        self._user_id = user_id
        self._until = asyncio.get_running_loop().time() + seconds
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._tasks: list[asyncio.Task[Any]] = []

    async def __aenter__(self) -> "_Asking":
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:  # the caller hung up
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def begin(self, asked: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(asked)
        self._tasks.append(task)
        return task

    async def finish(self) -> None:
        """Wait for all; none takes longer than the seconds that there are."""
        await asyncio.gather(*self._tasks)

    async def score(self, query: str, history: Sequence[str], items: Sequence[str]) -> NDArray[np.float64] | None:
        """[items] logits; None where they did not come, or not in time."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout_at(self._until), self._turns:
                left = self._until - loop.time()
                scored = await self._ranker.score(query, history, items, user=self._user_id, seconds=left)
        except (RankError, TimeoutError):
            return None
        return scored.logits.astype(np.float64)


async def _whole(
    question: Question, shown: Sequence[ShownItem], asking: _Asking
) -> tuple[NDArray[np.float64], list[list[Reason]]] | None:
    """[shown] logits with everything in place, and by item what its fields do: in one request, of one context."""
    texts, places = [item.text for item in shown], []
    for place, item in enumerate(shown):
        for name, text in _without_fields(item, question.render):
            places.append((place, name))
            texts.append(text)
    history = [past.text for past in question.history]
    logits = await asking.score(question.query, history, texts)
    if logits is None:
        return None
    whole, without = logits[: len(shown)], logits[len(shown) :]
    reasons: list[list[Reason]] = [[] for _ in shown]
    base = whole[[place for place, _ in places]] if places else whole[:0]
    for (place, name), effect in zip(places, _effects(base, without), strict=True):
        if effect is not None:
            reasons[place].append(Reason("field", name, effect))
    return whole, reasons


def _effects(whole: NDArray[np.float64], without: NDArray[np.float64]) -> list[float | None]:
    """What was left out did so much; None where it did nothing, or where an item has no text to score."""
    return [
        float(one - other) if min(one, other) > NO_TEXT_SCORE / 2 and abs(one - other) >= SMALLEST_EFFECT else None
        for one, other in zip(whole, without, strict=True)
    ]


def _without_history(question: Question) -> list[_Trial]:
    """Newest first, because the newest says most, and time may not suffice; an item that is there twice goes whole."""
    newest_first = dict.fromkeys(past.item_id for past in reversed(question.history))
    return [
        _Trial("history", name, question.query, [past.text for past in question.history if past.item_id != name])
        for name in list(newest_first)[:MOST_HISTORY]
    ]


def _without_words(question: Question) -> list[_Trial]:
    words = question.query.split()
    different = list(dict.fromkeys(word.casefold() for word in words))
    longest = set(sorted(different, key=len, reverse=True)[:MOST_WORDS])
    history = [past.text for past in question.history]
    return [
        _Trial("query", name, " ".join(word for word in words if word.casefold() != name), history)
        for name in different
        if name in longest
    ]


def _without_fields(item: ShownItem, render: Callable[[Fields], str] | None) -> list[tuple[str, str]]:
    """Fields that the ranker reads, each with the text that is left without it."""
    if render is None:
        return []
    found = []
    for name in item.fields:
        text = render({field: value for field, value in item.fields.items() if field != name})
        if text and text != item.text:
            found.append((name, text))
    return found[:MOST_FIELDS]


def _of_blend(blend: BlendParts | None, place: int) -> list[Reason]:
    if blend is None:
        return []
    row = np.nan_to_num(blend.values[place].astype(np.float64))
    most = np.argsort(-np.abs(row), kind="stable")[:MOST_FEATURES]
    return [Reason("blend", blend.names[one], float(row[one]), "score") for one in most if row[one]]
