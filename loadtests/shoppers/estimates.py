"""Estimates by clicks, held against what is true: how often their intervals hold what an order of items really earns.

The pages are those of a log, with the lots that were drawn for them. A run draws anew who looks where and clicks what,
by the chances that nobody but the simulator knows; the estimates see the clicks of that run alone. What an order earns
by these chances is the truth, so that the share of runs whose interval holds it can be counted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from tritonrank.learn.clicks.click_estimates import ESTIMATORS, Estimator, Integers, clicks_per_page
from tritonrank.learn.lists.shown_lists import ShownPages

from loadtests.shoppers.visits import LOOKED_AT, PLACES
from loadtests.shoppers.world import Floats

RUNS, LEVEL, RESAMPLES = 60, 0.95, 200
Chances = Mapping[str, Mapping[str, float]]
"""By page and item, how likely a look ends in a click."""


@dataclass(frozen=True)
class Held:
    """How an estimate did.

    Attributes:
        estimator: which.
        order: whose clicks per page it tells: that of the ranker, before lots were drawn; the best one; or how many
            more the best one gets.
        truth: clicks per page.
        mean: of the estimates.
        width: of the intervals, on average.
        runs: that were made.
        held: of these, whose interval holds the truth.
    """

    estimator: Estimator
    order: str
    truth: float
    mean: float
    width: float
    runs: int
    held: int

    def as_json(self) -> dict[str, Any]:
        """For a file of results."""
        return asdict(self)


def check_estimates(pages: ShownPages, chances: Chances, *, runs: int = RUNS, seed: int = 0) -> list[Held]:
    """Every estimator for the ranker's order, the best one, and the difference.

    Args:
        pages: of the log.
        chances: of their items; pages that are not named are left out.
        runs: draws of all clicks.
        seed: of them.
    """
    told = zip(pages.items["page"].to_list(), pages.items["item_id"].to_list(), strict=True)
    chance = np.array([chances.get(page, {}).get(item, -1.0) for page, item in told])
    known = chance >= 0
    shown = replace(
        pages.shown, **{name: getattr(pages.shown, name)[known] for name in pages.shown.__dataclass_fields__}
    )
    shown = replace(shown, user=_renumbered(shown.user), page=_renumbered(shown.page))
    chance = chance[known]
    best = _best_order(shown.page, chance)
    orders: dict[str, Sequence[Integers]] = {
        "ranker": [shown.policy_position],
        "best": [best],
        "best less ranker": [best, shown.policy_position],
    }
    random = np.random.default_rng(seed)
    clicks = [(random.random(len(chance)) < _looks(shown.position) * chance).astype(float) for _ in range(runs)]
    found = []
    for name, targets in orders.items():
        earned = [float((_looks(target) * chance).sum() / (shown.page.max() + 1)) for target in targets]
        truth = earned[0] - sum(earned[1:])
        for estimator in ESTIMATORS:
            estimates = [
                clicks_per_page(
                    replace(shown, clicked=clicked), targets, estimator, level=LEVEL, resamples=RESAMPLES, seed=run
                )
                for run, clicked in enumerate(clicks)
            ]
            mean, width = (
                float(np.mean(values))
                for values in ([one.value for one in estimates], [one.high - one.low for one in estimates])
            )
            held = sum(one.low <= truth <= one.high for one in estimates)
            found.append(Held(estimator, name, truth, mean, width, runs, held))
    return found


def _looks(position: Integers) -> Floats:
    """[rows] how likely each is looked at; what the page ended before is not."""
    is_seen = (position >= 0) & (position < PLACES)
    return np.where(is_seen, LOOKED_AT[np.clip(position, 0, PLACES - 1)], 0.0)


def _best_order(page: Integers, chance: Floats) -> Integers:
    """[rows] the place of each item where the items of each page stand by their chances."""
    by_page = np.lexsort((-chance, page))
    first = np.searchsorted(page[by_page], np.arange(page.max() + 1))
    places = np.empty(len(page), dtype=np.int64)
    places[by_page] = np.arange(len(page)) - first[page[by_page]]
    return places


def _renumbered(numbers: Integers) -> Integers:
    """The same groups, numbered from 0 without gaps."""
    return np.unique(numbers, return_inverse=True)[1].reshape(-1).astype(np.int64)
