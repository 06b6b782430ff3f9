"""Requests that are due whatever happens, and what became of each: the ledger of an attack.

Half of the requests rank golden candidates, whose scores are known; the others ask for a page. Each is sent once, on a
connection of its own, with a deadline; whoever waits longer than that and a grace has lost it.
"""

import http.client
import json
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from loadtests.fuzz.record import LEAK
from loadtests.processes import LOOPBACK

Became = Literal["answered", "degraded", "refused", "unreachable", "lost", "failed", "wrong"]
"""Refused: by an answer that says so, so it may be sent again. Unreachable: nobody took the request. Lost: it was
taken, and no answer came. Failed: an error of the server's own. Wrong: an answer with other scores than the golden
ones, or one that gives away a path."""
KINDS: tuple[Became, ...] = ("answered", "degraded", "refused", "unreachable", "lost", "failed", "wrong")
DEADLINE_SECONDS = 2.0
GRACE_SECONDS = 2.0
"""Beyond the deadline; the machine of a test is crowded."""
SENDERS = 128
SCORE_TOLERANCE = 1e-3
REFUSALS = {429, 503, 504}


class Answer(NamedTuple):
    """What became of one request."""

    due: float
    """time.monotonic()"""
    became: Became
    seconds: float
    """from when it was due"""
    told: str
    """of what is no answer, the beginning"""


@dataclass
class Traffic:
    """An open loop of requests to a gateway.

    Attributes:
        port: of loopback, where the gateway or its proxy listens.
        golden: cases with query, history, items and scores.
        rate: requests per second.
        users: ids of visitors whose pages are asked for.
    """

    port: int
    golden: Sequence[Mapping[str, Any]]
    rate: float
    users: Sequence[str]
    answers: list[Answer] = field(default_factory=list)
    sent: int = 0
    _ended: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> "Traffic":
        self._thread = threading.Thread(target=self._run, name="traffic")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing more is sent; what is under way is waited for."""
        self._ended.set()
        assert self._thread is not None
        self._thread.join()

    def counts(self) -> dict[str, int]:
        found = Counter(answer.became for answer in self.answers)
        return {kind: found[kind] for kind in KINDS}

    def whole_in_a_row(self) -> int:
        """Of the newest answers, in the order in which they were due."""
        ordered = sorted(self.answers)
        return next((n for n, one in enumerate(reversed(ordered)) if one.became != "answered"), len(ordered))

    def _run(self) -> None:
        started = time.monotonic()
        with ThreadPoolExecutor(SENDERS) as pool:
            while not self._ended.wait(max(0.0, started + self.sent / self.rate - time.monotonic())):
                pool.submit(self._send, self.sent)
                self.sent += 1

    def _send(self, number: int) -> None:
        due = time.monotonic()
        if number % 2:
            case = self.golden[number // 2 % len(self.golden)]
            body = {name: case[name] for name in ("query", "history", "items")}
            became, told = self._ask("/v1/rank", body, case["scores"])
        else:
            body = {"user_id": self.users[number // 2 % len(self.users)], "size": 5}
            became, told = self._ask("/v1/recommend", body, None)
        self.answers.append(Answer(due, became, time.monotonic() - due, told))

    def _ask(self, path: str, body: Mapping[str, Any], scores: Sequence[float] | None) -> tuple[Became, str]:
        connection = http.client.HTTPConnection(LOOPBACK, self.port, timeout=DEADLINE_SECONDS + GRACE_SECONDS)
        headers = {"Content-Type": "application/json", "X-Deadline-Ms": str(round(1_000 * DEADLINE_SECONDS))}
        try:
            try:
                connection.connect()
            except OSError as error:
                return "unreachable", type(error).__name__
            try:
                connection.request("POST", path, json.dumps(body), headers)
                answer = connection.getresponse()
                text = answer.read().decode("utf-8", "replace")
            except (OSError, http.client.HTTPException) as error:
                return "lost", type(error).__name__
        finally:
            connection.close()
        return became(answer.status, text, scores)


def became(status: int, text: str, scores: Sequence[float] | None) -> tuple[Became, str]:
    """What an answer means.

    Args:
        status: of HTTP.
        text: its body.
        scores: golden ones by candidate; None where a page was asked for.
    """
    told = f"{status}: {text[:300]}"
    if LEAK.search(text):
        return "wrong", told
    if status in REFUSALS:
        return "refused", told
    if status != 200:
        return "failed", told
    try:
        answer = json.loads(text)
        if scores is None:
            return ("degraded" if answer.get("degraded") else "answered", "") if answer["items"] else ("wrong", told)
        found = {place["index"]: place["logit"] for place in answer["ranking"]}
    except (ValueError, KeyError, TypeError):
        return "wrong", told
    is_right = all(abs(found.get(index, 1e9) - score) <= SCORE_TOLERANCE for index, score in enumerate(scores))
    return ("answered", "") if is_right else ("wrong", told)
