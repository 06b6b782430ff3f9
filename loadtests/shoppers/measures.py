"""How good a page truly was, and how much better one system's pages were than another's."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from tritonrank.judge.metrics import Interval, interval

from loadtests.shoppers.visits import LOOKED_AT, Step, clicked_when_looked_at
from loadtests.shoppers.world import Floats, World

FIRST = 10
"""Items of a page that count."""


@dataclass(frozen=True)
class ShownPage:
    """A page as it was shown, and what it was worth.

    Attributes:
        user: who saw it.
        day: number of the day.
        query: what was searched for; empty on the home page.
        items: from the top.
        ndcg: of the first ten, the gains being how likely the person likes each item; 1 is the best order of all items
            that are sold and that the person has not bought or turned down.
        clicks: that are to be expected, by how likely each place is looked at and each item is liked.
        regret: clicks that the best order would get beyond those.
        ranker: artifact that ranked; empty where none did.
        degraded: what was missing, as the answer says.
        page: token of the page, as the log has it.
        chances: by item how likely a look at it ends in a click.
    """

    user: str
    day: int
    query: str
    items: tuple[str, ...]
    ndcg: float
    clicks: float
    regret: float
    ranker: str = ""
    degraded: str = ""
    page: str = ""
    chances: tuple[float, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """For a file of results."""
        return asdict(self)


def measured(
    world: World,
    step: Step,
    items: Sequence[str],
    liked: Floats,
    *,
    page: str = "",
    ranker: str = "",
    degraded: str = "",
) -> ShownPage:
    """What a page was worth.

    Args:
        world: the truth.
        step: what was asked for.
        items: of the page.
        liked: [all items] ``visits.liked_in`` at that moment.
        page: its token.
        ranker: that ranked.
        degraded: what was missing.
    """
    shown = liked[[world.place[item] for item in items]]
    gains = shown[:FIRST]
    best = np.sort(liked)[::-1][:FIRST]
    clicks, most = (float(LOOKED_AT[: len(one)] @ clicked_when_looked_at(one)) for one in (gains, best))
    return ShownPage(
        user=world.users[step.user],
        day=step.day,
        query=step.query,
        items=tuple(items),
        ndcg=_dcg(gains) / _dcg(best),
        clicks=clicks,
        regret=most - clicks,
        ranker=ranker,
        degraded=degraded,
        page=page,
        chances=tuple(clicked_when_looked_at(shown).tolist()),
    )


@dataclass(frozen=True)
class Gain:
    """By how much the pages of one system were better than those of another, as means over the users.

    Attributes:
        ndcg, clicks: the differences of both measures, with 95% intervals over users.
        users: who saw pages of both.
        pages: that they saw of the first.
    """

    ndcg: Interval
    clicks: Interval
    users: int
    pages: int

    def as_json(self) -> dict[str, Any]:
        """For a file of results."""
        return asdict(self)


def gain(pages: Iterable[ShownPage], others: Iterable[ShownPage], seed: int = 0) -> Gain:
    """Each user's mean over the pages of one system against the same user's mean in the other.

    A user is one observation, however many pages: what somebody likes is the same on all of them.

    Raises:
        ValueError: nobody saw pages of both.
    """
    one, other = _by_user(pages), _by_user(others)
    users = sorted(set(one) & set(other))
    if not users:
        raise ValueError("no user saw pages of both systems")
    differences = {
        measure: [
            float(np.mean([getattr(page, measure) for page in one[user]]))
            - float(np.mean([getattr(page, measure) for page in other[user]]))
            for user in users
        ]
        for measure in ("ndcg", "clicks")
    }
    return Gain(
        interval(differences["ndcg"], seed=seed),
        interval(differences["clicks"], seed=seed),
        len(users),
        sum(len(one[user]) for user in users),
    )


def _by_user(pages: Iterable[ShownPage]) -> dict[str, list[ShownPage]]:
    found: defaultdict[str, list[ShownPage]] = defaultdict(list)
    for page in pages:
        found[page.user].append(page)
    return found


def _dcg(gains: Floats) -> float:
    return float(gains @ (1 / np.log2(np.arange(2, len(gains) + 2))))
