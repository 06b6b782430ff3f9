"""The metrics of a rollout, for whoever scrapes the controller; read from its status at each look."""

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tritonrank.serve.rollout.controller import Controller
from tritonrank.serve.rollout.state import PHASES

NAME = "tritonrank_rollout_"


class RolloutMetrics(Collector):
    """Of one controller."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller

    def collect(self) -> Iterator[Metric]:
        """For Prometheus' page."""
        status = self._controller.status()
        rollout = status["rollout"] or {"phase": "", "is_under_way": False}
        phase = GaugeMetricFamily(f"{NAME}phase", "1 for the phase that the rollout is in", labels=["phase"])
        for name in PHASES:
            phase.add_metric([name], float(rollout["phase"] == name))
        yield phase
        goes_on = rollout["is_under_way"]
        seconds = rollout["seconds"] if goes_on else 0.0
        yield GaugeMetricFamily(f"{NAME}step_seconds", "Since the rollout took its step; 0 where none is", seconds)
        share = rollout["share"] if goes_on else 0.0
        yield GaugeMetricFamily(f"{NAME}share", "Of the users, whom the canary answers", share)
        exposure = status.get("exposure") or {"by_version": 0, "in_all": 0}
        seen = exposure["by_version"] / exposure["in_all"] if exposure["in_all"] else 0.0
        yield GaugeMetricFamily(f"{NAME}exposed", "Share of rankings that the version gave since it was a canary", seen)
        waits = float(goes_on and rollout["reason"].startswith("undecided"))
        yield GaugeMetricFamily(f"{NAME}undecided", "1 where a step takes longer than the rules allow", waits)
        value = GaugeMetricFamily(f"{NAME}reading", "What a rule reads", labels=["rule", "of"])
        limit = GaugeMetricFamily(f"{NAME}limit", "What a rule allows", labels=["rule"])
        for one in {(one["rule"], one["what"]): one for one in status.get("readings", ())}.values():
            if one["value"] is not None:
                value.add_metric([one["rule"], one["what"]], one["value"])
        for rule, allowed in {one["rule"]: one["limit"] for one in status.get("readings", ())}.items():
            limit.add_metric([rule], allowed)
        yield from (value, limit)
        away = GaugeMetricFamily(f"{NAME}away", "Gateways and Tritons that did not answer the last look", labels=["of"])
        for kind in ("gateways", "tritons"):
            away.add_metric([kind], sum(1 for one in status[kind] if one["problem"]))
        yield away
        decisions = CounterMetricFamily(f"{NAME}decisions", "Decisions and why", labels=["decision", "rule"])
        for (decision, rule), count in dict(self._controller.book.decided).items():
            decisions.add_metric([decision, rule], count)
        yield decisions
