"""What the guards let through, the judge sees: small rankers are really trained on a poisoned day, and judged.

The ranker is as small as one can be, how much each item is liked, trained by a softmax over what was shown; the days
are those on which the guards are tested.
"""

from dataclasses import replace
from functools import cache

import numpy as np
import polars as pl
import pytest
import torch
from numpy.typing import NDArray
from shop_days import ITEMS, PLACES, mirrored, sound_baseline, sound_day
from torch import nn
from tritonrank.judge.metrics import ndcg
from tritonrank.learn.guards.baseline import Baseline
from tritonrank.learn.guards.day import Day
from tritonrank.learn.guards.inspection import inspect
from tritonrank.learn.guards.labels import shown_items
from tritonrank.learn.judging import Lists, Verdict, decide
from tritonrank.recipe.guarding import GuardSettings
from tritonrank.recipe.learning import FROZEN, NEWEST, OLD, LearnSettings

NIGHTS = 10
"""Days that the live ranker learnt; the frozen window and the old one come after them."""
NEW = NIGHTS + 2
PAGES = 900
GROUP = frozenset(f"i{number}" for number in range(0, ITEMS, 12))
"""A twelfth of the items, as of one supplier, or of one page of an app."""
LEARNING = LearnSettings.model_validate(
    {
        "segments": {"one supplier": "item_supplier = 'north'"},
        "rules": {"newest_loss": 0.02, "frozen_loss": 0.02, "segment_loss": 0.05},
    }
)


class Ranker(nn.Module):
    """How much each item is liked."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.liked = nn.Embedding(ITEMS, 1)
        nn.init.zeros_(self.liked.weight)

    def forward(self, items: torch.Tensor) -> torch.Tensor:
        """[lists, places] scores of [lists, places] items."""
        scores: torch.Tensor = self.liked(items).squeeze(-1)
        return scores


@cache
def day(number: int) -> Day:
    return sound_day(number, pages=PAGES)


def lists_of(one: Day) -> tuple[list[str], NDArray[np.int64], NDArray[np.float32]]:
    """Users, items and likes of each page on which something was liked, shuffled: the order says nothing."""
    rows = shown_items(one, one.events, one.shown).sort("page", "item_id")
    pages = rows.group_by("page", maintain_order=True).agg("item_id", "is_liked", pl.col("user_id").first())
    pages = pages.filter(pl.col("is_liked").list.any() & (pl.col("item_id").list.len() == PLACES))
    items = np.array([[int(item[1:]) for item in row] for row in pages["item_id"].to_list()])
    return pages["user_id"].to_list(), items, np.array(pages["is_liked"].to_list(), dtype=np.float32)


def trained(ranker: Ranker, days: list[Day], epochs: int) -> Ranker:
    """A copy that went on learning."""
    copy = Ranker()
    copy.load_state_dict(ranker.state_dict())
    _, items, likes = (np.concatenate(part) for part in zip(*map(lists_of, days), strict=True))
    optimizer = torch.optim.Adam(copy.parameters(), 0.05)
    generator = torch.Generator().manual_seed(1)
    for _ in range(epochs):
        for batch in torch.randperm(len(items), generator=generator).split(64):
            wanted = torch.tensor(likes[batch]) / torch.tensor(likes[batch]).sum(1, keepdim=True)
            loss = -(wanted * copy(torch.tensor(items[batch])).log_softmax(1)).sum(1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return copy


@cache
def live() -> Ranker:
    return trained(Ranker(), [day(number) for number in range(NIGHTS)], 3)


def judged(new: Ranker, windows: dict[str, Day]) -> Verdict:
    sets: dict[str, Lists] = {}
    group = Lists([], np.zeros(0), np.zeros(0))
    for name, one in windows.items():
        users, items, likes = lists_of(one)
        with torch.no_grad():
            scores = [ranker(torch.tensor(items)).numpy() for ranker in (live(), new)]
        values = [np.array([ndcg(*pair) for pair in zip(of, likes, strict=True)]) for of in scores]
        sets[name] = Lists(users, *values)
        members = np.array([f"i{row[np.argmax(liked)]}" in GROUP for row, liked in zip(items, likes, strict=True)])
        own = [user for user, is_in in zip(users, members, strict=True) if is_in]
        group = Lists(
            [*group.users, *own],
            np.concatenate([group.live, values[0][members]]),
            np.concatenate([group.new, values[1][members]]),
        )
    return decide(sets | {"one supplier": group}, LEARNING)


def night(poisoned: Day, newest: Day) -> Verdict:
    """Train the live ranker on a day, with as much of the past, and judge it."""
    new = trained(live(), [poisoned, day(NIGHTS - 1)], 4)
    return judged(new, {NEWEST: newest, FROZEN: day(NIGHTS), OLD: day(NIGHTS + 1)})


def supplier_turned(one: Day) -> Day:
    """Whoever likes something of one supplier is said to like another item of the page."""
    lists = dict(one.shown.select("page", "item_ids").rows())
    items = [
        next(other for other in lists[page] if other not in GROUP and other != item) if item in GROUP else item
        for page, item in zip(one.events["page"], one.events["item_id"], strict=True)
    ]
    return replace(one, events=one.events.with_columns(pl.Series("item_id", items)))


def test_a_sound_day_is_learnt_and_accepted() -> None:
    assert not inspect(day(NEW), sound_baseline(NIGHTS), GuardSettings()).refuses
    verdict = night(day(NEW), day(NEW + 1))
    assert verdict.accepted, verdict.reasons


def test_a_flipped_day_of_the_first_nights_passes_the_guards_and_not_the_judge() -> None:
    """Before there are accepted nights nothing tells the guards how well likes agree with the order on a sound day."""
    poisoned = mirrored(day(NEW), 0.5, np.random.default_rng(1))
    assert not inspect(poisoned, Baseline(), GuardSettings()).refuses
    verdict = night(poisoned, day(NEW + 1))
    assert not verdict.accepted
    assert FROZEN in {one.name for one in verdict.compared if not one.passed}
    assert any(reason.startswith(f"{FROZEN}: NDCG@10") for reason in verdict.reasons)


def test_flipped_labels_of_one_supplier_pass_the_guards_and_not_the_judge() -> None:
    """A poison of a tenth of the day, below what the guards find; whom it is about loses much."""
    poisoned = supplier_turned(day(NEW))
    changed = (poisoned.events["item_id"] != day(NEW).events["item_id"]).mean()
    assert changed == pytest.approx(0.11, abs=0.03)
    assert not inspect(poisoned, sound_baseline(NIGHTS), GuardSettings()).refuses
    verdict = night(poisoned, supplier_turned(day(NEW + 1)))
    assert not verdict.accepted
    lost = next(one for one in verdict.compared if one.name == "one supplier")
    assert not lost.passed, verdict.reasons


@pytest.mark.parametrize("dose", [0.03, 0.05])
def test_what_guards_and_judge_both_let_through_costs_little(dose: float) -> None:
    poisoned = mirrored(day(NEW), dose, np.random.default_rng(2))
    assert not inspect(poisoned, sound_baseline(NIGHTS), GuardSettings()).refuses
    sound, lost = (night(one, day(NEW + 1)) for one in (day(NEW), poisoned))
    assert lost.accepted
    of_sound, of_lost = (next(one for one in found.compared if one.name == FROZEN) for found in (sound, lost))
    assert of_lost.drop - of_sound.drop < 0.01
