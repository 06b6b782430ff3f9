"""Gateways and Tritons for the tests of a rollout: real HTTP, and figures that a test sets."""

import json
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "an admin key of the tests"
SECONDS = [round(0.001 * 1.2**step, 6) for step in range(58)]
FIRST = {"name": "first", "triton": ["127.0.0.1:8001"], "model": "rank", "share": 0.0, "blend": None, "golden": None}


class StandIn(ThreadingHTTPServer):
    """Answers JSON to whoever has the key; ``answer`` says what."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.asked: list[tuple[str, str]] = []
        self.refuses: tuple[int, str] | None = None
        """status and message of every change"""

    def answer(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        raise NotImplementedError


class Handler(BaseHTTPRequestHandler):
    server: StandIn

    def do(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Authorization") != f"Bearer {KEY}":
            status, told = 401, {"error": "no key, or another one"}
        elif self.command != "GET" and self.server.refuses is not None:
            status, told = self.server.refuses[0], {"error": self.server.refuses[1]}
        else:
            if self.command != "GET":
                self.server.asked.append((self.command, self.path))
            status, told = self.server.answer(self.command, self.path, json.loads(body or b"null"))
        data = json.dumps(told).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_PUT = do_DELETE = do  # noqa: N815 - as the library asks for them

    def log_message(self, *_: Any) -> None:
        """Nothing."""


class StandInGateway(StandIn):
    """A gateway's private API, as far as a rollout asks it."""

    def __init__(self) -> None:
        super().__init__()
        self.restart()

    def restart(self) -> None:
        """Only the flags hold, and all sums begin at 0."""
        self.started, self.generation = random.random(), 1
        self.roles: dict[str, Any] = {"live": dict(FIRST), "shadow": None, "canary": None}
        self.sums: dict[str, Any] = {}

    def feed(self, count: int, *, rbo: float = 0.9, slower: float = 1.0, lost: int = 0) -> None:
        """Let so many requests be compared.

        Args:
            count: requests.
            rbo: of each pair.
            slower: times of the version, by those of live (10 to 20 ms).
            lost: rankings that the version did not give.
        """
        canary = self.roles["canary"]
        for role in ("shadow", "canary"):
            if self.roles[role] is None:
                continue
            sums = self.sums[role]
            times = [0.010 + 0.010 * place / count for place in range(count)]
            for side, factor in (("live", 1.0), ("version", slower)):
                for time in times:
                    sums[side]["seconds"][next(i for i, most in enumerate(SECONDS) if time * factor <= most)] += 1
                sums[side]["rankings"] += count
                sums[side]["calls"] += count
            sums["version"]["failed"] += lost
            sums["pairs"]["count"] += count
            sums["pairs"]["rbo"] += rbo * count
            sums["pairs"]["top_ten_count"] += count
            sums["pairs"]["top_ten"] += rbo * count
        if canary is not None:  # it gave its share, and live the rest
            given = max(1, round(count * canary["share"]))
            self.sums["canary"]["version"]["rankings"] += given - count
            self.sums["canary"]["live"]["rankings"] += -given

    def answer(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        role = path.rpartition("/")[2]
        if method == "GET" and role == "comparison":
            told = {"generation": self.generation, "started": self.started, "seconds": SECONDS}
            return 200, told | {role: self.sums.get(role) for role in ("shadow", "canary")}
        if method == "PUT":
            wanted = FIRST | {"share": 0.0} | body
            before, self.roles[role] = self.roles[role], wanted
            self.generation += 1
            if role != "live" and (before is None or before | {"share": 0} != wanted | {"share": 0}):
                sides = {side: side_sums() for side in ("live", "version")}
                pairs = {"count": 0, "rbo": 0.0, "top_ten_count": 0, "top_ten": 0.0}
                told = {"name": wanted["name"], "since_generation": self.generation}
                self.sums[role] = told | sides | {"pairs": pairs, "dropped": {}}
        elif method == "DELETE":
            self.roles[role] = None
            self.sums.pop(role, None)
            self.generation += 1
        return 200, {"generation": self.generation, "started": self.started} | self.roles


def side_sums() -> dict[str, Any]:
    names = ("rankings", "failed", "refused", "late", "invalid", "resting", "calls", "calls_failed", "calls_refused")
    return dict.fromkeys((*names, "calls_degraded"), 0) | {"seconds": [0] * (len(SECONDS) + 1)}


class StandInTriton(StandIn):
    """A Triton's private API; versions are ready as soon as ``becomes`` says so."""

    def __init__(self) -> None:
        super().__init__()
        self.live = "base"
        self.versions = {"base": version("base", "ready", "artifacts/base")}
        self.becomes, self.reason = "ready", ""

    def answer(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        name = path.rpartition("/")[2]
        if path == "/live":
            before, self.live = self.live, body["name"]
            return 200, {"name": self.live, "before": before}
        if method == "PUT":
            self.versions[name] = version(name, self.becomes, body["source"]) | {"reason": self.reason or None}
            return 202, self.versions[name]
        if method == "DELETE":
            return (202, gone) if (gone := self.versions.pop(name, None)) else (404, {"error": "none"})
        return 200, {"live": self.live, "versions": list(self.versions.values()), "grpc": "127.0.0.1:8001"}


def version(name: str, state: str, source: str) -> dict[str, Any]:
    return {"name": name, "state": state, "source": source, "model": f"rank-{name}"}


@contextmanager
def running(*servers: StandIn) -> Iterator[None]:
    """Serve until the block ends."""
    threads = [threading.Thread(target=server.serve_forever, args=(0.01,)) for server in servers]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for server, thread in zip(servers, threads, strict=True):
            server.shutdown()
            server.server_close()
            thread.join()
