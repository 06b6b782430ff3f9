"""The judge of nights: what it lets through, what it refuses, and how often it is wrong, on judged lists whose truth is
known."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tritonrank.errors import ArtifactError
from tritonrank.learn.guards.baseline import Measure
from tritonrank.learn.judging import Lists, Verdict, decide
from tritonrank.recipe.learning import FROZEN, NEWEST, OLD, LearnSettings

USERS = 400
DEVIATION = 0.08
"""Of the differences between two rankers on one list, as between a ranker and its INT8 graph."""
LIVE = 0.4
RUNS = 20
"""docs/learn.md has the shares of 500."""
SMALL: dict[str, Any] = {"newest_loss": 0.03, "frozen_loss": 0.03}
"""Rules that so many users can be judged by."""


def lists(generator: np.random.Generator, change: float = 0.0, users: int = USERS, per_user: int = 1) -> Lists:
    """Judged lists of a live ranker, and of a new one whose true mean is so much higher, relatively."""
    names = [f"u{number}" for number in range(users) for _ in range(per_user)]
    live = np.clip(generator.normal(LIVE, 0.25, users).repeat(per_user) + generator.normal(0, 0.05, len(names)), 0, 1)
    own = generator.normal(0, DEVIATION, users).repeat(per_user)
    return Lists(names, live, live + own + change * LIVE + generator.normal(0, DEVIATION / 4, len(names)))


def windows(generator: np.random.Generator, **changes: float) -> dict[str, Lists]:
    return {name: lists(generator, changes.get(name, 0.0)) for name in (NEWEST, FROZEN, OLD)}


def learning(segments: Mapping[str, str] | None = None, **rules: Any) -> LearnSettings:
    return LearnSettings.model_validate({"segments": segments or {}, "rules": SMALL | rules})


def test_a_better_ranker_is_accepted_and_says_what_it_gained() -> None:
    verdict = decide(windows(np.random.default_rng(1), newest=0.1), learning())
    assert verdict.accepted
    assert verdict.refused == ""
    assert [one.name for one in verdict.compared] == [NEWEST, FROZEN, OLD]
    newest = verdict.compared[0]
    assert newest.drop == pytest.approx(-0.1, abs=0.03)
    assert newest.low < newest.drop < newest.high < 0
    assert "gained" in newest.reason
    assert f"{-newest.drop:.2%}" in newest.reason
    assert "learn.rules.newest_loss is 3.00%" in newest.reason


@pytest.mark.parametrize("window", [NEWEST, FROZEN, OLD])
def test_a_ranker_that_lost_in_one_window_is_refused_for_that_alone(window: str) -> None:
    """What forgets the past is refused however good it is today."""
    gains = dict.fromkeys((NEWEST, FROZEN, OLD), 0.2) | {window: -0.08}
    verdict = decide(windows(np.random.default_rng(2), **gains), learning())
    assert not verdict.accepted
    assert [one.name for one in verdict.compared if not one.passed] == [window]
    assert verdict.refused.startswith(f"{window}: NDCG@10 0.")
    assert "lost" in verdict.refused


def test_a_bad_ranker_hardly_ever_passes_and_an_equal_one_mostly_does() -> None:
    """With 400 users and 3% allowed: one that truly loses three times as much passes by chance less than once in 20."""
    outcomes: dict[float, list[bool]] = {0.0: [], -0.09: []}
    for change, passed in outcomes.items():
        for seed in range(RUNS):
            generator = np.random.default_rng((seed, 3))
            passed.append(decide(windows(generator, newest=change), learning(), seed=seed).accepted)
    assert sum(outcomes[-0.09]) <= 2
    assert sum(outcomes[0.0]) >= RUNS - 3


def test_too_few_users_to_show_that_little_was_lost_are_a_no() -> None:
    generator = np.random.default_rng(4)
    few = {name: lists(generator, 0.0, users=45) for name in (NEWEST, FROZEN, OLD)}
    verdict = decide(few, learning(newest_loss=0.01, frozen_loss=0.01))
    assert not verdict.accepted
    assert "too few users to decide" in verdict.refused or "lost" in verdict.refused


@pytest.mark.parametrize("missing", [NEWEST, FROZEN, OLD, "cold users"])
def test_what_was_not_judged_is_never_accepted(missing: str) -> None:
    generator = np.random.default_rng(5)
    sets = windows(generator, newest=0.1) | {"cold users": lists(generator, 0.1, users=60)}
    settings = learning({"cold users": "history_items < 3"})
    assert decide(sets, settings).accepted
    del sets[missing]
    verdict = decide(sets, settings)
    assert not verdict.accepted
    assert f"{missing}: 0 users were judged, fewer than 30" in verdict.refused
    assert not decide({}, settings).accepted
    sets[missing] = lists(generator, 0.1, users=29, per_user=10)
    assert f"{missing}: 29 users were judged" in decide(sets, settings).refused


def test_users_count_and_not_their_lists() -> None:
    """Lists of one user are alike: four hundred of forty users tell hardly more than forty lists."""
    few = decide(windows_of(users=40, per_user=10), learning())
    many = decide(windows_of(users=400, per_user=1), learning())
    width = [one.compared[0].high - one.compared[0].low for one in (few, many)]
    assert width[0] > 2.2 * width[1]
    assert (few.compared[0].users, few.compared[0].lists) == (40, 400)


def windows_of(users: int, per_user: int) -> dict[str, Lists]:
    generator = np.random.default_rng(6)
    return {name: lists(generator, 0.0, users, per_user) for name in (NEWEST, FROZEN, OLD)}


def test_many_segments_refuse_an_equal_ranker_no_oftener_than_one_does() -> None:
    """Of twelve segments of an equal ranker one is certainly worse, each looked at by itself, in nearly half of the
    nights; together they are in one of twenty."""
    names = [f"part {number}" for number in range(12)]
    settings = learning(dict.fromkeys(names, "true"), segment_loss=0.001, segment_bound=0.9, frozen_loss=0.9)
    refused, alone = [], []
    for seed in range(RUNS):
        generator = np.random.default_rng((seed, 7))
        window = lists(generator, 0.05, users=12 * 60)
        sets = {NEWEST: window, FROZEN: window, OLD: window}
        base = lists(generator, 0.0, users=12 * 60)
        for number, name in enumerate(names):
            part = slice(60 * number, 60 * (number + 1))
            sets[name] = Lists(base.users[part], base.live[part], base.new[part])
        verdict = decide(sets, settings, seed=seed)
        parts = [one for one in verdict.compared if one.is_segment]
        refused.append(not all(one.passed for one in parts))
        alone.append(any(one.low > 0 for one in parts))
    assert sum(refused) <= 3
    assert sum(alone) >= 5


def test_a_segment_that_was_forgotten_is_refused_by_name() -> None:
    generator = np.random.default_rng(8)
    sets = windows(generator, newest=0.1, frozen=0.1) | {
        "cold users": lists(generator, -0.15, users=150),
        "lamps": lists(generator, 0.02, users=150),
    }
    settings = learning({"cold users": "history_items < 3", "lamps": "item_category = 'lamp'"})
    verdict = decide(sets, settings)
    assert verdict.reasons[0].startswith("cold users: ")
    assert len(verdict.reasons) == 1
    allowed = learning(settings.segments, segment_losses={"cold users": 0.5})
    assert decide(sets, allowed).accepted


def test_a_disaster_in_a_small_segment_has_to_be_excluded() -> None:
    generator = np.random.default_rng(9)
    calm = lists(generator, 0.0, users=32)
    wild = Lists(calm.users, calm.live, calm.live + np.tile([0.6, -0.6], 16))
    verdict = decide(windows(generator, newest=0.1) | {"few": wild}, learning({"few": "true"}))
    assert not verdict.accepted
    assert "too few users to decide; learn.rules.segment_bound is 25%" in verdict.refused


def test_a_gain_that_is_asked_for_has_to_be_there_beyond_chance() -> None:
    generator = np.random.default_rng(10)
    settings = learning(least_gain=0.03)
    assert decide(windows(generator, newest=0.1), settings).accepted
    verdict = decide(windows(generator, newest=0.01), settings)
    assert not verdict.accepted
    assert "learn.rules.least_gain asks for 3.00%" in verdict.refused


def test_newest_labels_that_turned_against_the_live_ranker_are_refused() -> None:
    """A new ranker that follows flipped labels gains on them; the live one shows that they are not what they were."""
    sound = [Measure(LIVE + 0.01 * number, 0.012) for number in (-2, -1, 0, 1, 2, 0)]
    generator = np.random.default_rng(11)
    assert decide(windows(generator, newest=0.1), learning(), sound).accepted
    turned = windows(generator) | {
        NEWEST: Lists([f"u{one}" for one in range(200)], np.full(200, 0.2), np.full(200, 0.5))
    }
    verdict = decide(turned, learning(), sound)
    assert verdict.compared[0].passed
    assert "the live ranker itself has an NDCG@10 of 0.200" in verdict.refused
    assert decide(turned, learning(), sound[:3]).accepted, "three nights do not tell how much nights differ"
    assert verdict.live_on_newest == Measure(pytest.approx(0.2), pytest.approx(0.0))


def test_a_verdict_survives_its_file(tmp_path: Path) -> None:
    verdict = decide(windows(np.random.default_rng(12), newest=-0.2), learning())
    verdict.write(tmp_path / "verdict.json")
    told = json.loads((tmp_path / "verdict.json").read_text(encoding="utf-8"))
    assert Verdict.of_json(told) == verdict
    with pytest.raises(ArtifactError, match="a night's verdict cannot be read"):
        Verdict.of_json({"accepted": True})


def test_the_same_lists_give_the_same_verdict() -> None:
    sets = windows(np.random.default_rng(13))
    assert decide(sets, learning(), seed=5) == decide(sets, learning(), seed=5)
