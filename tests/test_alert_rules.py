"""The alert rules: they follow the objectives, and promtool's own tests see each fire on its cause and be silent."""

import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from programs import require_program
from tritonrank.cli import app as tritonrank_app
from tritonrank_gateway.dialects import routers
from tritonrank_gateway.metrics import SECONDS
from tritonrank_gateway.recommend import routers as recommend_routers
from tritonrank_gateway.settings import GatewaySettings

from loadtests.__main__ import app as loadtests_app
from loadtests.alert_rules import EVENTS, PAIRS, RECOMMEND, RERANK, Service, bucket_of
from loadtests.console import CANNOT_RUN
from loadtests.objectives import ObjectivesError, read_objectives
from loadtests.recommend import SLO as RECOMMEND_SLO
from loadtests.rules import made
from loadtests.rules import rules as write_rules
from loadtests.session import SLO

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "deploy" / "prometheus"
RULES = sorted((FOLDER / "rules").glob("*.yml"))
UNIT_TESTS = sorted((FOLDER / "tests").glob("*.yml"))
RUNBOOK, METRICS = ROOT / "docs" / "alerts.md", ROOT / "docs" / "metrics.md"
MADE = ("ranking.yml", "recommending.yml")


def run(*command: str | Path) -> str:
    require_program(str(command[0]), "prometheus prometheus-alertmanager")
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def alerts_of(path: Path) -> list[dict[str, Any]]:
    groups = yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"] if "alert" in rule]


ALERTS = [alert for path in RULES for alert in alerts_of(path)]


def test_the_rules_are_those_of_the_objectives() -> None:
    for name, text in made(SLO, RECOMMEND_SLO).items():
        assert (FOLDER / "rules" / name).read_text(encoding="utf-8") == text, "run: python -m loadtests rules"


def test_prometheus_takes_the_rules_and_the_configuration() -> None:
    run("promtool", "check", "config", FOLDER / "prometheus.yml")  # names rules/*.yml
    run("promtool", "check", "rules", "--lint=all", "--lint-fatal", *RULES)


@pytest.mark.parametrize("path", UNIT_TESTS, ids=lambda path: path.stem)
def test_promtools_tests_pass(path: Path) -> None:
    run("promtool", "test", "rules", path)


def test_each_alert_is_seen_firing_and_silent() -> None:
    fire, silent = set(), set()
    for path in UNIT_TESTS:
        for one in yaml.safe_load(path.read_text(encoding="utf-8"))["tests"]:
            for asked in one["alert_rule_test"]:
                (fire if asked.get("exp_alerts") else silent).add(asked["alertname"])
    names = {alert["alert"] for path in RULES if path.name not in MADE for alert in alerts_of(path)}
    # Refused, Degraded and StoreErrors are silent for others in the very test in which they fire.
    assert names - fire == set()
    assert names - silent == {"Watchdog", "Refused", "Degraded", "StoreErrors"}


def test_each_alert_says_who_is_told_and_what_to_do() -> None:
    runbook = RUNBOOK.read_text(encoding="utf-8")
    sections = dict(re.findall(r"^### (\w+)\n(.*?)(?=^##|\Z)", runbook, re.MULTILINE | re.DOTALL))
    assert set(sections) == {alert["alert"] for alert in ALERTS}
    for alert in ALERTS:
        assert alert["labels"]["severity"] in ("page", "ticket", "none")
        assert alert["labels"]["system"] == "tritonrank"
        assert {*alert["annotations"]} == {"summary", "description", "runbook"}
        assert alert["annotations"]["runbook"] == f"docs/alerts.md#{alert['alert'].lower()}"
    for name, section in sections.items():
        assert "**Look at**" in section, name
        assert "**Do**" in section, name


def test_what_the_runbook_says_to_type_and_to_read_exists() -> None:
    page = RUNBOOK.read_text(encoding="utf-8")
    flags = {*re.findall(r"`--([a-z-]+)", page)} - {"slo", "recommend-slo", "out"}
    assert flags
    assert flags <= {one.name.replace("_", "-") for one in fields(GatewaySettings)}
    for program, app in (("tritonrank", tritonrank_app), ("python -m loadtests", loadtests_app)):
        named = {*re.findall(rf"(?:`|^ +){program} ([a-z]+)", page, re.MULTILINE)}
        known = {one.name or one.callback.__name__ for one in app.registered_commands if one.callback}
        known |= {str(group.name) for group in app.registered_groups}
        assert named, program
        assert named <= known, program
    anchors = {heading.lower().replace(" ", "-") for heading in re.findall(r"^#+ (.+)$", page, re.MULTILINE)}
    assert {*re.findall(r"\]\(#([\w-]+)\)", page)} <= anchors
    for name in {*re.findall(r"\]\(([\w.-]+\.md)\)", page)}:
        assert (RUNBOOK.parent / name).is_file(), name


def test_each_rule_asks_for_metrics_and_labels_that_there_are() -> None:
    """docs/metrics.md is held against real pages by a test of its own."""
    rows = re.findall(
        r"^\| `((?:tritonrank|nv|process)_\w+)` \| (\w+)[^|]*\|([^|]*)\|", METRICS.read_text(), re.MULTILINE
    )
    labels = {name: {*re.findall(r"`(\w+)`", told)} for name, _, told in rows}
    for name, kind, _ in rows:
        if kind == "histogram":
            labels |= {f"{name}_count": labels[name], f"{name}_bucket": labels[name] | {"le"}}
    used = set()
    for path in RULES:
        # What is recorded stands behind a colon.
        for name, selector in re.findall(r"(?<!:)\b((?:tritonrank|nv|process)_\w+)(\{[^}]*\})?", path.read_text()):
            assert {*re.findall(r"(\w+)!?=", selector)} <= labels[name] | {"job"}, (path.name, name, selector)
            used.add(name)
    assert len(used) > 20


def test_the_objectives_limits_are_bounds_of_the_gateways_histograms() -> None:
    ranking, recommending = read_objectives(SLO), read_objectives(RECOMMEND_SLO)
    limits = [ranking.steady.p99_ms, ranking.load.deadline_ms, recommending.steady.p99_ms]
    limits += [recommending.load.deadline_ms, recommending.steps.events_p99_ms]
    assert [1_000 * bucket_of(one) for one in limits] == limits
    assert 1_000 * bucket_of(120) == 150
    with pytest.raises(ValueError, match="choose less"):
        bucket_of(1_001 * SECONDS[-1])


def test_each_service_has_the_routes_that_it_is_about() -> None:
    paths = {name: {route.path.replace(":path}", "}") for router in found for route in router.routes}
             for name, found in (("rank", routers()), ("recommend", recommend_routers()))}  # fmt: skip
    ours = {path for path in paths["rank"] | paths["recommend"] if re.fullmatch(RERANK.routes, path)}
    assert ours == paths["rank"] - {"/info", "/health", "/models", "/v1/models"}
    assert {RECOMMEND.routes, EVENTS.routes} <= paths["recommend"]


def test_objectives_that_cannot_be_counted_are_told_with_their_file(tmp_path: Path) -> None:
    slo = tmp_path / "slo.yaml"
    slo.write_text("load: {rate: 1, candidates: 10, deadline_ms: 60000}\nsteady: {p99_ms: 30000}\n")
    with pytest.raises(ObjectivesError, match=r"slo\.yaml: 30000 ms"):
        made(slo, RECOMMEND_SLO)
    slo.write_text("load: {rate: 1, candidates: 10, deadline_ms: 6000}\nsteady: {p50_ms: 300}\n")
    assert made(slo, RECOMMEND_SLO)["ranking.yml"].count("alert:") == 1


ROUTED = {
    ("Watchdog", "none", ""): "watchdog",
    ("RerankErrors", "page", "rerank"): "pager",
    ("StoreDown", "page", ""): "pager",
    ("Drift", "ticket", ""): "tickets",
}


def test_alertmanager_wakes_whom_it_should() -> None:
    sample = FOLDER / "alertmanager.yml"
    run("amtool", "check-config", sample)
    for (name, severity, service), receiver in ROUTED.items():
        labels = [f"alertname={name}", f"severity={severity}", "system=tritonrank", f"service={service}"]
        routed = run("amtool", "config", "routes", "test", "--config.file", sample, *labels)
        assert routed.split()[0] == receiver, name
    config = yaml.safe_load(sample.read_text(encoding="utf-8"))
    named = {
        name
        for rule in config["inhibit_rules"]
        for matcher in [*rule["source_matchers"], *rule["target_matchers"]]
        for name in re.findall(r'alertname=~?"([^"]+)"', matcher)
    }
    for name in named:
        assert any(re.fullmatch(name, alert["alert"]) for alert in ALERTS), f"{name}: no such alert"


def test_the_verb_writes_whole_files_or_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rules(SLO, RECOMMEND_SLO, tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == made(SLO, RECOMMEND_SLO)
    assert "13 alerts" in capsys.readouterr().err
    wrong = tmp_path / "slo.yaml"
    wrong.write_text("load: {rate: 1, candidates: 0, deadline_ms: 60}\n")
    for slo, out, said in ((wrong, tmp_path / "none", "load.candidates"), (SLO, tmp_path / "none", "none/")):
        with pytest.raises(SystemExit, match=str(CANNOT_RUN)):
            write_rules(slo, RECOMMEND_SLO, out)
        assert said in capsys.readouterr().err
        assert not out.exists()


# Requests of a minute, and of how many times the budget which windows must speak.
PER_MINUTE = 10_000
BURNT = {20: ("1h", "6h", "1d", "3d"), 8: ("6h", "1d", "3d"), 4: ("1d", "3d"), 2: ("3d",), 0.5: ()}
SHARES = {"errors": 0.001, "slow": 0.01, "late": 0.005}
OBJECTIVES = [(RERANK, "errors"), (RERANK, "slow"), (RERANK, "late"), (RECOMMEND, "errors"), (RECOMMEND, "slow"),
              (RECOMMEND, "late"), (EVENTS, "slow")]  # fmt: skip
LIMITS = {"rerank": ("1.0", "2.0"), "recommend": ("0.15", "1.0"), "events": ("0.1", "1.0")}
ROUTES = {"rerank": "/v1/rerank", "recommend": "/v1/recommend", "events": "/v1/events"}


def counted(
    job: str, service: Service, good: float, *, slow: float = 0, late: float = 0, **failed: float
) -> dict[str, float]:
    """What a gateway counts in a minute, by the names of its series."""
    route, (limit, deadline) = ROUTES[service.name], LIMITS[service.name]
    sized = f'job="{job}", route="{route}", artifact="a", candidates="<=1"'
    bucket = f"tritonrank_gateway_request_seconds_bucket{{{sized}, le="
    requests = f'tritonrank_gateway_requests_total{{job="{job}", route="{route}", outcome='
    answered = good + slow + late
    return {
        f'{requests}"answered"}}': answered,
        # What callers spoil, and what is larger than the objective's load, are not counted.
        f'{requests}"invalid"}}': 5_000,
        f'tritonrank_gateway_request_seconds_count{{job="{job}", route="{route}", candidates="<=1000"}}': 900,
        f"tritonrank_gateway_request_seconds_count{{{sized}}}": answered,
        f'{bucket}"{limit}"}}': good,
        f'{bucket}"{deadline}"}}': good + slow,
        f'{bucket}"+Inf"}}': answered,
        **{f'{requests}"{outcome}"}}': count for outcome, count in failed.items()},
    }


def check(folder: Path, series: Mapping[str, str], asked: Mapping[tuple[str, str], Sequence[str]], at: str) -> None:
    """Let promtool see which alerts fire.

    Args:
        folder: for promtool's file.
        series: values by name, in promtool's notation.
        asked: the windows that fire, by alert and regular expression of the job; of each job ``job window``.
        at: when.
    """
    samples = [
        {
            "expr": f'count by (job, window) (ALERTS{{alertname="{alert}", alertstate="firing", job=~"{jobs}"}})',
            "eval_time": at,
            "exp_samples": [
                {"labels": '{{job="{}", window="{}"}}'.format(*one.split(" ")), "value": 1} for one in fire
            ],
        }
        for (alert, jobs), fire in asked.items()
    ]
    unit_test = {
        "rule_files": [str(FOLDER / "rules" / name) for name in MADE],
        "evaluation_interval": "5m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": name, "values": values} for name, values in series.items()],
                "promql_expr_test": samples,
            }
        ],
    }
    path = folder / "unit_test.yml"
    path.write_text(yaml.safe_dump(unit_test), encoding="utf-8")
    run("promtool", "test", "rules", path)


def test_the_windows_speak_that_burn_too_fast(tmp_path: Path) -> None:
    series: dict[str, str] = {}
    asked = {}
    for service, objective in OBJECTIVES:
        name = f"{service.name.capitalize()}{objective.capitalize()}"
        for factor in BURNT:
            bad = factor * SHARES[objective] * PER_MINUTE
            kind = service.failures[-1] if objective == "errors" else objective
            made_bad = counted(f"{name}-{factor}", service, PER_MINUTE - bad, **{kind: bad})
            series |= {key: f"0+{count:g}x70" for key, count in made_bad.items()}
        asked[name, f"{name}-.*"] = [f"{name}-{factor} {one}" for factor, windows in BURNT.items() for one in windows]
    check(tmp_path, series, asked, "65m")


def test_alerts_end_with_their_cause_and_are_silent_in_a_quiet_night(tmp_path: Path) -> None:
    series = {}
    for job, rate in (("now", 1), ("before", 1), ("night", 1e-4)):
        series |= {key: f"0+{rate * count:g}x70" for key, count in counted(job, RERANK, PER_MINUTE).items()}
    failed = 'tritonrank_gateway_requests_total{{job="{}", route="/v1/rerank", outcome="failed"}}'
    series[failed.format("now")] = "0+1000x70"
    series[failed.format("before")] = "0+1000x45 45000x25"
    series[failed.format("night")] = "0x58 1 2 3x70"  # of one request a minute, so its share is high
    series[failed.format("outage")] = "0+10x70"  # of a gateway that never answered anybody
    every = [pair.long for pair in PAIRS]
    errors = [f"{job} {one}" for job in ("now", "outage") for one in every]
    errors += [f"before {one}" for one in every if one != "1h"]
    late = [f"outage {one}" for one in every]
    check(tmp_path, series, {("RerankErrors", ".*"): errors, ("RerankLate", "night|outage"): late}, "60m")


def test_a_median_that_is_missed_becomes_a_ticket(tmp_path: Path) -> None:
    series = {}
    for service in (RERANK, RECOMMEND):
        for job, within in (("slow", 40), ("quick", 60)):
            bucket = f'tritonrank_gateway_request_seconds_bucket{{job="{job}", route="{ROUTES[service.name]}"'
            for bound, count in (("0.05", within), ("0.5", 100), ("+Inf", 100)):
                series[f'{bucket}, candidates="<=10", le="{bound}"}}'] = f"0+{count}x70"
    # 40 of 100 within 50 ms and the rest evenly up to 500 ms: the median is 125 ms, above 60 and below 300.
    check(tmp_path, series, {("RecommendMedian", ".*"): ["slow 6h"], ("RerankMedian", ".*"): []}, "65m")
