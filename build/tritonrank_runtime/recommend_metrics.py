"""What the model ``recommend`` counts: answers, what they lacked, where their time went, and how its store does."""

from collections.abc import Mapping
from typing import Any

from tritonrank_runtime.backend import Tally, family

NAME = "tritonrank_recommend_"
COUNTERS = {
    "answers_total": "Lists, by whether the user was unknown, and whether a part was missing",
    "degraded_total": "Lists made without a part, once for each thing that was missing",
    "step_seconds_total": "Seconds of lists by step",
    "store_errors_total": "Calls of the store without an answer",
}


class RecommendMetrics:
    """Counters of one instance.

    Args:
        labels: of the model.
        instance: its name.
    """

    def __init__(self, labels: Mapping[str, str], instance: str) -> None:
        self._labels, self._instance = dict(labels), instance
        self._tally = Tally()
        self._families = {name: self._tally.keep(family(NAME + name, said)) for name, said in COUNTERS.items()}
        self._counters: dict[tuple[str, ...], Any] = {}

    def answered(self, answer: Any) -> None:
        """A list was made: a ``RecommendAnswer`` of the engine."""
        told = ["yes" if is_so else "no" for is_so in (answer.cold, answer.degraded)]
        self._count("answers_total", 1, cold=told[0], degraded=told[1])
        for reason in answer.lacking:
            self._count("degraded_total", 1, reason=reason)
        for step, milliseconds in answer.milliseconds.items():
            self._count("step_seconds_total", milliseconds / 1_000, step=step)

    def watch(self, store: Any) -> None:
        """Count what a store's calls come to, and tell whether it answers."""
        store.watch = self._called
        is_up = self._tally.keep(family(f"{NAME}store_up", "Whether the store answers", "GAUGE"))
        metric = is_up.Metric(labels=self._labels | {"instance": self._instance})
        self._tally.follow([metric], lambda: [float(store.answers)])

    def close(self) -> None:
        """Tell what is left."""
        self._tally.close()

    def _called(self, operation: str, _: float, outcome: str) -> None:
        if outcome != "done":
            self._count("store_errors_total", 1, operation=operation, kind=outcome)

    def _count(self, name: str, amount: float, **labels: str) -> None:
        key = (name, *labels.values())
        if key not in self._counters:
            self._counters[key] = self._families[name].Metric(labels=self._labels | labels)
        self._tally.add(self._counters[key], amount)
