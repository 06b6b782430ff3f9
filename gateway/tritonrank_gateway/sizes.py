"""How large a request is: in characters, in units of work, in tokens, and whether an item of it was too long."""

from collections.abc import Sequence

from tritonrank_gateway.load import units_of
from tritonrank_gateway.ranking import Ranking, RankRequest
from tritonrank_gateway.refusal import Refusal
from tritonrank_gateway.texts import characters_of


def tokens_of(ranking: Ranking) -> int | None:
    """Tokens that were read: of the context once, and of all candidates; None where the server does not tell."""
    if ranking.item_tokens is None or ranking.context_tokens is None:
        return None
    return ranking.context_tokens + sum(ranking.item_tokens)


def all_characters(asked: RankRequest) -> int:
    """Of all texts of a request."""
    return len(asked.query) + characters_of(asked.history) + characters_of(asked.items)


def units_of_request(asked: RankRequest) -> int:
    """The work of a request, as ``load`` counts it."""
    context = len(asked.query) + characters_of(asked.history)
    return units_of(characters_of(asked.items), len(asked.items), context)


def refuse_truncated(ranking: Ranking, field: str, cut: Sequence[int]) -> None:
    """Refuse a request whose caller wants no item cut.

    Args:
        ranking: that says which were, where the ranker tells it.
        field: what the dialect calls the items.
        cut: places of those that were cut before.

    Raises:
        Refusal: an item was.
    """
    truncated = cut if ranking.truncated is None else [place for place, was in enumerate(ranking.truncated) if was]
    if truncated:
        first = truncated[0]
        more = f", and {len(truncated) - 1} more" if len(truncated) > 1 else ""
        said = f"{field}[{first}]: too long for the ranker{more}; shorten it, or let it be truncated"
        raise Refusal("too_large", said)
