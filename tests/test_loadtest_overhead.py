"""What metrics cost: the verdict on planted turns, and a run beside a service that counts nothing."""

import json
import re
import urllib.request
from pathlib import Path

import pytest
from tritonrank.artifacts.workspace import Workspace
from typer.testing import CliRunner

from loadtests import collector, overhead
from loadtests.__main__ import app
from loadtests.overhead import MOST_LOSS, Service, Turn, compare, serving

SERVICES = {name: Service(name, (), ()) for name in ("with", "without")}


def planted(monkeypatch: pytest.MonkeyPatch, share: float, noise: float) -> dict[str, float]:
    """Turns of 100 answers, fewer by a share and dearer by it with metrics; and noise, a turn up, a turn down."""
    turns = {"with": 0, "without": 0}

    def keep_busy(service: Service, *_: object) -> Turn:
        turns[service.url] += 1
        lost = share * (service.url == "with") + noise * (-1) ** (turns[service.url] // 2)
        return Turn(round(100_000 * (1 - lost)), 1.0, 10 * (1 - lost) / (1 - lost) ** 2)

    monkeypatch.setattr(overhead, "keep_busy", keep_busy)
    return compare(SERVICES, lambda http: http.get("/"), 20, 1.0, 1)


def test_a_loss_is_found_and_its_absence_is_not_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert planted(monkeypatch, 0.05, 0.0)["sure_loss"] == pytest.approx(0.05, abs=0.003)
    assert planted(monkeypatch, 0.0, 0.0)["sure_loss"] == pytest.approx(0.0, abs=1e-9)
    found = planted(monkeypatch, 0.05, 0.01)
    assert found["sure_loss"] > MOST_LOSS, "both services meet the noise"
    assert found["with_per_second"] < found["without_per_second"]
    assert found["with_processor_ms"] > found["without_processor_ms"]


@pytest.mark.slow
def test_both_services_answer_and_one_of_them_counts(workspace: Workspace, tmp_path: Path) -> None:
    told = {}
    for name, module in overhead.GATEWAYS.items():
        with serving(workspace, tmp_path / name, module) as service:
            assert overhead.keep_busy(service, overhead.ranking_of(3), 1.0, 1).answers
            told[name] = [urllib.request.urlopen(page).read().decode() for page in service.pages]
    assert "tritonrank_gateway_request_seconds_count" in told["with"][0]
    assert "tritonrank_gateway_request" not in told["without"][0]
    runs = {name: re.findall(r"^tritonrank_runs_total{.*} ([\d.]+)", pages[1], re.M) for name, pages in told.items()}
    assert float(runs["with"][0]) > 0
    assert [float(count) for count in runs["without"]] == [0]


@pytest.mark.slow
@pytest.mark.parametrize("of", [(), ("--tracing",)], ids=["metrics", "tracing"])
def test_the_verb_tells_what_metrics_cost_or_traces(
    workspace: Workspace, of: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collector, "SAMPLED_SHARE", 1.0)
    flags = ["--turns", "2", "--turn-seconds", "1", "--callers", "2", "--candidates", "5", *of]
    result = CliRunner().invoke(app, ["overhead", str(workspace.root), *flags])
    told = json.loads(result.stdout.strip().splitlines()[-1])
    assert result.exit_code == (0 if told["passed"] else 1)
    assert (told.get("exports", 0) > 0) is bool(of)
    assert {*told["kinds"]} == {"rank"}, "the tiny shop has no catalogue"
    assert min(told["kinds"]["rank"][f"{name}_per_second"] for name in overhead.GATEWAYS) > 1
