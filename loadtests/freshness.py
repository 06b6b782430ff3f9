"""The verb ``freshness``: how soon an event is in its user's profile, at so many events a second.

A gateway (or several) with a store, everything of it and the load itself on two cores. Other systems put events into
the stream, a shop posts them in batches, half of the events each. Ten times a second one event is of a user of its own,
whose profile is then read from the store until the event is in it: the seconds from before it was sent to after it was
seen are its freshness. At the end every event has to be in the counters once, and nothing may wait.
"""

import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import httpx
import psutil
import typer
from rich.console import Console
from rich.table import Table
from tritonrank_recommend.stores import open_store
from tritonrank_recommend.stores.interface import Store
from tritonrank_recommend.streams.interface import Stream
from tritonrank_recommend.streams.opening import open_stream, stream_of_store

from loadtests.console import fail
from loadtests.machine import describe_machine
from loadtests.processes import LOOPBACK, Process, SystemFaultError
from loadtests.runs import versions
from loadtests.valkey import Valkey

CORES = 2
TURN_SECONDS = 0.1
USERS, ITEMS = 5_000, 2_000
PROBE_SECONDS = 10.0
"""An event that is not in its profile by then counts with this time."""
LOOK_SECONDS = 0.01
LOW, HIGH = 0.5, 0.99
WARM_UP_SECONDS = 2.0


@dataclass
class Freshness:
    """What was measured.

    Attributes:
        sent: events.
        counted: of them in the counters of users at the end.
        seconds: 10 times a second from before an event was sent until it was seen in its profile; by way.
        post_seconds: of each batch that was posted, until it was answered: then it is in the profiles.
        late_turns: turns that the load began over a second late: then it was not so many events a second.
        lag_seconds: the largest that the gateways told.
        cpu: of each part CPU seconds by seconds of load: the cores that it takes to keep up.
    """

    sent: int = 0
    counted: int = 0
    seconds: dict[str, list[float]] = field(default_factory=lambda: {"stream": [], "post": []})
    post_seconds: list[float] = field(default_factory=list)
    late_turns: int = 0
    lag_seconds: float = 0.0
    cpu: dict[str, float] = field(default_factory=dict)


def freshness(
    store: Annotated[Literal["valkey", "sqlite"], typer.Option(help="Behind the gateways; started here")] = "valkey",
    rate: Annotated[int, typer.Option(min=20, help="events a second")] = 1_000,
    seconds: Annotated[float, typer.Option(min=5, help="of load")] = 30.0,
    batch: Annotated[int, typer.Option(min=1, max=1_000, help="events of one POST")] = 50,
    gateways: Annotated[int, typer.Option(min=1, max=8)] = 1,
    log: Annotated[bool, typer.Option(help="with a training log")] = True,
    limit: Annotated[float, typer.Option(help="seconds that the 99th percentile may take")] = 1.0,
    out: Annotated[Path | None, typer.Option(help="Where the results go as JSON; default: only shown")] = None,
) -> None:
    """Measure how soon events are in profiles, at so many a second, on two cores.

    Exits with 1 when the 99th percentile takes longer than the limit, or an event is missing or counts twice.
    """
    cores = sorted(os.sched_getaffinity(0))[:CORES]
    os.sched_setaffinity(0, cores)  # and all that is started below
    with tempfile.TemporaryDirectory(prefix="freshness-") as scratch, ExitStack() as stack:
        folder = Path(scratch)
        try:
            server = stack.enter_context(Valkey(folder)) if store == "valkey" else None
            url = server.url if server else f"sqlite:{folder}/store.db"
            running = [
                _gateway(stack, folder / f"gateway{n}", url, folder / "log" if log else None) for n in range(gateways)
            ]
            pids = {f"gateway {n}": one.pid for n, (one, _, _) in enumerate(running)} | (
                {"valkey": server.pid} if server else {}
            )
            urls = [(main, side) for _, main, side in running]
            found = asyncio.run(_measure(url, urls, rate, seconds, batch, pids))
        except SystemFaultError as error:
            fail(str(error))
    _show(found)
    slow = {way: _quantile(of, HIGH) for way, of in found.seconds.items()}
    why = [f"{way}: p99 is {of:.2f} s, above {limit:g}" for way, of in slow.items() if of > limit]
    why += [f"{found.sent} events were sent, {found.counted} counted"] if found.sent != found.counted else []
    why += [f"the load itself came late {found.late_turns} times"] if found.late_turns else []
    told: dict[str, Any] = {"passed": not why, "why": why, "sent": found.sent, "counted": found.counted}
    told |= {f"{way}_{name}_seconds": round(_quantile(of, share), 3) for way, of in found.seconds.items()
             for name, share in (("p50", LOW), ("p99", HIGH), ("max", 1.0))}  # fmt: skip
    told |= {"lag_seconds": round(found.lag_seconds, 3), "cpu": found.cpu}
    if out is not None:
        settings = {"store": store, "rate": rate, "seconds": seconds, "batch": batch, "gateways": gateways, "log": log}
        record = {
            "what": "python -m loadtests freshness",
            "settings": settings,
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "cores": len(cores),
            "load_average": os.getloadavg(),
            "machine": describe_machine().model_dump(),
            "versions": versions(),
            **told,
            "measured": asdict(found),
        }
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    typer.echo(json.dumps(told))
    sys.exit(bool(why))


def _gateway(stack: ExitStack, folder: Path, store: str, log: Path | None) -> tuple[Process, str, str]:
    ready = folder / "ready.json"
    command = [
        sys.executable, "-m", "tritonrank_gateway", "--triton", f"{LOOPBACK}:1", "--port", "0", "--metrics-port", "0",
        "--store", store, "--no-access-log", "--ready-file", str(ready), *(("--events-log", str(log)) if log else ()),
    ]  # fmt: skip
    process = Process(command, folder / "log")
    stack.callback(process.stop)
    process.wait_until(ready.exists, "the gateway")
    urls = json.loads(ready.read_text(encoding="utf-8"))
    return process, urls["url"], urls["metrics_url"]


async def _measure(
    store_url: str, urls: Sequence[tuple[str, str]], rate: int, seconds: float, batch: int, pids: dict[str, int]
) -> Freshness:
    found = Freshness()
    store, stream = open_store(store_url), open_stream(stream_of_store(store_url))
    assert stream is not None
    async with httpx.AsyncClient(timeout=30) as http:
        load = _Load(found, store, stream, http, [main for main, _ in urls], rate, batch)
        await load.run(WARM_UP_SECONDS)
        found.seconds, found.post_seconds = {"stream": [], "post": []}, []
        found.late_turns = 0
        before = {name: _cpu_seconds(pid) for name, pid in (pids | {"load": os.getpid()}).items()}
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(_watch(http, [side for _, side in urls], found))
            await load.run(seconds)
            await load.finish()
            watching.cancel()
        found.cpu = {
            name: round((_cpu_seconds(pid) - before[name]) / seconds, 2)
            for name, pid in (pids | {"load": os.getpid()}).items()
        }
        found.counted = await _count(store)
    await stream.close()
    await store.close()
    return found


class _Load:
    """Events at a rate that waits for nobody, and probes among them."""

    def __init__(
        self, found: Freshness, store: Store, stream: Stream, http: httpx.AsyncClient, urls: Sequence[str], rate: int,
        batch: int,
    ) -> None:  # fmt: skip
        self._found, self._store, self._stream, self._http, self._urls = found, store, stream, http, urls
        self._rate, self._batch = rate, batch
        self._tasks: set[asyncio.Task[None]] = set()
        self._number = self._turn = 0
        self._to_post: list[dict[str, Any]] = []

    async def run(self, seconds: float) -> None:
        """So long; what is under way at the end goes on."""
        due = time.monotonic()
        end = due + seconds
        while due < end:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            self._found.late_turns += time.monotonic() > due + 1.0
            self._send_turn()
            due += TURN_SECONDS

    async def finish(self) -> None:
        """Wait for all that was sent, and until nothing waits."""
        if self._to_post:
            self._begin(self._post(self._to_post, None))
        await asyncio.gather(*self._tasks)
        end = time.monotonic() + PROBE_SECONDS
        while (await self._stream.lag("profiles")).messages and time.monotonic() < end:
            await asyncio.sleep(0.05)

    def _send_turn(self) -> None:
        events = [self._event() for _ in range(int(self._rate * TURN_SECONDS))]
        self._found.sent += len(events)
        self._turn += 1
        is_post = self._turn % 2 == 0
        probe = events[-1]["user_id"] = f"probe-{self._turn}"
        half = len(events) // 2
        to_stream, to_post = (events[:half], events[half:]) if is_post else (events[half:], events[:half])
        self._begin(self._put(to_stream, None if is_post else probe))
        self._to_post += to_post
        while len(self._to_post) >= self._batch or (is_post and self._to_post):
            chosen, self._to_post = self._to_post[: self._batch], self._to_post[self._batch :]
            self._begin(self._post(chosen, probe if is_post and not self._to_post else None))

    def _event(self) -> dict[str, Any]:
        self._number += 1
        return {
            "event_id": f"e{self._number}",
            "type": "click",
            "user_id": f"u{self._number * 7_919 % USERS}",
            "item_id": f"i{self._number * 104_729 % ITEMS}",
            "timestamp": time.time(),
        }

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _put(self, events: Sequence[dict[str, Any]], probe: str | None) -> None:
        started = time.monotonic()
        await self._stream.append([json.dumps(event).encode() for event in events], kept=False)
        if probe is not None:
            self._found.seconds["stream"].append(await self._seen(probe, started))

    async def _post(self, events: Sequence[dict[str, Any]], probe: str | None) -> None:
        started = time.monotonic()
        answer = await self._http.post(f"{self._urls[self._turn % len(self._urls)]}/v1/events", json={"events": events})
        if answer.status_code != 200:
            raise SystemFaultError(f"POST /v1/events: {answer.status_code} {answer.text[:200]}")
        self._found.post_seconds.append(time.monotonic() - started)
        if probe is not None:
            self._found.seconds["post"].append(await self._seen(probe, started))

    async def _seen(self, user: str, started: float) -> float:
        while time.monotonic() < started + PROBE_SECONDS:
            if (await self._store.profile(user)).events:
                return time.monotonic() - started
            await asyncio.sleep(LOOK_SECONDS)
        return PROBE_SECONDS


async def _watch(http: httpx.AsyncClient, urls: Sequence[str], found: Freshness) -> None:
    while True:
        await asyncio.sleep(1.0)
        page = (await http.get(f"{urls[0]}/metrics")).text
        lines = (line for line in page.splitlines() if line.startswith("tritonrank_gateway_events_stream_lag_seconds "))
        found.lag_seconds = max(found.lag_seconds, *(float(line.split()[1]) for line in lines))


async def _count(store: Store) -> int:
    """Events in the counters of all users."""
    return sum([sum((await store.profile(user)).counters.values()) for user in await store.user_ids()])


def _cpu_seconds(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def _quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that so large a share does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else PROBE_SECONDS


def _show(found: Freshness) -> None:
    table = Table("way", "events probed", "p50 s", "p99 s", "longest s")
    rows: dict[str, Sequence[float]] = {**found.seconds, "post, until answered": found.post_seconds}
    render: Callable[[float], str] = "{:.3f}".format
    for name, of in rows.items():
        table.add_row(name, str(len(of)), *(render(_quantile(of, share)) for share in (LOW, HIGH, 1.0)))
    console = Console(stderr=True)
    console.print(table)
    console.print("cores kept busy: " + ", ".join(f"{name} {cores:.2f}" for name, cores in found.cpu.items()))
