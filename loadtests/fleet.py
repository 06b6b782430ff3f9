"""The verb ``fleet``: a whole fleet under open-loop load while its members are killed, drained, replaced and scaled.

Requests come at their rate whatever becomes of those before, one attempt each, and every answer is compared with the
first one of the same request. Meanwhile `tritonrank fleet` is told what to do, as a person would. Nothing may be lost:
whatever is not answered rightly and in time is a failure of the ledger, refusals too.
"""

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from rich.table import Table

from loadtests.accounting import Accounts, Outcome, Recorder
from loadtests.console import console, fail
from loadtests.machine import describe_machine
from loadtests.processes import Process, SystemFaultError
from loadtests.results import FailureKind, Totals
from loadtests.shapes import Plan, PlannedPhase
from loadtests.workload import WorkloadError, read_workload, workload_of

STATUS: dict[int, FailureKind] = {429: "rejected", 503: "unavailable", 504: "expired"}
READY_SECONDS = 300.0
PAUSE_SECONDS = 1.0
"""Between two things that are done to the fleet."""
DIFFERENT_REQUESTS = 50
BUSY_SECONDS, QUIET_SECONDS = 240.0, 480.0
"""That an autoscaler has to reach its most, and its least again."""
RISE_SECONDS = 40.0
"""From the quiet rate to the busy one."""


@dataclass
class OpenLoop:
    """Requests at a rate, until ``stop`` is set.

    Attributes:
        url: of the gateways.
        bodies: of requests of our own dialect, sent in turn.
        rate: per second; may be changed meanwhile.
        deadline_seconds: an answer later than this is a failure.
    """

    url: str
    bodies: Sequence[dict[str, Any]]
    rate: float
    deadline_seconds: float = 10.0
    recorder: Recorder = field(default_factory=Recorder)
    due: list[float] = field(default_factory=list)
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    _first: dict[tuple[int, str], list[int]] = field(default_factory=dict)

    async def run(self) -> None:
        """Send until it is told to stop, then wait for what is open."""
        began, at, running = time.monotonic(), 0.0, set()
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        headers = {"X-Deadline-Ms": str(round(1_000 * self.deadline_seconds))}
        async with httpx.AsyncClient(
            base_url=self.url, timeout=self.deadline_seconds + 1, limits=limits, headers=headers
        ) as client:
            while not self.stop.is_set():
                number = len(self.due)
                self.due.append(at)
                task = asyncio.create_task(self._send(client, number, at, began))
                running.add(task)
                task.add_done_callback(running.discard)
                at += 1 / self.rate
                await asyncio.sleep(max(0.0, began + at - time.monotonic()))
            await asyncio.gather(*running)

    @property
    def totals(self) -> Totals:
        """Of all that was due."""
        plan = Plan(shape="steady", phases=[PlannedPhase(name="steady", seconds=self.due[-1] + 1e-3, rate=self.rate)])
        return Accounts(plan, self.due, self.recorder.outcomes, self.deadline_seconds).totals()

    async def _send(self, client: httpx.AsyncClient, number: int, due: float, began: float) -> None:
        place = number % len(self.bodies)
        body = self.bodies[place]
        sent = time.monotonic() - began
        kind: FailureKind | None = None
        said = ""
        try:
            answer = await client.post("/v1/rank", json=body | {"user": f"u{place}"})
        except httpx.HTTPError as error:
            kind, said = "unavailable", f"{type(error).__name__} {error}"
        else:
            if answer.status_code == 200:
                kind, said = self._checked(place, answer)
            else:
                kind = STATUS.get(answer.status_code, "fault" if answer.status_code >= 500 else "invalid")
                said = f"{answer.status_code}: {answer.text[:200]}"
        ended, candidates = time.monotonic() - began, len(body["items"])
        if kind is None and ended - due > self.deadline_seconds:
            kind, said = "expired", f"{ended - due:.1f} s"
        self.recorder.add(Outcome(number, due, sent, ended, kind, candidates, 0), f"at {ended:.2f} s, {said}")

    def _checked(self, place: int, answer: httpx.Response) -> tuple[FailureKind | None, str]:
        """Whether it is the ranking that the same artifact gave before."""
        order = [int(one["index"]) for one in answer.json()["ranking"]]
        first = self._first.setdefault((place, answer.headers.get("X-Artifact", "")), order)
        if order != first or sorted(order) != list(range(len(self.bodies[place]["items"]))):
            return "wrong", f"request {place}: {order[:5]} after {first[:5]}"
        return None, ""


class LocalFleet:
    """`tritonrank fleet up` in a process of its own.

    Args:
        artifacts: what it serves.
        folder: for its state and its log; a short path.
        options: more of the command.
        environment: variables on top of ours.
    """

    def __init__(
        self, artifacts: Path, folder: Path, *options: str, environment: Mapping[str, str] | None = None
    ) -> None:
        self.state = folder / "fleet"
        self._command = [sys.executable, "-m", "tritonrank", "fleet"]
        self.process = Process(
            [*self._command, "up", str(artifacts.resolve()), "--port", "0", "--grpc-port", "0", "--state",
             str(self.state), *options], folder / "fleet.log", environment=environment,
        )  # fmt: skip

    async def ready(self) -> str:
        """The URL of its gateways, once all members are ready.

        Raises:
            SystemFaultError: it ended, or took too long.
        """
        deadline = time.monotonic() + READY_SECONDS
        while True:
            if self.process.exit_code() is not None or time.monotonic() > deadline:
                raise SystemFaultError(f"the fleet is not ready.\n{self.process.log_tail()}")
            with suppress(SystemFaultError):
                status = await self.status()
                if status["is_settled"]:
                    return str(status["url"])
            await asyncio.sleep(0.2)

    async def status(self) -> dict[str, Any]:
        """What it says of itself."""
        told: dict[str, Any] = json.loads(await self.do("status", "--json"))
        return told

    async def members(self, kind: str) -> list[str]:
        """Names of those that are ready."""
        found = (await self.status())["members"]
        return [one["name"] for one in found if one["kind"] == kind and one["state"] == "ready"]

    async def do(self, *words: str) -> str:
        """One command; what it prints.

        Raises:
            SystemFaultError: it failed.
        """
        process = await asyncio.create_subprocess_exec(
            *self._command, *words, "--state", str(self.state),
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, err = await process.communicate()
        if process.returncode:
            raise SystemFaultError(f"fleet {' '.join(words)}: {err.decode(errors='replace')[-500:]}")
        return out.decode()

    def ledger(self) -> list[dict[str, Any]]:
        """Its own lines."""
        lines = (self.state / "ledger.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    async def down(self) -> int:
        """End it; its exit code.

        Raises:
            SystemFaultError: it does not end.
        """
        await self.do("down")
        deadline = time.monotonic() + 90.0
        while (code := self.process.exit_code()) is None:
            if time.monotonic() > deadline:
                raise SystemFaultError(f"the fleet does not end.\n{self.process.log_tail()}")
            await asyncio.sleep(0.1)
        return code


@dataclass
class Done:
    """One thing that was done to the fleet, and how long it took."""

    what: str
    seconds: float


async def under_load(loop: OpenLoop, steps: Sequence[tuple[str, Callable[[], Awaitable[object]]]]) -> list[Done]:
    """Do one thing after the other while requests come."""
    load = asyncio.create_task(loop.run())
    done: list[Done] = []
    try:
        await asyncio.sleep(PAUSE_SECONDS)
        for what, step in steps:
            began = time.monotonic()
            await step()
            done.append(Done(what, round(time.monotonic() - began, 1)))
            await asyncio.sleep(PAUSE_SECONDS)
    finally:
        loop.stop.set()
        await load
    return done


def steps_of(local: LocalFleet, replicas: int) -> list[tuple[str, Callable[[], Awaitable[object]]]]:
    """All that may happen to a fleet."""

    async def one(do: str, kind: str) -> None:
        await local.do(do, (await local.members(kind))[0])

    return [
        ("roll", lambda: local.do("roll")),
        ("kill triton", lambda: one("kill", "triton")),
        ("drain triton", lambda: one("drain", "triton")),
        ("kill gateway", lambda: one("kill", "gateway")),
        ("drain gateway", lambda: one("drain", "gateway")),
        (f"scale {replicas + 1}", lambda: local.do("scale", str(replicas + 1))),
        (f"scale {replicas - 1}", lambda: local.do("scale", str(replicas - 1))),
    ]


def autoscaling_steps(
    local: LocalFleet, loop: OpenLoop, least: int, most: int, busy_rate: float
) -> list[tuple[str, Callable[[], Awaitable[object]]]]:
    """Up by a rate that rises, and down when that is over."""
    quiet_rate = loop.rate

    async def until(count: int, rate: float, seconds: float) -> None:
        began, before = time.monotonic(), loop.rate
        while len(await local.members("triton")) != count or not (await local.status())["is_settled"]:
            gone = time.monotonic() - began
            if gone > seconds:
                raise SystemFaultError(f"not {count} Tritons within {seconds:.0f} s at {rate:g} requests per second")
            # As a day's load rises; in a jump to saturation no autoscaler is in time.
            loop.rate = before + (rate - before) * min(1.0, gone / RISE_SECONDS) if rate > before else rate
            await asyncio.sleep(1.0)

    return [
        (f"up to {busy_rate:g}/s until {most} Tritons", lambda: until(most, busy_rate, BUSY_SECONDS)),
        (f"{quiet_rate:g}/s until {least} Tritons", lambda: until(least, quiet_rate, QUIET_SECONDS)),
    ]


def bodies_of(workload: Path, candidates: int) -> list[dict[str, Any]]:
    """Bodies of our own dialect, with so many candidates each."""
    return [
        {"query": one.query, "history": list(one.history), "items": list(one.items[:candidates])}
        for one in read_workload(workload)[:DIFFERENT_REQUESTS]
    ]


def fleet(
    artifacts: Annotated[Path, typer.Argument(metavar="ARTIFACTS", help="As of `tritonrank fleet up`")],
    replicas: Annotated[int, typer.Option(min=2, help="Tritons")] = 3,
    rate: Annotated[float, typer.Option(help="Requests per second")] = 10.0,
    candidates: Annotated[int, typer.Option(min=1, help="Of each request")] = 20,
    autoscale: Annotated[
        str, typer.Option(metavar="MIN:MAX", help="Instead of all else: let it scale up and down, by --busy-rate")
    ] = "",
    busy_rate: Annotated[float, typer.Option(help="Requests per second that need MAX Tritons; in 40 s")] = 40.0,
    workload: Annotated[Path | None, typer.Option(help="Default: workload.jsonl of the artifacts")] = None,
    out: Annotated[Path | None, typer.Option(help="Where the results go as JSON; default: only shown")] = None,
) -> None:
    """Kill, drain, replace and scale the members of a fleet under load. Exits with 1 when a request is lost."""
    try:
        bodies = bodies_of(workload_of(str(artifacts), workload), candidates)
        with tempfile.TemporaryDirectory(prefix="fleet-") as scratch:
            found = asyncio.run(_run(artifacts, Path(scratch), bodies, replicas, rate, autoscale, busy_rate))
    except (SystemFaultError, WorkloadError) as error:
        fail(str(error))
    found = {
        "what": f"python -m loadtests fleet {artifacts.name} {' '.join(sys.argv[3:])}",
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": describe_machine().model_dump(),
    } | found
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    _show(found)
    typer.echo(json.dumps({name: found[name] for name in ("passed", "offered", "answered", "failed")}))
    if not found["passed"]:
        raise typer.Exit(1)


async def _run(
    artifacts: Path, scratch: Path, bodies: Sequence[dict[str, Any]], replicas: int, rate: float, autoscale: str,
    busy_rate: float,
) -> dict[str, Any]:  # fmt: skip
    options = ["--replicas", str(replicas)] + (["--autoscale", autoscale, "--down-after", "20"] if autoscale else [])
    local = LocalFleet(artifacts, scratch, *options)
    try:
        loop = OpenLoop(await local.ready(), bodies, rate)
        if autoscale:
            least, most = (int(one) for one in autoscale.split(":"))
            steps = autoscaling_steps(local, loop, least, most, busy_rate)
        else:
            steps = steps_of(local, replicas)
        done = await under_load(loop, steps)
        code = await local.down()
        ledger = local.ledger()
    finally:
        local.process.stop()
    totals = loop.totals
    return {
        "passed": not totals.failed and code == 0,
        "offered": totals.offered,
        "answered": totals.answered,
        "failed": totals.failed,
        "examples": loop.recorder.failures(),
        "p50_ms": totals.latency.p50,
        "p99_ms": totals.latency.p99,
        "seconds": totals.seconds,
        "done": [asdict(one) for one in done],
        "ledger": ledger,
    }


def _show(found: dict[str, Any]) -> None:
    table = Table("done to the fleet", "seconds")
    for one in found["done"]:
        table.add_row(one["what"], f"{one['seconds']:.1f}")
    console.print(table)
    console.print(
        f"{found['answered']} of {found['offered']} requests answered, p50 {found['p50_ms']:.0f} ms, p99 "
        f"{found['p99_ms']:.0f} ms; failed: {found['failed'] or 'none'}", *found["examples"], highlight=False,
    )  # fmt: skip
