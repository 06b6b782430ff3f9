"""One load in one process: takes from the schedule what is due, sends it, checks the answer, writes down the outcome.

All senders of a process share one schedule. A sender takes the next arrival, sleeps until it is due, and sends; as long
as one is free nobody waits for an answer, so this is an open loop. A request whose deadline passes before a sender is
free is not sent any more: that is the generator's failure, and makes the run invalid.
"""

import heapq
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import gevent
import gevent.event
from tritonrank_client import RankClient, RankResult, Retry

from loadtests.accounting import Outcome, Recorder
from loadtests.checks import GoldenRequest, check_golden, check_ranking, failure_kind
from loadtests.dialects import Ranker, open_dialect
from loadtests.machine import describe_machine
from loadtests.results import FailureKind
from loadtests.settings import LoadSettings
from loadtests.shapes import Arrival, arrivals
from loadtests.workload import WorkloadRequest

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

    @property
    def name(self) -> str:
        return "rank" if self.outcome.number >= 0 else "golden"


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
        self._client: Ranker | None = None
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
            # One attempt: what the server refuses is counted, and a retry would be load that nobody planned.
            dialect = self.settings.dialect
            self._client = open_dialect(self.url, dialect) if dialect else RankClient(self.url, retry=Retry(attempts=1))
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
            is_complete = self._client is not None and not self._open
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
            tell(self._send(arrival))

    def _send(self, arrival: Arrival) -> Done:
        is_golden = arrival.number < 0
        golden = self._golden[arrival.place % len(self._golden)] if is_golden else None
        # A load before this one has left its contexts in the server's cache, so this one begins behind its rows.
        request = golden or self.requests[(self.settings.sent_before + arrival.place) % len(self.requests)]
        sent, ended = self.now, math.inf
        seconds_left = self.settings.deadline_seconds - (sent - arrival.due)
        error: Exception | None = None
        kind: FailureKind | None = "unanswered"  # unless something better is known: the run may be broken off
        size = _request_bytes(request)
        self._open += 1
        try:
            if seconds_left <= 0:
                sent = math.nan
                raise TooLateError("no sender was free before its deadline")
            result = self._rank(request, seconds_left)
            ended = self.now
            size += _answer_bytes(result)
            self.recorder.artifact = result.artifact
            check_ranking(result, len(request.items)) if golden is None else check_golden(result, golden)
            kind = None
        except TooLateError as failure:
            error = failure
        except Exception as failure:  # noqa: BLE001 - whatever a call meets is a result
            error, kind, ended = failure, failure_kind(failure), self.now
        finally:
            self._open -= 1
            outcome = Outcome(arrival.number, arrival.due, sent, ended, kind, len(request.items), size)
            self.recorder.add(outcome, str(error or "the run was stopped"))
        return Done(outcome, error)

    def _rank(self, request: WorkloadRequest | GoldenRequest, seconds: float) -> RankResult:
        assert self._client is not None, "only a process with a share sends"
        item_ids = request.item_ids if isinstance(request, WorkloadRequest) else None
        return self._client.rank(
            query=request.query, history=request.history, items=request.items, item_ids=item_ids, timeout=seconds
        )

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
        """From time to time one between the others; -1 is no number of the workload."""
        for turn in range(int(self.settings.plan.seconds / GOLDEN_EVERY_SECONDS)):
            yield Arrival((turn + 0.5) * GOLDEN_EVERY_SECONDS, turn, -1)


def _request_bytes(request: WorkloadRequest | GoldenRequest) -> int:
    """Of the request's tensors: each text with its length in four bytes, and top_k."""
    texts: Sequence[str] = [request.query, *request.history, *request.items]
    if isinstance(request, WorkloadRequest):
        texts = [*texts, *request.item_ids]
    return sum(4 + len(text.encode()) for text in texts) + 4


def _answer_bytes(result: RankResult) -> int:
    """Of indices and scores, four bytes each, and the artifact's name."""
    return 8 * len(result.ranking) + 4 + len(result.artifact.encode())
