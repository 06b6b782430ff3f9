"""The verb ``faults``: kill, stop and remove each part of a local server in turn while clients ask it.

A fault has three answers: when health told of it, when the server was back by itself, and what became of the requests
that were due meanwhile. Requests are sent when they are due, by a client that knows nothing of the fault: the product's
own, with its own deadline and retries. Each answer is compared with the artifact's golden ranking.
"""

import json
import shutil
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer
from rich import box
from rich.console import Console
from rich.table import Table
from tritonrank_client import RankClient, RankError, Retry

from loadtests.console import fail
from loadtests.machine import describe_machine
from loadtests.processes import ROOT, Process, SystemFaultError
from loadtests.runs import versions
from loadtests.target import serve_command

RATE = 10.0
"""Requests per second."""
BEFORE_SECONDS = 1.0
AFTER_SECONDS = 7.0
STOPPED_SECONDS = 5.0
LOOK_SECONDS = 0.02
SENDERS = 256
"""As many as may wait for their answers at once."""
TRUTH_SECONDS = 2.0
BACK_SECONDS = 5.0
SCORE_TOLERANCE = 1e-3

_without_proxy = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass
class Outcome:
    """What one fault did; seconds count from the fault."""

    fault: str
    health_untrue_after: float | None
    """first moment at which Triton did not say that it is ready, or the ready file was gone; None: never"""
    back_after: float
    """from when health held until the end of the watch; 0: all the time"""
    restarts: int
    sent: int
    answered: int
    wrong: int
    failed: dict[str, int]
    """by class of the client's error"""
    slowest_seconds: float
    """of the requests that were answered"""

    @property
    def passed(self) -> bool:
        told = self.back_after == 0 or (self.health_untrue_after or 0) <= TRUTH_SECONDS
        return (
            told and self.back_after <= BACK_SECONDS and self.answered == self.sent and not (self.failed or self.wrong)
        )


@dataclass
class Server:
    """``tritonrank serve``, and where its parts are."""

    process: Process
    folder: Path
    urls: dict[str, str]

    @property
    def ready_file(self) -> Path:
        return self.folder / "ready"

    def restarts(self) -> int | None:
        """None while it is not ready."""
        with suppress(OSError, ValueError):
            return int(json.loads(self.ready_file.read_text(encoding="utf-8"))["restarts"])
        return None

    def is_healthy(self) -> bool:
        """What a probe asks: Triton's own health, and the ready file."""
        try:
            with _without_proxy.open(f"{self.urls['HTTP']}/v2/health/ready", timeout=1) as answer:
                return bool(answer.status == 200) and self.ready_file.exists()
        except OSError:
            return False

    def keeper(self) -> psutil.Process:
        return psutil.Process(self.process.pid).children()[0]

    def triton(self) -> psutil.Process:
        return self.keeper().children()[0]

    def stubs(self, model: str) -> list[psutil.Process]:
        return [one for one in self.triton().children() if any(f"/{model}/" in word for word in one.cmdline())]

    def run_folder(self) -> Path:
        return next((self.folder / "tmp").iterdir())


Victims = Callable[[Server], Sequence[psutil.Process]]


def _kill(victims: Victims, server: Server) -> None:
    for victim in victims(server):
        victim.kill()


def _stop_for_a_while(victims: Victims, server: Server) -> None:
    stopped = victims(server)
    for victim in stopped:
        victim.suspend()
    time.sleep(STOPPED_SECONDS)
    for victim in stopped:
        with suppress(psutil.NoSuchProcess):
            victim.resume()


def _remove(pattern: str, server: Server) -> None:
    folder = server.run_folder()
    shutil.rmtree(next(folder.glob(pattern)) if pattern else folder)


def faults_of() -> dict[str, Callable[[Server], None]]:
    """Every fault by its name."""
    victims: dict[str, Victims] = {
        "ranker": lambda server: server.stubs("ranker"),
        "tritonserver": lambda server: [server.triton()],
        "keeper": lambda server: [server.keeper()],
    }
    found: dict[str, Callable[[Server], None]] = {}
    for name, of in victims.items():
        found[f"kill -9 {name}"] = partial(_kill, of)
        found[f"SIGSTOP {STOPPED_SECONDS:g} s {name}"] = partial(_stop_for_a_while, of)
    found["SIGTERM tritonserver"] = lambda server: server.triton().terminate()
    found["run folder removed"] = partial(_remove, "")
    return found


def faults(
    artifacts: Annotated[Path, typer.Argument(metavar="ARTIFACTS", help="artifacts/<recipe>, or a repository folder")],
    out: Annotated[Path | None, typer.Option(help="Where the results go as JSON; default: only shown")] = None,
    protocol: Annotated[str, typer.Option(help="grpc or http")] = "grpc",
    timeout: Annotated[float | None, typer.Option(help="Deadline of the client; default: the client's own")] = None,
    attempts: Annotated[int | None, typer.Option(help="Of the client for a request; default: the client's own")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Part of a fault's name; may be repeated")] = None,
) -> None:
    """Kill, stop and remove each part of a server in turn under 10 requests per second.

    Exits with 1 when health was untrue for more than 2 s, service was away for more than 5 s, or a request was lost.
    """
    golden = _golden_of(artifacts)
    options: dict[str, Any] = {} if timeout is None else {"timeout": timeout}
    if attempts is not None:
        options["retry"] = Retry(attempts=attempts, max_seconds=0.5, budget_ratio=1, budget_burst=1_000)
    with tempfile.TemporaryDirectory(prefix="faults-") as scratch:
        folder = Path(scratch)
        (folder / "tmp").mkdir()
        command = [*serve_command(artifacts), "--ready-file", str(folder / "ready")]
        process = Process(command, folder / "serve.log", environment={"TMPDIR": str(folder / "tmp")})
        server = Server(process, folder, {})
        try:
            process.wait_until(lambda: server.restarts() is not None, f"tritonrank serve {artifacts}")
            server.urls = printed_urls(process)
            client = RankClient(server.urls["gRPC" if protocol == "grpc" else "HTTP"], **options)
            chosen = faults_of()
            with client:
                outcomes = [
                    _try_out(server, client, golden, name, fault)
                    for name, fault in chosen.items()
                    if not only or any(part in name for part in only)
                ]
            said = [line for line in process.log.read_text(encoding="utf-8").splitlines() if "(restart " in line]
        except SystemFaultError as error:
            fail(str(error))
        finally:
            process.stop()
    _show(outcomes)
    record = {
        "what": "python -m loadtests faults " + artifacts.name,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": describe_machine().model_dump(),
        "versions": versions(),
        "client": {"protocol": protocol, "timeout": timeout or "default", "attempts": attempts or "default"},
        "rate": RATE,
        "limits": {"health_untrue_seconds": TRUTH_SECONDS, "back_seconds": BACK_SECONDS},
        "passed": all(outcome.passed for outcome in outcomes),
        "faults": [asdict(outcome) | {"passed": outcome.passed} for outcome in outcomes],
        "said": [line.replace(str(folder), "TMPDIR").replace(str(ROOT), "") for line in said],
    }
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    typer.echo(json.dumps({"passed": record["passed"], "faults": len(outcomes), "out": str(out) if out else None}))
    sys.exit(0 if record["passed"] else 1)


@dataclass
class _Traffic:
    """Requests at even intervals; each waits for its answer in a thread of its own."""

    client: RankClient
    golden: Sequence[Mapping[str, Any]]
    sent: int = 0
    wrong: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)

    def run(self, ended: threading.Event) -> None:
        started = time.monotonic()
        with ThreadPoolExecutor(SENDERS) as pool:
            while not ended.wait(max(0.0, started + self.sent / RATE - time.monotonic())):
                pool.submit(self._ask, self.golden[self.sent % len(self.golden)])
                self.sent += 1

    def _ask(self, case: Mapping[str, Any]) -> None:
        began = time.monotonic()
        try:
            answer = self.client.rank(query=case["query"], history=case["history"], items=case["items"])
        except RankError as error:
            self.failed[type(error).__name__] += 1
            return
        scores = {place.index: place.score for place in answer.ranking}
        if any(abs(scores.get(i, 1e9) - score) > SCORE_TOLERANCE for i, score in enumerate(case["scores"])):
            self.wrong += 1
        self.seconds.append(time.monotonic() - began)


def _try_out(
    server: Server,
    client: RankClient,
    golden: Sequence[Mapping[str, Any]],
    name: str,
    fault: Callable[[Server], None],
) -> Outcome:
    Console(stderr=True).print(f"{name} ...", highlight=False)
    before = server.restarts()
    traffic, ended = _Traffic(client, golden), threading.Event()
    sending = threading.Thread(target=traffic.run, args=(ended,))
    sending.start()
    time.sleep(BEFORE_SECONDS)
    struck = time.monotonic()
    striking = threading.Thread(target=fault, args=(server,))
    striking.start()
    untrue: float | None = None
    last_untrue = 0.0
    watch_seconds = AFTER_SECONDS
    while (passed := time.monotonic() - struck) < watch_seconds:
        if not server.is_healthy():
            last_untrue = time.monotonic() - struck
            untrue = passed if untrue is None else untrue
            watch_seconds = max(AFTER_SECONDS, last_untrue + 1)
            if last_untrue > 6 * AFTER_SECONDS:
                break
        time.sleep(LOOK_SECONDS)
    ended.set()
    sending.join()
    striking.join()
    server.process.wait_until(lambda: server.restarts() is not None, name)
    return Outcome(
        fault=name,
        health_untrue_after=None if untrue is None else round(untrue, 2),
        back_after=round(last_untrue, 2),
        restarts=(server.restarts() or 0) - (before or 0),
        sent=traffic.sent,
        answered=len(traffic.seconds),
        wrong=traffic.wrong,
        failed=dict(traffic.failed),
        slowest_seconds=round(max(traffic.seconds, default=0.0), 2),
    )


def _golden_of(artifacts: Path) -> list[dict[str, Any]]:
    repository = artifacts / "repository" if (artifacts / "repository").is_dir() else artifacts
    try:
        cases: list[dict[str, Any]] = json.loads((repository / "golden.json").read_text(encoding="utf-8"))["cases"]
    except (OSError, ValueError, KeyError):
        fail(f"{artifacts}: no repository with golden.json. Build one: tritonrank build RECIPE")
    return cases


def printed_urls(process: Process) -> dict[str, str]:
    found: dict[str, str] = {}

    def are_printed() -> bool:
        words = [line.split() for line in process.log.read_text(encoding="utf-8").splitlines()]
        found.update({pair[0]: pair[1] for pair in words if len(pair) == 2 and pair[0] in ("HTTP", "gRPC", "metrics")})
        return len(found) == 3

    process.wait_until(are_printed, "tritonrank serve")
    return found


def _show(outcomes: Sequence[Outcome]) -> None:
    table = Table("fault", "health no", "back", "restarts", "sent", "answered", "failed", "slowest", "", box=box.SIMPLE)
    for one in outcomes:
        untrue = "-" if one.health_untrue_after is None else f"{one.health_untrue_after:.2f} s"
        failed = ", ".join(f"{count} {name}" for name, count in one.failed.items())
        failed += f" {one.wrong} wrong" if one.wrong else ""
        table.add_row(
            one.fault,
            untrue,
            f"{one.back_after:.2f} s",
            str(one.restarts),
            str(one.sent),
            str(one.answered),
            failed or "0",
            f"{one.slowest_seconds:.2f} s",
            "" if one.passed else "[red]FAILS[/]",
        )
    Console(width=max(Console().width, 120)).print(table)
