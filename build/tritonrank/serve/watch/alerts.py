"""What needs a look, by a few plain rules on two looks at the pages; ``deploy/prometheus`` has the real ones.

A rule has the name of the Prometheus alert that asks the same over a longer time, so that docs/alerts.md tells what to
do. An alert is kept with the moment when it began, and when it ended, until others take its line.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from tritonrank.serve.watch.scrape import Scrape, Span

LONGEST_QUEUE_SECONDS = 0.5
MOST_REFUSED = 0.01
MOST_DEGRADED = 0.01
MOST_FAILED = 0.001
FEWEST = 10
"""Answers of a kind, before their share says something."""
LARGEST_DRIFT = 0.25
"""PSI; above it a distribution is said to be another one."""
OLDEST_MODEL_SECONDS = 30 * 86_400
LATEST_LOOP_SECONDS = 0.1
LONGEST_LOG_SECONDS = 900
MOST_FILES = 0.8
KEPT = 8


@dataclass(frozen=True)
class Alert:
    """Something that needs a look.

    Attributes:
        name: of the rule, as of the Prometheus alert.
        about: what of several, such as a page or a feature; "" where there is one.
        said: what is so.
        began, ended: unix seconds; 0 as an end: it still is so.
    """

    name: str
    about: str
    said: str
    began: float
    ended: float = 0.0


Found = Iterator[tuple[str, str, str]]
"""Name, about and said."""


def _down(_: Span, pages: Mapping[str, Scrape]) -> Found:
    for page in pages.values():
        if page.problem:
            yield "ServerDown", page.url, page.problem


def _shares(span: Span, _: Mapping[str, Scrape]) -> Found:
    outcomes = span.raised("tritonrank_gateway_requests_total", "outcome")
    # What a caller did wrong is no request that could have been answered.
    total = sum(count for outcome, count in outcomes.items() if outcome != "invalid")
    for name, outcome, most in (
        ("Refused", "refused", MOST_REFUSED),
        ("Errors", "failed", MOST_FAILED),
        ("Errors", "expired", MOST_FAILED),
    ):
        count = outcomes.get(outcome, 0.0)
        if total and count >= FEWEST and count / total > most:
            yield name, outcome if name == "Errors" else "", f"{count / total:.1%} of the requests were {outcome}"
    lists = span.raised("tritonrank_gateway_recommendations_total", "degraded")
    if (count := lists.get("yes", 0.0)) >= FEWEST and (share := count / sum(lists.values())) > MOST_DEGRADED:
        reasons = span.raised("tritonrank_gateway_degraded_total", "reason")
        reason = max(reasons, key=lambda one: reasons[one], default="")
        yield "Degraded", "", f"{share:.1%} of the lists were made without a part, most of them: {reason}"


def _queue(span: Span, _: Mapping[str, Scrape]) -> Found:
    queued = span.gauge("tritonrank_gateway_queued_seconds") or 0.0
    if queued > LONGEST_QUEUE_SECONDS:
        yield "Queue", "", f"{queued:.1f} s of work wait"


def _parts(span: Span, _: Mapping[str, Scrape]) -> Found:
    if span.gauge("tritonrank_gateway_store_up") == 0:
        yield "StoreDown", "", "the store does not answer"
    for labels, value in span.now("tritonrank_gateway_replica_up"):
        if not value:
            yield "ReplicaOut", labels.get("replica", ""), "out of rotation"
    waiting = span.gauge("tritonrank_gateway_events_log_waiting_seconds") or 0.0
    if waiting > LONGEST_LOG_SECONDS:
        yield "EventsLogBehind", "", f"events have waited {waiting / 60:.0f} min for the training log"
    if (rose := span.rose("tritonrank_server_restarts")) or (rose := span.rose("tritonrank_worker_restarts_total")):
        yield "Restarts", "", f"{rose:.0f} parts were lost and came back"


def _quality(span: Span, _: Mapping[str, Scrape]) -> Found:
    for labels, value in span.now("tritonrank_quality_drift_psi"):
        if value > LARGEST_DRIFT:
            about = " of ".join(filter(None, (labels.get("feature", ""), labels.get("kind", ""))))
            yield "Drift", about, f"PSI {value:.2f} against the artifact's reference"
    for labels, created in span.now("tritonrank_gateway_artifact_created_seconds"):
        if created > 0 and (age := time.time() - created) > OLDEST_MODEL_SECONDS:
            yield "ModelOld", labels.get("part", ""), f"made {age / 86_400:.0f} days ago"
    level, acts = span.gauge("tritonrank_adapt_level") or 0.0, span.gauge("tritonrank_adapt_acting") or 0.0
    if level and acts:
        yield "Adapted", "", f"less is done for a list: level {level:.0f}"


def _process(span: Span, _: Mapping[str, Scrape]) -> Found:
    late = span.quantile("tritonrank_gateway_loop_late_seconds", 0.99) or 0.0
    if late > LATEST_LOOP_SECONDS:
        yield "LoopLate", "", f"the gateway's loop is held for {late:.2f} s"
    files, most = span.gauge("process_open_fds"), span.gauge("process_max_fds")
    if files and most and files / most > MOST_FILES:
        yield "FilesOpen", "", f"{files:.0f} of {most:.0f} files are open"


RULES: tuple[Callable[[Span, Mapping[str, Scrape]], Found], ...] = (_down, _shares, _queue, _parts, _quality, _process)


class Alerts:
    """The last alerts, newest first.

    Args:
        clock: unix seconds, for tests.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._running: dict[tuple[str, str], Alert] = {}
        self._ended: deque[Alert] = deque(maxlen=KEPT)

    def look(self, span: Span, pages: Mapping[str, Scrape]) -> None:
        """Ask all rules once more."""
        now = self._clock()
        found = {(name, about): said for rule in RULES for name, about, said in rule(span, pages)}
        for key in [key for key in self._running if key not in found]:
            ended = self._running.pop(key)
            self._ended.appendleft(Alert(ended.name, ended.about, ended.said, ended.began, now))
        for key, said in found.items():
            began = self._running[key].began if key in self._running else now
            self._running[key] = Alert(*key, said, began)

    @property
    def last(self) -> list[Alert]:
        """Those that are so, then those that were."""
        running = sorted(self._running.values(), key=lambda one: -one.began)
        return [*running, *self._ended][: max(KEPT, len(running))]
