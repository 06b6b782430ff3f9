"""Quality online: what is seen of rankings, that planted drift is found and its absence is silent, and the estimate of
NDCG from clicks against a simulated truth."""

import itertools
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from tritonrank_client import NO_TEXT_SCORE
from tritonrank_gateway.quality import Quality
from tritonrank_gateway.quality.clicks import LEAST_CLICKS, Clicks, discount, position_label
from tritonrank_gateway.quality.counted import Rows
from tritonrank_gateway.quality.drift import LEAST_RANKINGS, Drift, psi_above_chance
from tritonrank_gateway.quality.figures import entropy, overlap
from tritonrank_gateway.quality.quality import BATCH_RANKINGS, LOOK_SECONDS, MOST_PER_SECOND, MOST_SERIES
from tritonrank_gateway.quality.reference import Reference, Spread
from tritonrank_gateway.ranking import Ranking
from tritonrank_recommend.events import Event

ARTIFACT = "a" * 16
CANDIDATES = 20
ORDER = ("kind", "artifact", "sha256", "feature", "position", "le")
"""Of labels, in the keys below."""
Draw = Callable[[np.random.Generator], NDArray[np.float64]]


class Clock:
    """Goes on by a step whenever it is asked."""

    def __init__(self, step: float = 0.05) -> None:
        self.now, self.step = 1_000.0, step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


def normal(generator: np.random.Generator) -> NDArray[np.float64]:
    """Scores of a request, which are more alike than those of two requests."""
    return generator.normal(generator.normal(), 1.0, CANDIDATES)


def ranking(scores: NDArray[np.float64], artifact: str = ARTIFACT, tokens: int = 10) -> Ranking:
    order = np.argsort(-scores, kind="stable")
    return Ranking(
        indices=order.tolist(),
        logits=scores[order].tolist(),
        artifact=artifact,
        context_tokens=2 * tokens,
        item_tokens=[tokens] * len(scores),
        truncated=[False] * len(scores),
    )


def spread_of(values: list[NDArray[np.float64]], bins: int = 10) -> Spread:
    edges = np.unique(np.quantile(np.concatenate(values), np.arange(1, bins) / bins))
    shares = np.mean([np.bincount(np.searchsorted(edges, one), minlength=bins) / len(one) for one in values], axis=0)
    return Spread(edges.tolist(), shares.tolist(), len(values))


def reference_file(path: Path, *, artifact: str = ARTIFACT, seed: int = 0, rankings: int = 400) -> Path:
    generator = np.random.default_rng(seed)
    spread = spread_of([normal(generator) for _ in range(rankings)])
    tokens = {"edges": [5.0, 15.0], "shares": [0.0, 1.0, 0.0], "rankings": rankings}
    score = {"edges": spread.edges, "shares": spread.shares, "rankings": spread.rankings}
    path.write_text(
        json.dumps(
            {
                "artifact": artifact,
                "spreads": {"rank": {"score": score, "item_tokens": tokens}},
                "candidates": {"rank": [CANDIDATES, CANDIDATES]},
            }
        ),
        encoding="utf-8",
    )
    return path


def exposed(quality: Quality) -> dict[str, dict[tuple[str, ...], float]]:
    """The page by the name of the sample and the values of its labels."""
    registry = CollectorRegistry()
    registry.register(quality)
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            found.setdefault(sample.name, {})[
                tuple(sample.labels[label] for label in ORDER if label in sample.labels)
            ] = sample.value
    return found


def test_entropy_is_0_for_one_that_has_all_and_1_for_all_alike() -> None:
    assert entropy(np.array([5.0, 5.0, 5.0, 5.0])) == pytest.approx(1.0)
    assert entropy(np.array([100.0, 0.0, 0.0])) == pytest.approx(0.0, abs=1e-9)
    shares = np.array([0.5, 0.25, 0.25])
    assert entropy(np.log(shares) + 1_000) == pytest.approx(-(shares @ np.log(shares)) / math.log(3))


def test_overlap_weighs_the_top_and_is_1_for_the_same_order() -> None:
    same = np.arange(100)
    assert overlap(same) == pytest.approx(1.0)
    assert overlap(same[:1]) == 1.0
    assert overlap(same[::-1]) == 0.0  # the first 50 come from the last 50
    at_top, below = same.copy(), same.copy()
    at_top[[0, 1]] = at_top[[1, 0]]
    below[[20, 21]] = below[[21, 20]]
    assert overlap(at_top) < overlap(below) < 1
    # By its definition, for three places: 0 of 1, 1 of 2, 3 of 3.
    weights = 0.9 ** np.arange(3)
    assert overlap(np.array([2, 0, 1])) == pytest.approx((weights @ [0, 1 / 2, 1]) / weights.sum())


def test_a_ranking_is_counted_with_all_of_its_candidates() -> None:
    quality = Quality(clock=Clock())
    scores = np.array([3.0, 1.0, NO_TEXT_SCORE, 2.0])
    quality.ranked("rank", ranking(scores), 4)
    page, labels = exposed(quality), ("rank", ARTIFACT)
    assert page["tritonrank_quality_rankings_total"] == {labels: 1}
    assert page["tritonrank_quality_candidates_total"] == {labels: 4}
    assert page["tritonrank_quality_tokens_total"] == {labels: 60}
    # Nothing was said of the one without text. (A histogram with buckets below 0 has neither sum nor count.)
    assert page["tritonrank_quality_score_bucket"][(*labels, "+Inf")] == 3
    assert page["tritonrank_quality_score_bucket"][("rank", ARTIFACT, "2.0")] == 2
    assert page["tritonrank_quality_margin_sum"] == {labels: 1}
    assert page["tritonrank_quality_entropy_count"] == page["tritonrank_quality_overlap_count"] == {labels: 1}


def test_of_the_top_alone_the_spread_of_scores_is_not_claimed() -> None:
    quality = Quality(clock=Clock())
    quality.ranked("rank", ranking(np.array([3.0, 1.0])), 4)
    page, labels = exposed(quality), ("rank", ARTIFACT)
    assert page["tritonrank_quality_score_bucket"][(*labels, "+Inf")] == 0
    assert page["tritonrank_quality_entropy_count"] == {labels: 0}
    assert page["tritonrank_quality_margin_count"] == {labels: 1}


def test_many_rankings_looked_at_together_say_what_each_alone_says(tmp_path: Path) -> None:
    path, generator = reference_file(tmp_path / "reference.json"), np.random.default_rng(5)
    together, each = Quality(path, Clock()), Quality(path, Clock())
    for number in range(3 * BATCH_RANKINGS + 1):
        candidates = int(generator.integers(1, 80))
        scores = generator.normal(size=candidates)
        scores[: candidates // 5] = NO_TEXT_SCORE
        one = ranking(scores, artifact="b" * 16 if number % 5 == 0 else ARTIFACT)
        if number % 7 == 0:
            one = replace(one, item_tokens=None, truncated=None)
        if number % 11 == 0:
            one = replace(one, indices=one.indices[:3], logits=one.logits[:3], unknown_tokens=(1, 2))
        for quality in (together, each):
            quality.ranked("rank", one, candidates, is_head=number % 13 == 0)
        alone = exposed(each)
    found = exposed(together)
    assert found.keys() == alone.keys()
    for name, samples in found.items():
        assert samples == pytest.approx(alone[name], rel=1e-9), name


def test_cost_and_labels_are_bounded() -> None:
    quality = Quality(clock=Clock(step=0.0))
    for number in range(10 * MOST_PER_SECOND):
        quality.ranked("rank", ranking(np.array([1.0, 0.0]), artifact=f"{number:016}"), 2)
    seen = exposed(quality)["tritonrank_quality_rankings_total"]
    assert len(seen) == MOST_SERIES
    assert max(int(artifact) for _, artifact in seen) <= MOST_PER_SECOND


@pytest.mark.parametrize("seed", range(5))
def test_the_same_data_are_silent(tmp_path: Path, seed: int) -> None:
    quality = Quality(reference_file(tmp_path / "reference.json", seed=seed), Clock())
    generator = np.random.default_rng(100 + seed)
    for _ in range(LEAST_RANKINGS - 1):
        quality.ranked("rank", ranking(normal(generator)), CANDIDATES)
    page = exposed(quality)
    assert "tritonrank_quality_drift_psi" not in page, "of too few rankings nothing is claimed"
    assert page["tritonrank_quality_drift_rankings"][("rank", "score")] == LEAST_RANKINGS - 1
    for _ in range(200):
        quality.ranked("rank", ranking(normal(generator)), CANDIDATES)
    page = exposed(quality)
    assert page["tritonrank_quality_drift_psi"][("rank", "score")] < 0.05
    assert page["tritonrank_quality_drift_ks"][("rank", "score")] < 0.1
    assert page["tritonrank_quality_drift_psi"][("rank", "item_tokens")] == 0
    assert page["tritonrank_quality_reference_info"] != {}


@pytest.mark.parametrize(
    ("draw", "tokens", "feature"),
    [
        (lambda generator: normal(generator) + 1.0, 10, "score"),
        (lambda generator: 0.3 * normal(generator), 10, "score"),
        (normal, 25, "item_tokens"),
    ],
    ids=["scores rose", "scores narrowed", "texts grew"],
)
def test_planted_drift_is_seen_and_nothing_else(tmp_path: Path, draw: Draw, tokens: int, feature: str) -> None:
    quality = Quality(reference_file(tmp_path / "reference.json"), Clock())
    generator = np.random.default_rng(7)
    for _ in range(LEAST_RANKINGS):
        quality.ranked("rank", ranking(draw(generator), tokens=tokens), CANDIDATES)
    page = exposed(quality)
    other = "item_tokens" if feature == "score" else "score"
    assert page["tritonrank_quality_drift_psi"][("rank", feature)] > 0.25
    assert page["tritonrank_quality_drift_ks"][("rank", feature)] > 0.15
    assert page["tritonrank_quality_drift_psi"][("rank", other)] < 0.1


def test_scores_of_many_more_candidates_are_not_compared(tmp_path: Path) -> None:
    quality, generator = Quality(reference_file(tmp_path / "reference.json"), Clock()), np.random.default_rng(8)
    for _ in range(LEAST_RANKINGS):
        scores = generator.normal(5.0, 1.0, 10 * CANDIDATES)
        quality.ranked("rank", ranking(scores), len(scores))
    page = exposed(quality)
    assert set(page["tritonrank_quality_drift_psi"]) == {("rank", "item_tokens")}


def test_scores_of_the_first_of_more_are_not_compared(tmp_path: Path) -> None:
    quality, generator = Quality(reference_file(tmp_path / "reference.json"), Clock()), np.random.default_rng(8)
    for _ in range(LEAST_RANKINGS):
        quality.ranked("rank", ranking(1 + normal(generator)), CANDIDATES, is_head=True)
    assert set(exposed(quality)["tritonrank_quality_drift_psi"]) == {("rank", "item_tokens")}


def test_what_is_served_becomes_the_reference(tmp_path: Path) -> None:
    path, clock = reference_file(tmp_path / "reference.json"), Clock()
    quality, generator = Quality(path, clock), np.random.default_rng(9)
    assert Quality().reference_now() is None
    assert quality.reference_now() == Reference.read(path).file, "of too few rankings nothing is taken"
    for _ in range(300):
        quality.ranked("rank", ranking(1 + normal(generator)), CANDIDATES)
    assert exposed(quality)["tritonrank_quality_drift_psi"][("rank", "score")] > 0.25
    path.write_bytes(msgspec.json.encode(quality.reference_now()))
    quality = Quality(path, clock)
    for _ in range(300):
        quality.ranked("rank", ranking(1 + normal(generator)), CANDIDATES)
    assert exposed(quality)["tritonrank_quality_drift_psi"][("rank", "score")] < 0.05


def test_old_rankings_are_forgotten() -> None:
    drift = Drift({"score": Spread([0.0], [0.5, 0.5], 400)})
    drift.add(300, {"score": Rows.of([[1.0]] * 300)}, now=0.0)
    (drifted,) = drift.measured(10.0)
    assert (drifted.rankings, drifted.ks) == (300, 0.5)
    assert drifted.psi > 1
    assert list(drift.measured(86_401.0)) == []


def test_shares_that_do_not_add_up_to_the_last_bit_are_whole_rankings() -> None:
    drift = Drift({"score": Spread([0.0, 1.0], [0.4, 0.3, 0.3], 400)})
    for _ in range(LEAST_RANKINGS):
        drift.add(1, {"score": Rows.of([np.linspace(-1.0, 2.0, 49).tolist()])}, now=0.0)
    (drifted,) = drift.measured(0.0)
    assert drifted.rankings == LEAST_RANKINGS


def test_psi_of_two_samples_of_one_thing_is_0_on_average() -> None:
    generator = np.random.default_rng(3)
    raw = []
    for _ in range(200):
        before, now = (generator.multinomial(300, [0.1] * 10) / 300 for _ in range(2))
        raw.append(psi_above_chance(before, 300, now, 300))
    assert np.mean(raw) < 0.02  # what is below 0 is cut
    assert max(raw) < 0.2


def test_another_artifact_is_not_held_to_the_reference_until_there_is_one_for_it(tmp_path: Path) -> None:
    path, clock = reference_file(tmp_path / "reference.json"), Clock()
    quality, generator = Quality(path, clock), np.random.default_rng(1)
    other = "b" * 16
    for _ in range(LEAST_RANKINGS + 1):
        quality.ranked("rank", ranking(50 + normal(generator), artifact=other), CANDIDATES)
    assert "tritonrank_quality_drift_psi" not in exposed(quality)
    reference_file(path, artifact=other)
    clock.now += LOOK_SECONDS
    for _ in range(LEAST_RANKINGS + 1):
        quality.ranked("rank", ranking(50 + normal(generator), artifact=other), CANDIDATES)
    page = exposed(quality)
    assert {artifact for artifact, _ in page["tritonrank_quality_reference_info"]} == {other}
    assert page["tritonrank_quality_drift_psi"][("rank", "score")] > 1


def spoilt(**changed: object) -> str:
    """A reference with another spread of scores, by what is changed of it."""
    spread = {"edges": [0], "shares": [0.5, 0.5], "rankings": 1} | changed
    return json.dumps({"artifact": "a", "spreads": {"rank": {"score": spread}}, "candidates": {"rank": [1, 1]}})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", "object"),
        (spoilt(edges=[1, 0], shares=[1, 0, 0]), "spreads.rank.score.edges"),
        (spoilt(shares=[1]), "spreads.rank.score.shares"),
        (spoilt(shares=[1, 1]), "spreads.rank.score.shares"),
        (spoilt(edges=[math.inf], shares=[1, 0]), "JSON"),
        (spoilt().replace('"score"', '"price"'), "price"),
        (spoilt().replace('{"rank": [1, 1]}', "{}"), "candidates.rank"),
        (spoilt()[:-1] + ', "propensities": [2]}', "propensities"),
    ],
    ids=["list", "edges fall", "too few shares", "above 1", "no number", "no feature", "no candidates", "propensities"],
)
def test_what_is_no_reference_is_named(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "reference.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="tritonrank assemble") as caught:
        Reference.read(path)
    assert str(path) in str(caught.value)
    assert said in str(caught.value)


IDS = itertools.count()


def click(position: int | None, page: str = "", kind: str = "click") -> Event:
    number = str(next(IDS))
    return Event(
        event_id=number, user_id="u", type=kind, timestamp=1.0, item_id="p", page=page or number, position=position
    )


def test_impressions_and_clicks_are_counted_by_position() -> None:
    quality = Quality(clock=Clock())
    quality.shown(range(25))
    quality.took([click(0, "one"), click(0, "one"), click(0, "two"), click(12), click(None), click(3, kind="view")])
    page = exposed(quality)
    assert page["tritonrank_quality_impressions_total"][("0",)] == 1
    assert page["tritonrank_quality_impressions_total"][("10-19",)] == 10
    assert page["tritonrank_quality_clicks_total"] == {("0",): 2, ("10-19",): 1}
    assert page["tritonrank_quality_ips_clicks"] == {(): 3}
    assert "tritonrank_quality_ips_ndcg" not in page
    labels = [position_label(position) for position in (9, 10, 19, 20, 49, 50, 10_000)]
    assert labels == ["9", "10-19", "10-19", "20-49", "20-49", "50+", "50+"]


def visits(
    generator: np.random.Generator, quality: float, looked: NDArray[np.float64]
) -> Iterator[tuple[list[int], list[int]]]:
    """Positions of the good items of a list, and those that a user clicks on: what is good and looked at."""
    while True:
        good = np.flatnonzero(generator.random(10) < quality * np.linspace(0.3, 0.1, 10)).tolist()
        yield good, [position for position in good if generator.random() < looked[position]]


@pytest.mark.parametrize("known", [False, True], ids=["1/k is assumed", "propensities are known"])
def test_the_estimate_of_ndcg_is_the_truth_where_counting_clicks_is_not(known: bool) -> None:
    generator, clicks = np.random.default_rng(11), Clicks()
    looked = np.linspace(1.0, 0.15, 10) if known else 1 / np.arange(1, 11)
    clicks.propensities = looked.tolist() if known else None
    truth, naive = [], []
    for number, (good, clicked) in zip(range(20_000), visits(generator, 1.0, looked), strict=False):
        truth += [discount(position) for position in good]
        naive += [discount(position) for position in clicked]
        clicks.took([click(position, str(number)) for position in clicked], now=0.0)
    estimate, error, behind = clicks.estimate(0.0)
    assert behind > LEAST_CLICKS
    assert abs(estimate - np.mean(truth)) < max(3 * error, 0.01)
    assert 0 < error < 0.01
    assert abs(np.mean(naive) - np.mean(truth)) > 0.05, "the plain mean over clicks flatters the order"


def test_one_click_from_far_down_does_not_outweigh_all_others() -> None:
    clicks = Clicks()
    clicks.took([click(0) for _ in range(LEAST_CLICKS)], now=0.0)
    clicks.took([click(5_000)], now=0.0)
    estimate, _, _ = clicks.estimate(0.0)
    assert estimate == pytest.approx(LEAST_CLICKS / (LEAST_CLICKS + 10))
