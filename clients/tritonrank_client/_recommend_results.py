"""What the calls around `recommend` take and return: small frozen records, the same over every protocol."""

import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

EventType = Literal["view", "click", "cart", "purchase", "rating", "skip", "search"]


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that a user did. It has an id from the beginning: the same event, sent again, counts once.

    Attributes:
        user_id: who.
        type: what.
        item_id: on which item; none for a search.
        query: what was searched for, here or on the page that showed the item.
        value: of a rating 0.5 to 5; of a purchase what was paid.
        page: `Recommendations.page` of the list that showed the item.
        position: of the item in that list, from 0.
        timestamp: unix seconds; now, unless given.
        event_id: made up, unless given.
    """

    user_id: str
    type: EventType
    item_id: str | int = ""
    query: str = ""
    value: float | None = None
    page: str = ""
    position: int | None = None
    timestamp: float = field(default_factory=time.time)
    event_id: str = field(default_factory=lambda: secrets.token_hex(16))


@dataclass(frozen=True, slots=True)
class Reason:
    """One thing that raised or lowered an item.

    Attributes:
        kind: "history", "query", "field" or "blend".
        name: the item of the history by its id, the word, the field, or the feature of the blend.
        effect: the score with it minus the score without it.
        of: which score: the ranker's "logit", or the blend's "score".
    """

    kind: str
    name: str
    effect: float
    of: str = "logit"


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why an item stands where it stands.

    Attributes:
        reasons: by the size of their effect.
        sentence: those that raised it most, for a reader.
        left_out: what was not looked at, because time was over or the ranker did not answer.
    """

    reasons: tuple[Reason, ...]
    sentence: str
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RecommendedItem:
    """One place of a list.

    Attributes:
        item_id: its id.
        position: in the whole list, from 0.
        score: what it was ordered by.
        fields: of the item.
        sources: that brought it, with its rank in each, from 0.
        logit: the ranker's score; None where the ranker was not heard.
        explanation: where it was asked for.
    """

    item_id: str
    position: int
    score: float
    fields: Mapping[str, Any]
    sources: Mapping[str, int] = field(default_factory=dict)
    logit: float | None = None
    explanation: Explanation | None = None


@dataclass(frozen=True, slots=True)
class Recommendations:
    """An answered `recommend` call: one page of a list.

    Attributes:
        items: best first.
        page: token of the whole list, for `Event.page`.
        cursor: of the next page; empty on the last one.
        cold: nothing was known of the user.
        degraded: a part did not answer, and the list is what could be made without it.
        degraded_reasons: such as "ranker: overloaded", "store: unavailable".
        artifacts: what made the list, by part: "ranker", "catalogue", "blend".
        milliseconds: of the server by step: "profile", "retrieve", "rank", "blend", "total".
        seconds: wall-clock time of the whole call, retries and pauses included.
        attempts: requests sent.
    """

    items: tuple[RecommendedItem, ...]
    page: str
    cursor: str
    cold: bool
    degraded: bool
    degraded_reasons: tuple[str, ...]
    artifacts: Mapping[str, str]
    milliseconds: Mapping[str, float]
    seconds: float
    attempts: int

    @property
    def item_ids(self) -> tuple[str, ...]:
        """Ids, best first."""
        return tuple(item.item_id for item in self.items)


@dataclass(frozen=True, slots=True)
class SimilarItems:
    """An answered `similar` call; fields as of `Recommendations`."""

    items: tuple[RecommendedItem, ...]
    artifacts: Mapping[str, str]
    seconds: float
    attempts: int

    @property
    def item_ids(self) -> tuple[str, ...]:
        """Ids, most similar first."""
        return tuple(item.item_id for item in self.items)


@dataclass(frozen=True, slots=True)
class Explanations:
    """An answered `explain` call.

    Attributes:
        items: from each item's id to why it stands where it stands.
        unknown: ids that are not in the catalogue.
        degraded_reasons: what could not be asked.
        artifacts: what was asked, by part.
        seconds: wall-clock time of the whole call, retries and pauses included.
        attempts: requests sent.
    """

    items: Mapping[str, Explanation]
    unknown: tuple[str, ...]
    degraded_reasons: tuple[str, ...]
    artifacts: Mapping[str, str]
    seconds: float
    attempts: int


@dataclass(frozen=True, slots=True)
class EventsTaken:
    """An answered `send_events` call.

    Attributes:
        accepted: events that count now.
        duplicates: events that counted before.
        seconds: wall-clock time of the whole call.
        attempts: requests sent, for all batches together.
    """

    accepted: int
    duplicates: int
    seconds: float
    attempts: int


@dataclass(frozen=True, slots=True)
class ItemsChanged:
    """An answered `put_items` or `delete_items` call.

    Attributes:
        changed: items that were added or changed.
        removed: items that were removed.
        is_kept: the change outlasts a restart, because the gateway has a store.
        seconds: wall-clock time of the whole call.
        attempts: requests sent, for all batches together.
    """

    changed: int
    removed: int
    is_kept: bool
    seconds: float
    attempts: int
