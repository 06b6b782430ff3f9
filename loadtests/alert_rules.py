"""Prometheus rules of a service's objectives: how fast each error budget burns, and an alert for each pair of windows.

An objective such as "99% within a second" allows one request in a hundred to be slower: that is its budget. Burn rate 1
uses it up in exactly the time that it is meant for, 30 days, and 14.4 uses 2% of it in one hour. An alert wants the
burn rate over a long window, so that it means something, and over a short one, so that it ends soon after its cause
(Google's SRE workbook, https://sre.google/workbook/alerting-on-slos/, "multiwindow, multi-burn-rate alerts").

Three objectives of a file have a budget: ``error_rate``, ``p99_ms`` and ``goodput``. The median has none, and has an
alert of its own; the other parts of the file are about what only a load test does to a server.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import yaml
from tritonrank_gateway.metrics import CANDIDATE_BUCKETS, SECONDS, candidate_bucket

from loadtests.objectives import Objectives

LEAST_BAD = 10
"""Requests of the long window that went wrong before anybody is told: in a quiet night one failure is a high rate."""
ANSWERED = ("answered", "degraded")
FAILED = ("refused", "expired", "failed")
"""What becomes of requests, the label ``outcome``; left out are those that the caller spoilt or gave up."""
SYSTEM = "tritonrank"
"""Label of all its alerts, for Alertmanagers that have others', too."""
RECORDED = "job:tritonrank_objective_bad"
TICKET_INTERVAL = "2m"
"""Between two evaluations of windows of days: they move slowly and read much. Graphs have gaps above 5m."""


@dataclass(frozen=True)
class Pair:
    """Two windows that both must burn faster than a factor."""

    factor: float
    long: str
    short: str
    severity: Literal["page", "ticket"]


PAIRS = (
    Pair(14.4, "1h", "5m", "page"),
    Pair(6, "6h", "30m", "page"),
    Pair(3, "1d", "2h", "ticket"),
    Pair(1, "3d", "6h", "ticket"),
)


@dataclass(frozen=True)
class Service:
    """What callers know as one thing, with objectives of its own.

    Attributes:
        name: of the label ``service``, and with a capital letter the beginning of its alerts' names.
        routes: regular expression of the label ``route``.
        failures: outcomes that count as errors.
    """

    name: str
    routes: str
    failures: tuple[str, ...] = FAILED


RERANK = Service("rerank", ".*rank.*|/predict|.*/score")
RECOMMEND = Service("recommend", "/v1/recommend", (*FAILED, "degraded"))
EVENTS = Service("events", "/v1/events")


@dataclass(frozen=True)
class Budget:
    """What of a service's requests may go wrong.

    Attributes:
        service: whose.
        objective: ``errors``, ``slow`` or ``late``.
        share: of the requests, that may.
        bad: PromQL of the requests of a window that did, by job; ``{window}`` stands for it.
        offered: of all.
        said: what a bad request is, for people.
    """

    service: Service
    objective: Literal["errors", "slow", "late"]
    share: float
    bad: str
    offered: str
    said: str

    @property
    def labels(self) -> dict[str, str]:
        return {"service": self.service.name, "objective": self.objective}

    @property
    def alert(self) -> str:
        return f"{self.service.name.capitalize()}{self.objective.capitalize()}"

    def recorded(self, what: Literal["increase", "ratio"], window: str) -> str:
        """The selector of a number that is kept of a window: how many requests were bad, or which share."""
        return f"{RECORDED}:{what}{window}{_selector(self.labels)}"


def rules_of_ranking(objectives: Objectives) -> dict[str, Any]:
    """The rule groups of the rerank dialects, by ``loadtests/slo.yaml``."""
    return {"groups": _groups(RERANK, objectives)}


def rules_of_recommending(objectives: Objectives) -> dict[str, Any]:
    """The rule groups of recommendations and events, by ``loadtests/slo-recommend.yaml``."""
    groups = [*_groups(RECOMMEND, objectives)]
    if objectives.steps is not None and objectives.steps.events_p99_ms is not None:
        groups += _group_pair(EVENTS, [_slow(EVENTS, objectives.steps.events_p99_ms, _sizes(0))], [])
    return {"groups": groups}


def as_yaml(rules: dict[str, Any], source: str) -> str:
    """The text of a rules file.

    Args:
        rules: what one of the functions above gives.
        source: the file of objectives that it comes from.
    """
    head = f"# Made from {source} by: python -m loadtests rules\n# Change the objectives and make it again.\n"
    return head + yaml.dump(rules, Dumper=_Dumper, sort_keys=False, width=200)


def budgets_of(service: Service, objectives: Objectives) -> list[Budget]:
    """The objectives of a service that have a budget."""
    steady, load = objectives.steady, objectives.load
    if steady is None:
        return []
    offered, failed = _requests(service, *ANSWERED, *FAILED), _requests(service, *service.failures)
    or_degraded = " or came without one of its parts" if "degraded" in service.failures else ""
    sizes = _sizes(load.candidates)
    budgets = []
    if steady.error_rate is not None:
        budgets.append(Budget(service, "errors", steady.error_rate, failed, offered, f"got no ranking{or_degraded}"))
    if steady.p99_ms is not None:
        budgets.append(_slow(service, steady.p99_ms, sizes))
    if steady.goodput is not None:
        bound = bucket_of(load.deadline_ms)
        # A counter with labels begins with its first count: until then it is nothing, not 0.
        answered, failed = (f"({one} or 0 * {offered})" for one in (_times(service, sizes), failed))
        # What is late and degraded counts twice: too many, by less than what is degraded, which has its own alert.
        bad = f"{answered} - ({_times(service, sizes, bound)} or 0 * {offered}) + {failed}"
        said = f"got no ranking within {1_000 * bound:g} ms{or_degraded}"
        budgets.append(Budget(service, "late", 1 - steady.goodput, bad, f"{answered} + {failed}", said))
    return budgets


def bucket_of(milliseconds: float) -> float:
    """The bound in seconds from which on the gateway's histogram counts a time as beyond a limit: the next one up.

    Raises:
        ValueError: there is none so high.
    """
    for bound in SECONDS:
        if bound >= milliseconds / 1_000:
            return bound
    raise ValueError(f"{milliseconds:g} ms: the gateway's histograms end at {1_000 * SECONDS[-1]:g} ms; choose less")


def _slow(service: Service, p99_ms: float, sizes: str) -> Budget:
    bound = bucket_of(p99_ms)
    answered = _times(service, sizes)
    bad = f"{answered} - {_times(service, sizes, bound)}"
    return Budget(service, "slow", 0.01, bad, answered, f"took longer than {1_000 * bound:g} ms")


def _groups(service: Service, objectives: Objectives) -> list[dict[str, Any]]:
    medians = []
    if objectives.steady is not None and objectives.steady.p50_ms is not None:
        medians = [_median_alert(service, objectives.steady.p50_ms, _sizes(objectives.load.candidates))]
    return _group_pair(service, budgets_of(service, objectives), medians)


def _group_pair(service: Service, budgets: Sequence[Budget], others: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The fast windows with those who are woken by them, and the slow ones."""
    groups: list[dict[str, Any]] = []
    recorded: set[str] = set()
    for severity, interval in (("page", None), ("ticket", TICKET_INTERVAL)):
        pairs = [pair for pair in PAIRS if pair.severity == severity]
        windows = sorted({window for pair in pairs for window in (pair.short, pair.long)} - recorded, key=_seconds)
        recorded |= {*windows}
        rules = [rule for budget in budgets for window in windows for rule in _records(budget, window)]
        # A share is at most 1: a budget so large that a factor's multiple is beyond it cannot burn so fast.
        rules += [_alert(one, pair) for one in budgets for pair in pairs if pair.factor * one.share < 1]
        rules += others if severity == "ticket" else []
        group = {"name": f"tritonrank-{service.name}-{severity}", "interval": interval, "rules": rules}
        groups.append({key: value for key, value in group.items() if value})
    return groups


def _records(budget: Budget, window: str) -> Iterator[dict[str, Any]]:
    bad, offered = (expression.replace("{window}", window) for expression in (budget.bad, budget.offered))
    share = f"{budget.recorded('increase', window)} / on (job) (({offered}) > 0)"
    yield {"record": f"{RECORDED}:increase{window}", "expr": bad, "labels": budget.labels}
    yield {"record": f"{RECORDED}:ratio{window}", "expr": share, "labels": budget.labels}


def _alert(budget: Budget, pair: Pair) -> dict[str, Any]:
    limit = f"{pair.factor:g} * {budget.share:g}"
    parts = [f"{budget.recorded('ratio', window)} > {limit}" for window in (pair.long, pair.short)]
    parts.append(f"{budget.recorded('increase', pair.long)} >= {LEAST_BAD}")
    said = f"{{{{ $value | humanizePercentage }}}} of the requests of {pair.long} {budget.said}"
    return {
        "alert": budget.alert,
        "expr": "\nand ".join(parts) + "\n",
        "labels": {"severity": pair.severity, "system": SYSTEM, "window": pair.long} | budget.labels,
        "annotations": {
            "summary": f"{budget.service.name}: the budget of {budget.share:.2%} burns {pair.factor:g} times too fast",
            "description": f"{said}; the objective allows {budget.share:.2%}.",
            "runbook": f"docs/alerts.md#{budget.alert.lower()}",
        },
    }


def _median_alert(service: Service, p50_ms: float, sizes: str) -> dict[str, Any]:
    bucket = f"tritonrank_gateway_request_seconds_bucket{{{_sized(service, sizes)}}}"
    medians = [
        f"histogram_quantile(0.5, sum by (job, le) (rate({bucket}[{window}]))) > {p50_ms / 1_000:g}"
        for window in ("6h", "30m")
    ]
    name = f"{service.name.capitalize()}Median"
    return {
        "alert": name,
        "expr": "\nand ".join(medians) + "\n",
        "labels": {
            "severity": "ticket",
            "system": SYSTEM,
            "window": "6h",
            "service": service.name,
            "objective": "median",
        },
        "annotations": {
            "summary": f"{service.name}: half of the requests take longer than {p50_ms:g} ms",
            "description": f"The median of 6 h is {{{{ $value | humanizeDuration }}}}; the objective is {p50_ms:g} ms.",
            "runbook": f"docs/alerts.md#{name.lower()}",
        },
    }


def _sizes(candidates: int) -> str:
    """The labels of requests up to so many candidates: those that the objectives are about."""
    bounds = [bound for bound in CANDIDATE_BUCKETS if bound < candidates] + [candidates]
    return "|".join(dict.fromkeys(candidate_bucket(bound) for bound in bounds))


def _requests(service: Service, *outcomes: str) -> str:
    """Requests of a window by what became of them; those that the caller spoilt are no business of an objective."""
    labels = f'route=~"{service.routes}", outcome=~"{"|".join(outcomes)}"'
    return f"sum by (job) (increase(tritonrank_gateway_requests_total{{{labels}}}[{{window}}]))"


def _times(service: Service, sizes: str, bound: float | None = None) -> str:
    """Answers of a window, all or those within a time."""
    series = f"count{{{_sized(service, sizes)}" if bound is None else f'bucket{{{_sized(service, sizes)}, le="{bound}"'
    return f"sum by (job) (increase(tritonrank_gateway_request_seconds_{series}}}[{{window}}]))"


def _sized(service: Service, sizes: str) -> str:
    return f'route=~"{service.routes}", candidates=~"{sizes}"'


def _selector(labels: dict[str, str]) -> str:
    return "{" + ", ".join(f'{name}="{value}"' for name, value in labels.items()) + "}"


def _seconds(window: str) -> int:
    return int(window[:-1]) * {"m": 60, "h": 3_600, "d": 86_400}[window[-1]]


class _Dumper(yaml.SafeDumper):
    """Texts of several lines stand as such."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)
