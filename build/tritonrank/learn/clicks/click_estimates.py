"""What another order of the same items would have earned, by the clicks on the order that was shown.

Clicks are fewer further down because fewer people look there. In the position-based model (Richardson, Dominowska &
Ragno 2007) a click on an item at place k has the probability p_k r: the place is looked at, and the item is liked.
Where neighbours changed places by lot (``exploring.py`` of the gateway), the log itself tells how p falls from place to
place: the same items, at k and at k + 1 (``looked_at``). With p, three estimates of the clicks that an order would get
in a page:

- inverse propensity (IPS): a click weighs p at the place that the order gives the item, over the p that it had on
  average under the lots; noisy, and too low where the order brings up what was never shown (Joachims, Swaminathan &
  Schnabel 2017);
- self-normalized (SNIPS): the same, divided by what the weights came to against what they had to come to (Swaminathan &
  Joachims 2015);
- doubly robust (DR): what a model of the clicks expects of every item, and IPS of what it got wrong; right when either
  is, and it speaks of items that were not shown, too (Oosterhuis 2022).

Intervals are bootstrapped over users, and p is estimated anew in every resample: its own error is in them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

Estimator = Literal["ips", "snips", "dr"]
ESTIMATORS: tuple[Estimator, ...] = ("ips", "snips", "dr")
RESAMPLES = 1_000
MOST_SUMS = 1_000_000
"""Of resamples and cells, that are computed with at once: 8 MB for each of a dozen arrays."""
LEAST_LOOKED_AT = 0.01
"""A place that is looked at more seldom counts as this: beyond it single clicks would outweigh all others."""
NOT_SHOWN = -1
Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class ShownItems:
    """Items of pages, a row each.

    Attributes:
        user: number of the user, from 0; rows of one user are resampled together.
        page: number of the page, from 0.
        policy_position: place that the ranker gave the item, from 0.
        position: place at which it was shown; NOT_SHOWN for one that the page ended before.
        move_up, move_down: how likely it was to stand one place further up, or down, than the ranker put it.
        clicked: 1 or 0.
    """

    user: Integers
    page: Integers
    policy_position: Integers
    position: Integers
    move_up: Floats
    move_down: Floats
    clicked: Floats


@dataclass(frozen=True)
class Estimate:
    """Clicks per page.

    Attributes:
        value: that the data say.
        low, high: ends of the interval.
        level: how often such intervals hold the truth.
    """

    value: float
    low: float
    high: float
    level: float


def looked_at(shown: ShownItems) -> Floats:
    """How likely each place is looked at, from 0, the first being 1: from neighbours that changed places by lot.

    Of the items that the ranker put at k or k + 1, those that stood at k and those that stood at k + 1 are the same
    ones when each click is weighed by how unlikely it was to be there, so that their clicks are as p_k to p_(k+1)
    (Agarwal et al. 2019). The chain of such ratios is made to fall from place to place (pools of adjacent violators).

    Returns:
        [places] the last one is the last that was shown. Places that nothing moved between count alike.
    """
    cells = _Cells(shown, shown.policy_position)
    (curve,) = cells.looked_at(cells.sums(np.ones((1, cells.users)))[0])
    return np.asarray(curve)


def clicks_per_page(
    shown: ShownItems,
    targets: Sequence[Integers],
    estimator: Estimator = "dr",
    *,
    liked: Floats | None = None,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Clicks per page, were the items of each page in another order; or how many more than in a second order.

    Args:
        shown: what was shown, and what might have been.
        targets: one order or two: [rows] the place that it gives each item of its page, from 0.
        estimator: see above.
        liked: [rows] how likely a model says that the item is clicked where it is looked at, for ``dr``; by default all
            alike, as likely as those that were shown.
        level: of the interval.
        resamples: of users, from whose spread the interval comes.
        seed: of the resamples.

    Raises:
        ValueError: nothing was shown, or there are not one or two orders.
    """
    if not (shown.position >= 0).any() or len(targets) not in (1, 2):
        raise ValueError("expected pages with shown items, and one order or two")
    users = int(shown.user.max()) + 1
    generator = np.random.default_rng(seed)
    weights = np.vstack([np.ones(users), generator.multinomial(users, np.full(users, 1 / users), resamples)])
    pages_of = np.bincount(shown.user[np.unique(shown.page, return_index=True)[1]], minlength=users)
    earned = np.zeros(len(weights))
    for sign, target in zip((1.0, -1.0), targets, strict=False):
        cells = _Cells(shown, target, liked)
        together = max(1, MOST_SUMS // cells.count)
        parts = [weights[start : start + together] for start in range(0, len(weights), together)]
        earned += sign * np.concatenate([cells.clicks(estimator, *cells.sums(part)) for part in parts])
    values = earned / np.maximum(weights @ pages_of, 1.0)
    tail = 50 * (1 - level)
    low, high = np.percentile(values[1:], [tail, 100 - tail])
    return Estimate(float(values[0]), float(low), float(high), level)


class _Cells:
    """Rows that differ in nothing but the user and the click are one cell: there are few, and a resample adds them up.

    Args:
        shown: the rows.
        target: [rows] the place that an order gives each.
        liked: [rows] see ``clicks_per_page``.
    """

    def __init__(self, shown: ShownItems, target: Integers, liked: Floats | None = None) -> None:
        table = np.column_stack([shown.policy_position, shown.position, target, shown.move_up, shown.move_down])
        kinds, cell = np.unique(table, axis=0, return_inverse=True)
        self.users, self.count = int(shown.user.max()) + 1, len(kinds)
        self._policy, self._position, self._target = (kinds[:, place].astype(np.int64) for place in range(3))
        self._up, self._down = kinds[:, 3], kinds[:, 4]
        self._is_shown = self._position >= 0
        self._places = int(self._position.max(initial=0)) + 1
        self._pairs = self._of_pairs()
        self._has_model = liked is not None
        shape = self.users, len(kinds)
        by_row = [shown.clicked, np.ones(len(cell)), np.zeros(len(cell)) if liked is None else liked]
        self._sums = [csr_matrix((values, (shown.user, cell.reshape(-1))), shape=shape) for values in by_row]

    def _of_pairs(self) -> tuple[csr_matrix, csr_matrix]:
        """[cells, places - 1] what a click weighs of items that might have stood at a place or at the next one, where
        they stood at the first, and where at the second."""
        moved = self._position - self._policy
        chance = np.where(moved == 0, 1.0 - self._up - self._down, np.where(moved < 0, self._up, self._down))
        counts = self._is_shown & (chance > 0)
        weight = np.divide(1.0, chance, out=np.zeros_like(chance), where=counts)
        place = np.arange(self._places - 1)
        upper = (self._policy[:, None] == place) & (self._down > 0)[:, None]
        lower = (self._policy[:, None] == place + 1) & (self._up > 0)[:, None]
        here, there = (
            csr_matrix(np.where((upper | lower) & (self._position[:, None] == place + step), weight[:, None], 0.0))
            for step in (0, 1)
        )
        return here, there

    def sums(self, weights: NDArray[np.float64]) -> list[Floats]:
        """Clicks, rows and likings, [resamples, cells] each, of resamples with so many copies of each user."""
        return [np.asarray(weights @ one) for one in self._sums]

    def looked_at(self, clicks: Floats) -> Floats:
        """[resamples, places] p by the clicks of each cell."""
        ratios = np.ones((len(clicks), self._places))
        here, there = (np.asarray(clicks @ pairs) for pairs in self._pairs)
        np.divide(there, here, out=ratios[:, 1:], where=(here > 0) & (there > 0))
        curves = [_falling(curve) for curve in np.cumprod(ratios, axis=1)]
        looked_at: Floats = np.maximum(curves, LEAST_LOOKED_AT)
        return looked_at

    def clicks(self, estimator: Estimator, clicks: Floats, rows: Floats, liked: Floats) -> Floats:
        """[resamples] of all pages together, in the target's order; what is given is [resamples, cells]."""
        curve = self.looked_at(clicks)
        last = curve.shape[1] - 1
        at_target = np.where(self._target <= last, curve[:, np.minimum(self._target, last)], 0.0)
        at_shown = np.where(self._is_shown, curve[:, np.maximum(self._position, 0)], 0.0)
        place = np.minimum(self._policy, last)
        above, below = curve[:, np.maximum(place - 1, 0)], curve[:, np.minimum(place + 1, last)]
        expected = (1.0 - self._up - self._down) * curve[:, place] + self._up * above + self._down * below
        weight = np.where(self._is_shown, at_target / expected, 0.0)
        by_weight: Floats = (weight * clicks).sum(axis=1)
        if estimator == "ips":
            return by_weight
        if estimator == "snips":
            came_to = (weight * at_shown * rows).sum(axis=1)
            due = (at_target * rows * self._is_shown).sum(axis=1)
            by_weight *= np.divide(due, came_to, out=np.zeros_like(due), where=came_to != 0)
            return by_weight
        if not self._has_model:
            looks = (at_shown * rows).sum(axis=1)
            liking = np.divide(clicks.sum(axis=1), looks, out=np.zeros_like(looks), where=looks != 0)
            liked = rows * liking[:, None]
        by_weight += ((at_target - weight * at_shown) * liked).sum(axis=1)
        return by_weight


def _falling(values: Floats) -> Floats:
    """The nearest sequence that never rises (pools of adjacent violators)."""
    pools: list[tuple[float, int]] = []
    for value in values:
        mean, size = float(value), 1
        while pools and pools[-1][0] < mean:
            before, count = pools.pop()
            mean, size = (before * count + mean * size) / (count + size), count + size
        pools.append((mean, size))
    return np.concatenate([np.full(size, mean) for mean, size in pools])
