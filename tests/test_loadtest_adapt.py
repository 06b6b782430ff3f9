"""The ledger by level: what a spike's lists were made of, what they were worth, and what is said of it."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from test_loadtest_report import made_run
from test_loadtest_visits import REQUEST, Shop
from tritonrank_gateway.adapt import ladder_of
from tritonrank_recommend.blend import LevelsFile
from typer.testing import CliRunner

from loadtests.__main__ import app
from loadtests.accounting import Accounts, Outcome, Recorder
from loadtests.adapt_page import render
from loadtests.levels_ledger import Ledger, ledger_of, verdicts
from loadtests.results import LATER_PAGE, NO_ROOM, Run
from loadtests.shapes import plan_of
from loadtests.visits import DegradedError, VisitCaller

LEVELS = ladder_of(
    200,
    25,
    file=LevelsFile(full=200, ndcg=0.2, users=9, by_candidates={"25": 0.9, "100": 0.96, "200": 1.0}, retrieval=0.8),
)
LAST = str(LEVELS[-1].number)
NAMES = [level.name for level in LEVELS]
PLAN = plan_of("spike", rate=10, seconds=20, warm_up_seconds=2, peak=5)
"""Warm-up until 2, before until 9, the spike until 15, then until 22."""


def run_of(lists: Mapping[float, str], name: str = "adapt-act") -> Run:
    """A run with one list at each of these times, by its level."""
    outcomes = [
        Outcome(
            number, due, due, due + 0.1, "rejected" if level in (NO_ROOM, LATER_PAGE, LAST) else None, 200, 10, level
        )
        for number, (due, level) in enumerate(lists.items())
    ]
    accounts = Accounts(PLAN, [], outcomes, 1.0)
    values: dict[str, Any] = {
        "name": name, "verb": "adapt", "phases": accounts.phases(), "totals": accounts.totals(),
        "per_second": accounts.per_second(), "seconds": accounts.seconds, "saturation_per_second": 33.0,
    }  # fmt: skip
    return made_run(**values)


SPIKED = {
    1.0: "0",
    3.0: "0",
    4.0: "0",
    9.5: "0",
    10.0: "2",
    10.5: "4",
    14.0: LAST,
    15.2: "2",
    16.0: "1",
    17.5: "0",
    21.0: "0",
}


@pytest.fixture
def shop() -> Any:
    shop = Shop()
    yield shop
    shop.server.shutdown()
    shop.server.server_close()


def test_lists_are_counted_by_level_and_phase() -> None:
    ledger = ledger_of(run_of(SPIKED), LEVELS)
    assert ledger.by_phase == {
        "before": {"full": 2},
        "spike": {"full": 1, "candidates-100": 1, "candidates-25": 1, "retrieval": 1},
        "after": {"candidates-100": 1, "candidates-150": 1, "full": 2},
    }
    assert ledger.lists.total() == 10
    worth = 5 * 1.0 + 2 * 0.96 + 0.9 + 0.8 + LEVELS[1].quality
    assert ledger.quality == pytest.approx(worth / 10)
    assert ledger.recovery_seconds == pytest.approx(2.0), "the second 16 to 17 is the last one with a cheaper list"
    assert (ledger.failed, ledger.without_room) == (0, 0)


def test_what_found_no_room_is_worth_retrievals_order_and_is_told() -> None:
    ledger = ledger_of(run_of({3.0: "0", 10.0: NO_ROOM, 16.0: "0"}), LEVELS)
    assert ledger.without_room == 1
    assert ledger.quality == pytest.approx(2.8 / 3)
    assert [one.met for one in verdicts(ledger)] == [False, False, True]


@pytest.mark.parametrize(
    ("lists", "recovery"),
    [
        ({3.0: "0", 10.0: "4", 16.0: "0"}, 0.0),
        ({3.0: "0", 10.0: "4", 20.0: "1", 21.5: "0"}, 6.0),
        ({3.0: "0", 10.0: "4", 21.5: "1"}, None),
        ({3.0: "0", 10.0: "4"}, None),
    ],
    ids=["at once", "late", "never", "nothing came"],
)
def test_recovery_ends_with_the_last_cheaper_list(lists: dict[float, str], recovery: float | None) -> None:
    assert ledger_of(run_of(lists), LEVELS).recovery_seconds == recovery


def test_a_run_that_keeps_everything_is_told_so() -> None:
    found = verdicts(ledger_of(run_of({3.0: "0", 10.0: "2", 15.5: "1", 17.0: "0"}), LEVELS))
    assert all(one.met for one in found)
    assert [one.objective for one in found if not one.met] == []


def test_a_request_without_a_page_counts_as_one_without_room() -> None:
    run = run_of(SPIKED)
    # One page is in retrieval's order as it was meant; three others are none, one of them refused.
    failed = run.totals.model_copy(update={"failed": {"rejected": 2, "expired": 2}})
    assert ledger_of(run.model_copy(update={"totals": failed}), LEVELS).without_room == 3


def test_levels_cross_from_one_process_to_another() -> None:
    sends, collects = Recorder(), Recorder()
    sends.add(Outcome(0, 1.0, 1.0, 1.1, None, 200, 10, "3"))
    collects.put(**sends.take())
    assert collects.outcomes[0].level == "3"


def test_a_visit_tells_its_lists_level(shop: Shop) -> None:
    caller = VisitCaller(shop.url)
    told = [caller.call(REQUEST, 5.0).level for _ in range(3)]
    assert told == ["0", "0", ""], "a further page belongs to a list that was made before"
    for reasons, level in ((["ranker: spared"], "0"), (["ranker: overloaded"], NO_ROOM), (["store: late"], NO_ROOM)):
        shop.twist = {"page": {"degraded": True, "degraded_reasons": reasons}}
        with pytest.raises(DegradedError) as found:
            VisitCaller(shop.url).call(REQUEST, 5.0)
        assert found.value.level == level


def test_further_pages_of_a_degraded_list_are_no_lists(shop: Shop) -> None:
    caller = VisitCaller(shop.url)
    assert [caller.call(REQUEST, 5.0).level for _ in range(2)] == ["0", "0"]
    shop.twist = {"page": {"degraded": True, "degraded_reasons": ["ranker: spared"]}}
    with pytest.raises(DegradedError) as found:
        caller.call(REQUEST, 5.0)
    assert found.value.level == LATER_PAGE
    ledger = ledger_of(run_of({3.0: "0", 10.0: LAST, 11.0: LATER_PAGE, 16.0: "0"}), LEVELS)
    assert (ledger.lists.total(), ledger.without_room) == (3, 0)


def test_the_page_lays_both_runs_beside_each_other() -> None:
    runs = {"off": run_of({3.0: "0", 10.0: NO_ROOM, 16.0: "0"}), "act": run_of(SPIKED)}
    ledgers: dict[str, Ledger] = {mode: ledger_of(run, LEVELS) for mode, run in runs.items()}
    page = render(runs, ledgers, LEVELS, verdicts(ledgers["act"]))
    assert page.count("<svg") == 5
    assert "<script" not in page
    assert "http" not in page.replace("http://www.w3.org", "")
    rows = [re.sub(r"<[^>]+>", " ", row).split() for row in re.findall(r"<tr>.*?</tr>", page, re.DOTALL)]
    assert [row[:2] for row in rows[1:]] == [
        [mode, phase] for mode in ("off", "act") for phase in ("before", "spike", "after", "together")
    ]
    assert rows[4][2:] == ["2", *("0" for _ in NAMES[1:]), "1", "0", "0.933"]


def test_a_build_without_levels_is_told_what_to_type(tmp_path: Path) -> None:
    (tmp_path / "blend").mkdir()
    found = CliRunner().invoke(app, ["adapt", str(tmp_path)])
    assert found.exit_code == 2
    assert "levels.json" in found.stderr + found.output
    assert "tritonrank build" in found.stderr + found.output
