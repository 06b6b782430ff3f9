"""What nights tell Prometheus is what docs/metrics.md says, and what the ledger has."""

from pathlib import Path

import numpy as np
from metric_pages import LEARNING, documented, told
from prometheus_client.parser import text_string_to_metric_families
from test_learn_judging import learning, windows
from tritonrank.learn.judging import decide
from tritonrank.learn.ledger import Ledger, Outcome
from tritonrank.learn.metrics import METRICS_FILE, write_metrics

LABELS = ("recipe", "outcome", "step", "of", "check", "refuses", "set", "ranker", "end")


def order(label: tuple[str, str]) -> int:
    return LABELS.index(label[0])


INSPECTED = {
    "days": [{"events": 900, "left_out": 40}, {"events": 100, "left_out": 2}],
    "findings": [{"check": "bot user", "refuses": False}] * 2 + [{"check": "volume", "refuses": True}],
}


def values(root: Path, *outcomes: Outcome) -> dict[tuple[str, str], float]:
    """The file after such nights: by name and the last label's value."""
    ledger = Ledger(root)
    for number, outcome in enumerate(outcomes):
        night = ledger.begin("", "base", 1e9 + 86_400 * number)
        ledger.finish_step(night, "inspect", 1.0, INSPECTED)
        verdict = decide(windows(np.random.default_rng(1), newest=0.1), learning())
        ledger.finish_step(night, "judge", 2.0 + number, verdict.as_json())
        ledger.end(night, outcome, "so")
    page = write_metrics(ledger, "shop").read_text(encoding="utf-8")
    assert (ledger.folder / METRICS_FILE).suffix == ".prom", "others are not read"
    return {
        (
            sample.name.removeprefix("tritonrank_learn_"),
            "/".join(value for name, value in sorted(sample.labels.items(), key=order) if name != "recipe"),
        ): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def test_the_file_has_what_the_ledger_has(tmp_path: Path) -> None:
    found = values(tmp_path, "accepted", "refused", "nothing", "failed")
    assert {
        outcome: found["nights", outcome] for outcome in ("accepted", "refused", "failed", "nothing")
    } == dict.fromkeys(("accepted", "refused", "failed", "nothing"), 1)
    assert found["since_accepted", ""] == 2, "who finds nothing new is no fault"
    assert found["ended_timestamp_seconds", "accepted"] == Ledger(tmp_path).nights()[0].ended
    assert (found["step_seconds", "inspect"], found["step_seconds", "judge"]) == (1.0, 5.0), "of the last night"
    assert (found["events", "seen"], found["events", "left_out"]) == (1_000, 42)
    assert (found["findings", "bot user/false"], found["findings", "volume/true"]) == (2, 1)
    assert found["ndcg_at_10", "newest/new"] > found["ndcg_at_10", "newest/live"]
    assert found["drop", "newest/low"] < found["drop", "newest/mean"] < found["drop", "newest/high"] < 0


def test_an_accepted_night_ends_the_alert(tmp_path: Path) -> None:
    assert values(tmp_path / "a", "refused", "accepted")["since_accepted", ""] == 0
    assert values(tmp_path / "b")["since_accepted", ""] == 0


def test_the_page_of_metrics_tells_each_of_them(tmp_path: Path) -> None:
    values(tmp_path, "accepted")
    found = told((Ledger(tmp_path).folder / METRICS_FILE).read_text(encoding="utf-8"))
    written = documented(LEARNING)
    assert found.keys() == written.keys()
    for name, one in found.items():
        assert (one.kind, one.labels) == (written[name].kind, written[name].labels), name
