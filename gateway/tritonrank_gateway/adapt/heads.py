"""The first items of a request ranked, and the rest behind them as it came."""

from dataclasses import replace
from itertools import chain

from tritonrank_client import NO_TEXT_SCORE

from tritonrank_gateway.ranking import Ranking, RankRequest

SPARED = "spared"
"""Why an item has no score: there was no time for it."""


def head_of(request: RankRequest, count: int) -> RankRequest:
    """The request with its first items alone."""
    ids = request.item_ids
    return replace(request, items=request.items[:count], item_ids=None if ids is None else ids[:count])


def with_rest(request: RankRequest, ranking: Ranking, count: int) -> Ranking:
    """The ranking of a whole request, of which the first ``count`` items were ranked: the others follow in their order,
    without a score.

    Args:
        request: the whole.
        ranking: of its head.
        count: items of the head.
    """
    ids, rest = request.item_ids, range(count, len(request.items))
    kept = list(rest)
    if ids is not None:  # of equal ids the best alone stays
        first = {item_id: place for place, item_id in reversed(list(enumerate(ids)))}
        kept = [place for place in rest if first[ids[place]] == place]
    if request.top_k:
        kept = kept[: max(0, request.top_k - len(ranking.indices))]
    unscored = dict(chain((ranking.unscored or {}).items(), ((place, SPARED) for place in rest)))
    return replace(
        ranking,
        indices=[*ranking.indices, *kept],
        logits=[*ranking.logits, *([NO_TEXT_SCORE] * len(kept))],
        item_tokens=None if ranking.item_tokens is None else [*ranking.item_tokens, *(0 for _ in rest)],
        truncated=None if ranking.truncated is None else [*ranking.truncated, *(False for _ in rest)],
        unscored=unscored,
        ranked=count,
    )


def unranked(request: RankRequest) -> Ranking:
    """All items in their order, without a score."""
    nothing = Ranking([], [], "", context_tokens=0, item_tokens=[], truncated=[], unscored={})
    return with_rest(request, nothing, 0)
