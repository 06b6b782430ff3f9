"""A blend in two stages: what the first chooses to be read, what the second makes of it, and the gate for both."""

from collections.abc import Callable
from contextlib import nullcontext
from unittest.mock import Mock

import numpy as np
import pytest
from numpy.typing import NDArray
from tritonrank.errors import GateError
from tritonrank.retrieval.blend_learning import learn
from tritonrank.retrieval.blend_lists import WITHHELD, BlendList, Moment, blend_list
from tritonrank.retrieval.blend_make import _require_first
from tritonrank.retrieval.levels import served_order
from tritonrank.retrieval.two_stages import Lessons, fall, learn_stages
from tritonrank_recommend.blend.features import feature_matrix
from tritonrank_recommend.catalogue.interface import Candidates

NAMES = ["ranker", "ranker.z", "fused", "score.ease.z", "popularity"]
SIZE, RANKED = 40, 10
Scores = NDArray[np.float32]
Knows = Callable[[np.random.Generator, int], tuple[Scores, Scores]]
"""(random, place of what the user likes) -> EASE's scores and the ranker's"""


def both_know(random: np.random.Generator, liked: int) -> tuple[Scores, Scores]:
    """EASE brings it among the first, and the ranker then tells it from the others there."""
    ease = random.normal(size=SIZE).astype(np.float32)
    ease[liked] += 2.5
    logits = (random.normal(size=SIZE) + ease / 2).astype(np.float32)
    logits[liked] += 2
    return ease, logits


def the_ranker_knows(random: np.random.Generator, liked: int) -> tuple[Scores, Scores]:
    ease, logits = random.normal(size=(2, SIZE)).astype(np.float32)
    logits[liked] += 4
    return ease, logits


def lists_of(users: int, knows: Knows, *, split: int, suffix: str = "") -> list[BlendList]:
    """One list of each user; ``split`` makes those of other moments other ones."""
    made = []
    for user in range(users):
        random = np.random.default_rng([user, split])
        liked = int(random.integers(SIZE))
        ease, logits = knows(random, liked)
        found = Candidates(
            ids=[f"i{number}" for number in range(SIZE)],
            fused=np.linspace(1, 0.5, SIZE, dtype=np.float32),
            ranks={},
            scores={"ease": ease},
            popularity=random.random(SIZE).astype(np.float32),
            age_days=np.full(SIZE, np.nan, dtype=np.float32),
            texts=[""] * SIZE,
            fields=[{}] * SIZE,
        )
        moment = Moment(f"u{user}:{split}{suffix}", "", [], [], f"i{liked}", 0.0)
        made.append(blend_list(moment, found, feature_matrix(NAMES, found, logits), logits))
    return made


def lessons_of(knows: Knows, users: int = 120) -> Lessons:
    cold = lists_of(users // 5, knows, split=1, suffix=WITHHELD)
    return Lessons([*lists_of(users, knows, split=1), *cold], NAMES, [], [], 1)


def test_where_all_is_read_there_is_one_stage() -> None:
    lessons = lessons_of(both_know)
    stages = learn_stages(lessons, "linear", 0)
    assert stages.first_file is None
    assert stages.served().ranked == 0
    assert stages.blend.linear == learn(lessons.lists, NAMES, "linear", [], [], 1).linear


def test_the_first_stage_asks_nothing_of_the_ranker() -> None:
    stages = learn_stages(lessons_of(both_know), "linear", RANKED)
    assert stages.first_file is not None
    assert stages.first_file.features == ["fused", "score.ease.z", "popularity"]
    assert learn_stages(lessons_of(both_know, users=20), "linear", RANKED).first_file is None, "too few to learn from"


def test_what_it_means_not_to_be_read_is_learnt() -> None:
    """Of whole lists it cannot be: there, what is not known is taken for average."""
    lessons = lessons_of(both_know)
    served, whole = (learn_stages(lessons, "linear", ranked).blend.linear for ranked in (RANKED, 0))
    assert served is not None
    assert whole is not None
    assert whole.unknown == [0.0] * len(NAMES)
    assert min(map(abs, served.unknown[:2])) > 0.05, "of the ranker's two features"


@pytest.mark.parametrize("method", ["linear", "lambdamart"])
def test_two_stages_serve_what_is_liked(method: str) -> None:
    stages = learn_stages(lessons_of(both_know), method, RANKED)
    served = stages.served("blend-1", orders_unranked=True)
    assert (served.artifact, served.method, served.ranked) == ("blend-1", method, RANKED)
    places = [served_order(served, one).index(one.moment.positive) for one in lists_of(60, both_know, split=2)]
    assert np.mean(np.array(places) < 10) >= 0.85


@pytest.mark.parametrize(("knows", "passes"), [(both_know, True), (the_ranker_knows, False)])
def test_reading_the_first_alone_has_to_pass_a_gate(knows: Knows, passes: bool) -> None:
    lessons = lessons_of(knows)
    stages = learn_stages(lessons, "linear", RANKED)
    found = fall(lessons, stages, lists_of(120, knows, split=2), 0.05, orders_unranked=True)
    assert found.passed == passes, found.reason
    draft = Mock(metrics={})
    with nullcontext() if passes else pytest.raises(GateError, match=r"blend\.ranked=0"):
        _require_first(RANKED, found, draft)
    assert draft.metrics["gate against whole lists"]["passed"] == passes


def test_a_user_counts_once_and_what_was_withheld_does_not() -> None:
    lessons = lessons_of(both_know, users=15)
    stages = learn_stages(lessons, "linear", RANKED)
    found = fall(lessons, stages, lists_of(20, both_know, split=2), 0.05, orders_unranked=True)
    assert "20 examples are too few" in found.reason


def test_methods_are_compared_as_they_are_served() -> None:
    """Also the ranker's own order: of what it did not read, it knows nothing."""
    lessons = lessons_of(the_ranker_knows)
    whole, served = (learn_stages(lessons, "auto", ranked).blend.cross_validated for ranked in (0, RANKED))
    assert whole is not None
    assert served is not None
    assert whole["ranker"] > 0.9
    assert served["ranker"] < 0.5
    assert served["linear"] > served["ranker"]
