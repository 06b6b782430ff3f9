"""Estimates from clicks against the truth of simulated users, who look at places and like items as the model says."""

from dataclasses import dataclass
from functools import cache
from random import Random

import numpy as np
import pytest
from numpy.typing import NDArray
from tritonrank.learn.clicks.click_estimates import (
    ESTIMATORS,
    NOT_SHOWN,
    Estimator,
    ShownItems,
    clicks_per_page,
    looked_at,
)
from tritonrank_recommend.engine.arrange import Situation
from tritonrank_recommend.engine.exploring import explored
from tritonrank_recommend.engine.listing import Listed
from tritonrank_recommend.engine.pages import Entry
from tritonrank_recommend.engine.rules import Explore

PLACES, ITEMS = 6, 9
LOOKED_AT = np.array([1.0, 0.7, 0.5, 0.35, 0.3, 0.25])
RUNS = 40
Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class World:
    """Shown pages, and what nobody else knows: how likely each item is liked, and what the orders truly earn."""

    shown: ShownItems
    liked: Floats
    better: Integers
    """places in the order of who is truly liked"""

    def truth(self, target: Integers) -> float:
        """Clicks per page that an order would earn."""
        curve = np.concatenate([LOOKED_AT, np.zeros(ITEMS)])
        return float((curve[target] * self.liked).sum() / (int(self.shown.page.max()) + 1))


@cache
def simulated(seed: int, users: int = 150, pages: int = 4, swap: float = 0.5) -> World:
    """Users see pages that the gateway's own code has explored; a ranker knows half of what they like."""
    generator, lots = np.random.default_rng(seed), Random(seed)
    rows: list[tuple[int, int, int, int, float, float, float]] = []
    liked: list[float] = []
    better: list[int] = []
    for page in range(users * pages):
        taste = generator.beta(0.6, 1.4, ITEMS)
        order = np.argsort(-(taste + generator.normal(0, 0.4, ITEMS)))
        entries = [Entry(str(item), 0.0, None, []) for item in order]
        places = explored(Listed(entries), Explore(swap=swap, first=PLACES), Situation(now=1.0), lots.random)
        rank = np.argsort(np.argsort(-taste))
        for place, entry in enumerate(places):
            item = int(entry.item_id)
            is_shown = place < PLACES
            clicked = is_shown and generator.random() < LOOKED_AT[place] * taste[item]
            position = place if is_shown else NOT_SHOWN
            rows.append(
                (page // pages, page, entry.policy_position, position, entry.move_up, entry.move_down, float(clicked))
            )
            liked.append(float(taste[item]))
            better.append(int(rank[item]))
    user, number, policy, position, up, down, clicks = map(np.array, zip(*rows, strict=True))
    return World(ShownItems(user, number, policy, position, up, down, clicks), np.array(liked), np.array(better))


def noisy(world: World, seed: int) -> Floats:
    """A model of the clicks that is wrong by half."""
    return np.asarray(0.5 * world.liked + 0.25 * np.random.default_rng(seed).random(len(world.liked)))


def test_swapped_neighbours_tell_how_likely_a_place_is_looked_at() -> None:
    found = looked_at(simulated(0, users=4_000).shown)
    assert found == pytest.approx(LOOKED_AT, abs=0.05)
    assert (np.diff(found) <= 0).all()


def test_plain_clicks_would_call_the_shown_order_worse_than_it_is() -> None:
    """What the estimates are for: by clicks alone places look as if the items there were bad."""
    world = simulated(1, users=2_000)
    is_shown = world.shown.position >= 0
    counts = np.bincount(world.shown.position[is_shown], world.shown.clicked[is_shown])
    liked = np.bincount(world.shown.position[is_shown], world.liked[is_shown])
    assert not np.allclose(counts / counts[0], LOOKED_AT, atol=0.1)
    assert np.allclose(counts / liked, LOOKED_AT, atol=0.05)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_intervals_hold_the_truth_of_the_order_that_was_shown(estimator: Estimator) -> None:
    held = 0
    for seed in range(RUNS):
        world = simulated(seed)
        policy = world.shown.policy_position
        found = clicks_per_page(world.shown, [policy], estimator, liked=noisy(world, seed), resamples=200, seed=seed)
        held += found.low <= world.truth(policy) <= found.high
    assert held >= 0.9 * RUNS


def test_intervals_of_the_doubly_robust_hold_what_a_better_order_gains() -> None:
    """Items that were never shown come up in it; the model of the clicks speaks of them."""
    held = improved = 0
    for seed in range(RUNS):
        world = simulated(seed)
        targets = [world.better, world.shown.policy_position]
        found = clicks_per_page(world.shown, targets, "dr", liked=world.liked, resamples=200, seed=seed)
        truth = world.truth(targets[0]) - world.truth(targets[1])
        held += found.low <= truth <= found.high
        improved += found.low > 0
    assert held >= 0.9 * RUNS
    assert improved >= 0.9 * RUNS
