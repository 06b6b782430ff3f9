"""What a dialect asks for, what it gets, and what stands behind: a Backend."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from tritonrank_client import ModelInfo

if TYPE_CHECKING:  # which needs rankings
    from tritonrank_gateway.versions.shadow import Repeated

Item = str | Mapping[str, Any]
"""A text, or fields that the server renders by its template."""

Side = Literal["live", "canary"]
"""Of the versions that answer: see ``versions``."""
Wish = Literal["item_tokens", "truncated", "context_tokens", "unknown_tokens", "unscored", "fields"]


@dataclass(frozen=True, slots=True)
class RankRequest:
    """Rank items for a context.

    Attributes:
        query: what the user searched for; may be empty.
        items: what to rank.
        history: what the user saw before, newest last.
        item_ids: one per item; of items with the same id only the best is kept.
        top_k: how many to return; 0 is all.
        deadline_s: seconds until nobody needs the answer any more; None is the backend's own.
        want: what to tell beside the ranking.
        max_item_tokens: an item is cut to so many tokens; 0 is the ranker's own budget.
        truncate_left: an item that is too long keeps its end.
        strict: refuse what has nothing to score or lacks a field of the template.
        user: who asks, where that is known: requests of one user go to the same replica, and are answered the same.
        side: which version's turn it is, where that is settled already.
        is_shown: somebody is shown the order; else it only warms or explains, and says nothing of how versions compare.
    """

    query: str
    items: Sequence[Item]
    history: Sequence[Item] = ()
    item_ids: Sequence[str] | None = None
    top_k: int = 0
    deadline_s: float | None = None
    want: tuple[Wish, ...] = ()
    max_item_tokens: int = 0
    truncate_left: bool = False
    strict: bool = False
    user: str = ""
    side: Side | None = None
    is_shown: bool = True


@dataclass(frozen=True, slots=True)
class Ranking:
    """An answer, best first.

    Attributes:
        indices: positions in the request.
        logits: raw scores, one per index; NO_TEXT_SCORE for an item without text.
        artifact: what scored.
        context_tokens: tokens of query and history; this and the next five are None unless wanted.
        item_tokens: tokens of each item, in the order of the request.
        truncated: whether an item lost text to its budget, in the order of the request.
        unscored: position of an item that has no score -> why.
        fields: "missing" and "unknown": by field, how many items and history entries lack it or have it for nothing.
        is_cached: the answer was kept from before.
        unknown_tokens: of the context and of all items, those that the vocabulary does not have.
        ranked: only the first so many items were ranked, the others follow as they came; None: all were.
        version: which one has ranked.
        repeated: what a shadow makes of the same request; None: it was not repeated.
    """

    indices: list[int]
    logits: list[float]
    artifact: str
    context_tokens: int | None = None
    item_tokens: list[int] | None = None
    truncated: list[bool] | None = None
    unscored: Mapping[int, str] | None = None
    fields: Mapping[str, Mapping[str, int]] | None = None
    is_cached: bool = False
    unknown_tokens: tuple[int, int] | None = None
    ranked: int | None = None
    version: Side = "live"
    repeated: "Repeated | None" = None


class Backend(Protocol):
    """Answers requests. Raises tritonrank_client.RankError, whose type says whose fault it is."""

    async def rank(self, request: RankRequest) -> Ranking:
        """The ranking of one request. Cancelling the task gives the request up."""

    async def info(self) -> ModelInfo:
        """What the server says about its model."""

    async def ready(self) -> bool:
        """Whether a request would be answered now."""

    async def close(self) -> None:
        """Close the connections."""
