"""The gate opens for a step that costs little and closes for one that costs much, or that nobody can be sure of."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from tritonrank.errors import GateError
from tritonrank.judge.evaluate import Judgement
from tritonrank.judge.gate import FEWEST_EXAMPLES, Verdict, paired_difference, show_verdict, verdict
from tritonrank.judge.worst import forget_closed_gate, require_passed

BUDGET = 0.01


def judgement(name: str, values: Sequence[float], positives: Sequence[int] | None = None) -> Judgement:
    """NDCG@10 as given; twelve candidates with equal scores each, the positive first or where ``positives`` says."""
    count = len(values)
    places = [0] * count if positives is None else positives
    table = pl.DataFrame(
        {
            "example_id": [f"user-{n}:3" for n in range(count)],
            "scores": [[0.0] * 12] * count,
            "labels": [[int(place == n) for n in range(12)] for place in places],
            "ndcg@10": values,
        },
        schema={
            "example_id": pl.String,
            "scores": pl.List(pl.Float32),
            "labels": pl.List(pl.Int8),
            "ndcg@10": pl.Float64,
        },
    )
    return Judgement(name, table)


def values(count: int = 400, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).choice([0.0, 0.3, 0.5, 1.0], size=count)


def of(child: np.ndarray, parent: np.ndarray, budget: float = BUDGET) -> Verdict:
    return verdict(judgement("int8", child), judgement("fp32", parent), budget)


def test_identical_rankings_pass() -> None:
    found = of(values(), values())
    assert found.passed
    assert (found.drop, found.drop_low, found.drop_high, found.bound) == (0, 0, 0, 0)
    assert found.worst == []
    assert found.top10_overlap == 1
    assert found.require() is None


def test_a_better_child_passes() -> None:
    parent = values()
    found = of(np.minimum(1, parent + 0.2), parent)
    assert found.passed
    assert found.drop < 0
    assert found.drop_high < 0


@pytest.mark.parametrize(("loss", "passes"), [(0.0, True), (0.009, True), (0.011, False), (0.5, False)])
def test_the_budget_is_relative_to_the_parent(loss: float, passes: bool) -> None:
    """Every request loses the same share, so that the drop is known without doubt."""
    for scale in (1.0, 0.1):
        parent = values() * scale
        found = of(parent * (1 - loss), parent)
        assert found.drop == pytest.approx(loss)
        assert found.bound == pytest.approx(loss)
        assert found.passed is passes
        assert found.child_ndcg == pytest.approx(found.parent_ndcg * (1 - loss))


def test_a_budget_of_one_recipe_is_not_that_of_another() -> None:
    parent = values()
    assert not of(parent * 0.96, parent, budget=0.01).passed
    assert of(parent * 0.96, parent, budget=0.05).passed


def test_a_noisy_step_closes_the_gate_although_its_mean_is_within_budget() -> None:
    parent = np.full(100, 0.5)
    child = parent + np.tile([0.4, -0.4], 50)
    found = of(child, parent)
    assert found.drop == pytest.approx(0)
    assert found.bound > 3 * BUDGET
    assert not found.passed
    assert "too few examples to decide" in found.reason
    enough = of(np.tile(child, 60), np.tile(parent, 60))  # the same noise, averaged over more users
    assert enough.bound < 3 * BUDGET
    assert enough.passed


def test_the_bound_is_the_one_sided_95_percent_bound() -> None:
    """Against the delta method, which is what a bootstrap of a ratio approaches with many examples."""
    random = np.random.default_rng(8)
    parent = random.beta(2, 3, size=1_000)
    child = parent - random.normal(0.01, 0.1, size=1_000)
    drop = 1 - child.mean() / parent.mean()
    residual = (parent - child) - drop * parent
    standard_error = residual.std() / parent.mean() / np.sqrt(1_000)
    found = of(child, parent)
    assert found.drop == pytest.approx(drop)
    assert found.bound == pytest.approx(drop + 1.645 * standard_error, abs=0.15 * standard_error)
    assert found.drop_low == pytest.approx(drop - 1.96 * standard_error, abs=0.25 * standard_error)
    assert found.drop_high == pytest.approx(drop + 1.96 * standard_error, abs=0.25 * standard_error)


def test_pairs_are_compared_not_means() -> None:
    """Easy and hard requests vary far more than the step does; that must not blur what the step did."""
    parent = np.tile([0.05, 1.0], 100)
    assert of(parent - 0.001, parent).passed
    shuffled = of(np.roll(parent, 1), parent)
    assert shuffled.drop == pytest.approx(0)
    assert not shuffled.passed


@pytest.mark.parametrize(("count", "passes"), [(1, False), (FEWEST_EXAMPLES - 1, False), (FEWEST_EXAMPLES, True)])
def test_too_few_examples_decide_nothing(count: int, passes: bool) -> None:
    found = of(values(count), values(count))
    assert found.passed is passes
    assert found.examples == count
    assert passes or f"{count} examples are too few" in found.reason


def test_a_parent_without_a_hit_has_nothing_to_lose() -> None:
    found = of(np.zeros(50), np.zeros(50))
    assert found.passed
    assert found.drop == 0


def test_a_closed_gate_says_how_many_requests_would_tell_noise_from_a_loss() -> None:
    parent = np.full(100, 0.5)
    child = parent + np.tile([0.1, -0.1], 50)
    found = of(child, parent)
    assert not found.passed
    assert found.may_be_chance
    times = round(found.examples_that_tell / 100)
    enough = of(np.tile(child, times), np.tile(parent, times))
    assert enough.bound - enough.drop == pytest.approx(BUDGET, rel=0.1)
    assert enough.passed
    assert not of(parent - 0.05, parent).may_be_chance  # everybody lost: no more requests are needed to see that


def test_worst_requests_are_named_worst_first() -> None:
    parent, child = np.full(60, 0.8), np.full(60, 0.8)
    for place, loss in ((7, 0.3), (3, 0.8), (50, 0.5), (9, -0.2)):
        child[place] -= loss
    found = of(child, parent)
    assert [(name, round(after, 3)) for name, _, after in found.worst] == [
        ("user-3:3", 0.0),
        ("user-50:3", 0.3),
        ("user-7:3", 0.5),
    ]
    assert {before for _, before, _ in found.worst} == {0.8}


def test_at_most_ten_worst_requests_are_shown() -> None:
    losses = np.linspace(0, 0.5, 60)
    found = of(0.8 - losses, np.full(60, 0.8))
    assert [name for name, _, _ in found.worst] == [f"user-{n}:3" for n in range(59, 49, -1)]


def test_a_closed_gate_says_by_how_much_and_where() -> None:
    parent = np.full(40, 0.5)
    child = parent.copy()
    child[5] = 0
    with pytest.raises(GateError) as caught:
        of(child, parent).require()
    assert caught.value.exit_code == 1
    message = str(caught.value)
    for said in ("int8 against fp32", "fell by 2.50%", "budget is 1.00%", "1 of 40 requests", "0.500 -> 0.000"):
        assert said in message
    assert "user-5" not in message  # messages end up in logs


def test_whom_a_closed_gate_hurt_is_in_a_file_and_nowhere_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parent = np.full(40, 0.5)
    child = parent.copy()
    child[5] = 0
    words = {
        "example_id": "user-5:3",
        "user": "user-5",
        "query": "a private query",
        "history": ["what she read"],
        "liked": ["what she bought"],
        "parent_top": ["one"],
        "child_top": ["another"],
    }
    found = replace(of(child, parent), worst_requests=[words])
    record = tmp_path / "artifacts" / "closed-gate.txt"
    show_verdict(found)
    with pytest.raises(GateError) as caught:
        require_passed(found, record, "Do this: tritonrank build RECIPE.")
    said = str(caught.value) + capsys.readouterr().out
    for private in ("user-5", "a private query", "what she read", "what she bought"):
        assert private not in said
        assert private in record.read_text(encoding="utf-8")
    assert "tritonrank build RECIPE" in said
    assert str(record) in said
    assert said.count(found.reason) == 1
    forget_closed_gate(record)
    assert not record.exists()
    require_passed(of(parent, parent), record, "")
    assert not record.exists()


def other_ids(judged: Judgement, ids: list[str]) -> Judgement:
    return Judgement(judged.name, judged.table.with_columns(pl.Series("example_id", ids)))


@pytest.mark.parametrize("difference", ["another example", "another order", "fewer", "other candidates"])
def test_different_examples_are_refused(difference: str) -> None:
    parent = judgement("fp32", values(40))
    ids = parent.example_ids
    child = {
        "another example": lambda: other_ids(parent, ["somebody:1", *ids[1:]]),
        "another order": lambda: other_ids(parent, ids[::-1]),
        "fewer": lambda: judgement("int8", values(39)),
        "other candidates": lambda: judgement("int8", values(40), positives=[1] * 40),
    }[difference]()
    for compare in (lambda: verdict(child, parent, BUDGET), lambda: paired_difference(child, parent)):
        with pytest.raises(GateError, match="judged on different examples"):
            compare()


def test_overlap_is_the_mean_over_requests() -> None:
    parent, child = judgement("fp32", [1.0] * 40), judgement("int8", [1.0] * 40)
    ahead, behind = [float(-n) for n in range(12)], [float(n) for n in range(12)]
    rankings = pl.Series("scores", [ahead] * 20 + [behind] * 20, dtype=pl.List(pl.Float32))
    child = Judgement("int8", child.table.with_columns(rankings))
    # Of twelve candidates the first ten forwards and the first ten backwards share eight.
    assert verdict(child, parent, BUDGET).top10_overlap == pytest.approx((1.0 + 0.8) / 2)


def test_a_verdict_goes_into_a_manifest_and_comes_back() -> None:
    parent = values()
    found = of(parent * 0.9, parent)
    written = json.loads(json.dumps(found.as_metrics()))
    written["worst"] = [tuple(entry) for entry in written["worst"]]
    assert Verdict(**written) == found


def test_the_seed_decides_the_bound() -> None:
    parent, child = values(seed=1), values(seed=2)
    judged = judgement("int8", child), judgement("fp32", parent)
    assert verdict(*judged, BUDGET, seed=3) == verdict(*judged, BUDGET, seed=3)
    assert verdict(*judged, BUDGET, seed=3).bound != verdict(*judged, BUDGET, seed=4).bound


def test_the_paired_difference_is_signed_and_narrow() -> None:
    parent = values()
    child = np.maximum(0, parent - 0.01)
    found = paired_difference(judgement("int8", child), judgement("fp32", parent))
    assert found.mean == pytest.approx((child - parent).mean())
    assert -0.01 <= found.low < found.high < 0
