"""One load in one process: takes from the schedule what is due, sends it, checks the answer, writes down the outcome.

All senders of a process share one schedule. A sender takes the next arrival, sleeps until it is due, and sends; as long
as one is free nobody waits for an answer, so this is an open loop. A request whose deadline passes before a sender is
free is not sent any more: that is the generator's failure, and makes the run invalid.
"""

import heapq
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import gevent
import gevent.event

from loadtests.accounting import AFTERWARDS, GOLDEN, Outcome, Recorder
from loadtests.callers import Answer, Caller, RankCaller, request_bytes
from loadtests.checks import failure_kind
from loadtests.dialects import VISITS
from loadtests.machine import describe_machine
from loadtests.results import FailureKind
from loadtests.settings import LoadSettings
from loadtests.shapes import Arrival, arrivals
from loadtests.visits import DegradedError, VisitCaller

GOLDEN_EVERY_SECONDS = 2.0
REPORT_SECONDS = 8.0
"""How long to wait for what other processes have to report, every 3 s, after the last deadline has passed."""


class TooLateError(RuntimeError):
    """The generator itself could not send a request before its deadline."""


@dataclass(frozen=True)
class Done:
    """A request that is over, for whoever wants to hear of each."""

    outcome: Outcome
    error: Exception | None
    name: str


class Load:
    """A run as one process sees it.

    Args:
        settings: what is wanted.
        url: of the server.

    Raises:
        WorkloadError: the workload or the golden requests cannot be used.
    """

    def __init__(self, settings: LoadSettings, url: str) -> None:
        self.settings = settings
        self.url = url
        self.machine = describe_machine()
        self.requests = settings.read_requests()
        self.recorder = Recorder()
        self.due: list[float] = []
        """when each request of the plan is due, in all processes together; empty in a closed loop"""
        self.started_epoch = 0.0
        self.stopped_at: float | None = None
        self.is_stopped = False
        self._golden = settings.read_golden()
        self._caller: Caller | None = None
        self._schedule: Iterator[Arrival] = iter(())
        self._begun = gevent.event.Event()
        self._origin = 0.0
        self._open = 0
        self._cpu_before = 0.0

    def begin(self, started_epoch: float, share: int | None, shares: int) -> None:
        """Start the clock.

        Args:
            started_epoch: second 0 of the plan on the wall clock, which all processes have.
            share: this process sends arrivals share, share + shares, share + 2 * shares ...; None: it only collects.
            shares: processes that send.
        """
        self.started_epoch = started_epoch
        self._origin = time.perf_counter() + (started_epoch - time.time())
        self._cpu_before = time.process_time()
        if self.settings.plan.clients is None:
            self.due = [arrival.due for arrival in self._arrivals()]
        if share is not None:
            self._caller = self._open_caller()
            self._schedule = self._share(share, shares)
        self._begun.set()

    @property
    def has_begun(self) -> bool:
        return bool(self._begun.is_set())

    @property
    def now(self) -> float:
        """Seconds since the start of the plan."""
        return time.perf_counter() - self._origin

    @property
    def cpu_seconds(self) -> float:
        """That this process took since the start."""
        return time.process_time() - self._cpu_before

    @property
    def is_over(self) -> bool:
        """Nothing is due any more, and everything has come back or had time enough to."""
        late = self.now - self.settings.plan.seconds
        if not self.has_begun or late < 0:
            return False
        if self.settings.plan.clients is None:
            is_complete = self.recorder.answered >= len(self.due)
        else:  # how many a closed loop sends is known to those who send
            is_complete = self._caller is not None and not self._open
        return is_complete or late > self.settings.deadline_seconds + REPORT_SECONDS

    def stop(self) -> None:
        """The run ends here. Requests of the last moments cannot have come back, so they do not count."""
        if self.has_begun and not self.is_stopped and self.now < self.settings.plan.seconds:
            self.stopped_at = self.now - self.settings.deadline_seconds
        self.is_stopped = True

    def send_all(self, tell: Callable[[Done], None]) -> None:
        """A sender's life: take what is due next, send it in time, again; returns when nothing is left."""
        self._begun.wait()
        for arrival in self._schedule:
            gevent.sleep(max(0.0, arrival.due - self.now))
            done, answer = self._send(arrival)
            tell(done)
            if answer is not None and answer.afterwards is not None:
                tell(self._send_afterwards(answer.afterwards))

    def _open_caller(self) -> Caller:
        if self.settings.dialect == VISITS:
            return VisitCaller(self.url, self.settings.visitors, self.settings.candidates or 0)
        return RankCaller(self.url, self.settings.dialect)

    def _send(self, arrival: Arrival) -> tuple[Done, Answer | None]:
        assert self._caller is not None, "only a process with a share sends"
        is_golden = arrival.number < 0
        golden = self._golden[arrival.place % len(self._golden)] if is_golden else None
        # A load before this one has left its contexts in the server's cache, so this one begins behind its rows.
        request = golden or self.requests[(self.settings.sent_before + arrival.place) % len(self.requests)]
        sent, ended = self.now, math.inf
        seconds_left = self.settings.deadline_seconds - (sent - arrival.due)
        error: Exception | None = None
        answer: Answer | None = None
        level = ""
        kind: FailureKind | None = "unanswered"  # unless something better is known: the run may be broken off
        self._open += 1
        try:
            if seconds_left <= 0:
                sent = math.nan
                raise TooLateError("no sender was free before its deadline")
            answer = self._caller.call(request, seconds_left)
            kind, ended, level = None, self.now, answer.level
            self.recorder.artifact = answer.artifact
            self.recorder.add_steps(answer.steps)
        except TooLateError as failure:
            error = failure
        except Exception as failure:  # noqa: BLE001 - whatever a call meets is a result
            error, kind, ended = failure, failure_kind(failure), self.now
            level = failure.level if isinstance(failure, DegradedError) else ""
        finally:
            self._open -= 1
            size = answer.bytes if answer is not None else request_bytes(request)
            outcome = Outcome(arrival.number, arrival.due, sent, ended, kind, len(request.items), size, level)
            self.recorder.add(outcome, str(error or "the run was stopped"))
        return Done(outcome, error, "golden" if is_golden else self.settings.dialect or "rank"), answer

    def _send_afterwards(self, afterwards: Callable[[], Mapping[str, float]]) -> Done:
        """What the schedule does not wait for; where it goes wrong the run says so, as for a golden request."""
        began = self.now
        error: Exception | None = None
        kind: FailureKind | None = None
        try:
            self.recorder.add_steps(afterwards())
        except Exception as failure:  # noqa: BLE001 - whatever a call meets is a result
            error, kind = failure, failure_kind(failure)
        outcome = Outcome(AFTERWARDS, began, began, self.now, kind, 0, 0)
        self.recorder.add(outcome, f"afterwards: {error}")
        return Done(outcome, error, "events")

    def _share(self, share: int, shares: int) -> Iterator[Arrival]:
        if self.settings.plan.clients is not None:
            return self._whenever_free(share, shares)
        golden = self._golden_arrivals() if self._golden else iter(())
        return itertools.islice(heapq.merge(self._arrivals(), golden), share, None, shares)

    def _whenever_free(self, share: int, shares: int) -> Iterator[Arrival]:
        """A closed loop: a request is due when a client is free."""
        for number in itertools.count(share, shares):
            now = max(self.now, 0.0)
            if now >= self.settings.plan.seconds:
                return
            yield Arrival(now, number % len(self.requests), number)

    def _arrivals(self) -> Iterator[Arrival]:
        return arrivals(self.settings.plan, [request.at_seconds for request in self.requests])

    def _golden_arrivals(self) -> Iterator[Arrival]:
        """From time to time one between the others."""
        for turn in range(int(self.settings.plan.seconds / GOLDEN_EVERY_SECONDS)):
            yield Arrival((turn + 0.5) * GOLDEN_EVERY_SECONDS, turn, GOLDEN)
