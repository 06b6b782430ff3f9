"""Sweep a server with perf_analyzer: a load from each number of clients, then arrivals at rising rates.

Closed loops (``--concurrency``) find the saturation; Poisson arrivals (``--rates``) show the latency that users of an
independent crowd would see below it. Each level sends requests of the workload that the levels before it have not sent,
so that no level is flattered by contexts that another one has left in the server's cache; how often the workload had to
start over is in the results (``laps``).
"""

import itertools
import json
import math
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from tritonrank_client import RankClient, RankError, Retry

from loadtests.console import fail
from loadtests.machine import describe_machine
from loadtests.perf_analyzer import LAUNCHER, Level, Measured, PerfAnalyzerError, measure, sendable
from loadtests.results import (
    ClientHealth,
    PerfLevel,
    Phase,
    Run,
    RunFileError,
    Shape,
    Spread,
    Target,
    Totals,
    WorkloadFile,
    in_order_of_flow,
    write_run,
)
from loadtests.runs import sha256_file, versions
from loadtests.server_metrics import ServerSampler, served_settings
from loadtests.target import LiveServer, Protocol, TargetError, open_target, protocol_of
from loadtests.workload import WorkloadError, WorkloadRequest, read_workload, workload_of

CONCURRENCY = "1,2,4,8"
AUTO_SHARES = (0.3, 0.5, 0.7, 0.9)
"""Of the best throughput of the closed loops: the arrival rates, unless others are named."""
REQUESTS = 100
WARM_UP_REQUESTS = 5
MOST_LEVELS = 64
TABLE_WIDTH = 120
"""Characters; a narrower terminal scrolls rather than breaking every cell."""

console = Console(stderr=True, emoji=False)


@dataclass(frozen=True)
class Sweep:
    """What to measure."""

    concurrencies: tuple[int, ...]
    rates: tuple[float, ...] | None
    """requests per second; None: shares of the best throughput found"""
    requests: int
    """per level"""

    @classmethod
    def parse(cls, concurrency: str, rates: str, requests: int) -> "Sweep":
        """From the command line: ``1,2,4`` or ``1:4`` or ``none``; rates also ``auto``.

        Raises:
            ValueError: no such list; the message names the option.
        """
        clients = _numbers("--concurrency", concurrency, whole=True)
        chosen = None if rates == "auto" else _numbers("--rates", rates, whole=False)
        if chosen is None and not clients:
            raise ValueError("--rates auto: are shares of what --concurrency finds, which is none; name the rates")
        if not clients and not chosen:
            raise ValueError("--concurrency none and --rates none leave nothing to measure")
        return cls(tuple(int(value) for value in clients), chosen, requests)


def perf(
    target: Annotated[str, typer.Argument(help="artifacts/<recipe>, served for the sweep, or the URL of a server")],
    workload: Annotated[
        Path | None, typer.Option(help="What `tritonrank workload` wrote; default: workload.jsonl in the folder")
    ] = None,
    protocol: Annotated[str, typer.Option(help="grpc or http; of a URL, its own")] = "grpc",
    concurrency: Annotated[str, typer.Option(help="Clients at once: 1,2,4 or 1:4 or none")] = CONCURRENCY,
    rates: Annotated[
        str, typer.Option(help="Poisson arrivals per second: 5,10 or none; auto: 30 to 90% of the best throughput")
    ] = "auto",
    requests: Annotated[int, typer.Option(min=1, help="Requests per level")] = REQUESTS,
    out: Annotated[Path, typer.Option(help="Folder for perf.json, the CSV files and the output")] = Path(
        "artifacts/loadtests/perf"
    ),
    launcher: Annotated[Path, typer.Option("--perf-analyzer", help="What `make tools` wrote")] = LAUNCHER,
) -> None:
    """Sweep a server with NVIDIA's perf_analyzer; figures per level and per composing model.

    Exits with 1 when a level has no figures.
    """
    try:
        sweep = Sweep.parse(concurrency, rates, requests)
        path = workload_of(target, workload)
        with open_target(target) as server:
            spoken = protocol_of(target, protocol)
            run = run_sweep(server, spoken, path, read_workload(path), sweep, out, launcher)
        write_run(run, out / "perf.json")
    except (ValueError, TargetError, WorkloadError, PerfAnalyzerError, RunFileError) as error:
        fail(str(error))
    show_levels(run.perf)
    for level in run.perf:
        if level.failed:
            console.print(f"{load_name(level)}: {level.failed}", markup=False, highlight=False)
    found = [level for level in run.perf if not level.failed]
    summary = {"run": str(out / "perf.json"), "passed": run.passed, "valid": run.client.valid, "why": run.shortcomings}
    print(json.dumps(summary | {"levels": len(found), "failed": len(run.perf) - len(found)}))
    raise typer.Exit(0 if run.passed else 1)


def run_sweep(
    server: LiveServer,
    protocol: Protocol,
    path: Path,
    requests: Sequence[WorkloadRequest],
    sweep: Sweep,
    folder: Path,
    launcher: Path,
) -> Run:
    """Measure all levels of a sweep.

    Args:
        server: which one.
        protocol: to speak with it.
        path: of the workload.
        requests: what it holds.
        sweep: the levels.
        folder: for what perf_analyzer writes.
        launcher: starts perf_analyzer.

    Raises:
        PerfAnalyzerError: it cannot be run, or its files cannot be read.
        WorkloadError: no request of the workload can be sent.
    """
    rows = sendable(requests)
    if not rows:
        raise WorkloadError(f"{path}: no request has a history, and perf_analyzer cannot send an empty one")
    version = launcher_version(launcher)
    machine, started, origin = describe_machine(), datetime.now(UTC), time.monotonic()
    measured: list[tuple[float, Measured]] = []
    turn, sent_in_all = itertools.cycle(rows), 0
    with ServerSampler(server) as sampler, _progress() as progress:
        _warm_up(server.url(protocol), rows)
        planned = len(sweep.concurrencies) + len(AUTO_SHARES if sweep.rates is None else sweep.rates)
        task = progress.add_task("perf_analyzer", total=planned)
        for level in _levels(sweep, measured):
            progress.update(task, description=f"{level.mode} {level.value:g}")
            start = time.monotonic() - origin
            # perf_analyzer wants as many as are in flight, or arrive in a second.
            sent = [next(turn) for _ in range(max(sweep.requests, math.ceil(level.value)))]
            sent_in_all += len(sent)
            done = measure(
                level,
                sent,
                url=server.url(protocol),
                protocol=protocol,
                folder=folder,
                launcher=launcher,
            )
            measured.append((start, done))
            progress.advance(task)
    return Run(
        name=f"perf_analyzer on {server.artifacts or server.url(protocol)}",
        verb="perf",
        started=started,
        seconds=round(time.monotonic() - origin, 3),
        machine=machine,
        versions=versions() | {"perf_analyzer": version},
        command=["python", "-m", "loadtests", *sys.argv[1:]],
        workload=describe_workload(path, requests, sent=sent_in_all),
        shape=Shape(name="closed", parameters={"requests_per_level": sweep.requests}),
        target=Target(
            url=server.url(protocol),
            protocol=protocol,
            artifact=next((done.artifact for _, done in measured if done.artifact), ""),
            artifacts=str(server.artifacts) if server.artifacts else None,
            settings=served_settings(server.http_url),
        ),
        deadline_ms=0,
        phases=[_phase(start, done) for start, done in measured if done.times],
        totals=_totals([done for _, done in measured]),
        per_second=[],
        server=sampler.seconds(origin),
        failures=[f"{load_name(d.level)}: {d.level.failed}" for _, d in measured if d.level.failed],
        client=_health(measured),
        perf=[done.level for _, done in measured],
    )


def show_levels(levels: Sequence[PerfLevel]) -> None:
    """A table for people: one row per level; of each part of a request's way the mean, in milliseconds."""
    stdout = Console()
    stdout.width = max(stdout.width, TABLE_WIDTH)
    table = Table()
    for heading in ("load", "requests", "answered\nper s", "p50 ms", "p90 ms", "p99 ms", "client +\nnetwork ms"):
        table.add_column(heading, justify="left" if heading == "load" else "right")
    names = in_order_of_flow({model.model for level in levels for model in level.models[1:]})
    for name in names:
        table.add_column(f"{name} ms\nqueue + compute", justify="right")
    for level in levels:
        load = load_name(level)
        if level.failed:
            table.add_row(load, "none", *["-"] * (5 + len(names)))
            continue
        spread = level.latency
        outside = (level.client_send_us + level.client_receive_us + level.network_us) / 1_000
        parts = {m.model: f"{m.queue_us / 1_000:.1f} + {m.computing_us / 1_000:.1f}" for m in level.models}
        table.add_row(
            load,
            str(level.requests),
            f"{level.answered_per_second:.2f}",
            *(f"{value:.1f}" for value in (spread.p50, spread.p90, spread.p99) if value is not None),
            f"{outside:.1f}",
            *(parts.get(name, "-") for name in names),
        )
    stdout.print(table)


def load_name(level: PerfLevel) -> str:
    """1 client, 4 clients, 7.5/s."""
    if level.mode == "rate":
        return f"{level.value:g}/s"
    return f"{level.value:g} client" + ("s" if level.value != 1 else "")


def describe_workload(path: Path, requests: Sequence[WorkloadRequest], *, sent: int) -> WorkloadFile:
    """The workload, as results name it."""
    sizes = [len(request.items) for request in requests]
    return WorkloadFile(
        path=str(path),
        sha256=sha256_file(path),
        requests=len(requests),
        sent=sent,
        laps=round(sent / len(sendable(requests)), 3),
        candidates_p50=round(statistics.median(sizes)),
        candidates_max=max(sizes),
    )


def launcher_version(launcher: Path) -> str:
    """What perf_analyzer says of itself.

    Raises:
        PerfAnalyzerError: it is missing, or does not run.
    """
    if not launcher.is_file():
        raise PerfAnalyzerError(f"{launcher}: there is no perf_analyzer. Fetch it: make tools")
    try:
        done = subprocess.run([launcher, "--version"], capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise PerfAnalyzerError(f"{launcher}: does not run ({error}). Fetch it again: make tools") from None
    said = done.stdout + done.stderr
    number = re.search(r"\d+\.\d+\.\d+", said)
    return number[0] if number else said.strip()


def _levels(sweep: Sweep, measured: Sequence[tuple[float, Measured]]) -> Iterator[Level]:
    """One after the other; the automatic rates depend on what was measured so far."""
    for clients in sweep.concurrencies:
        yield Level("concurrency", clients)
    rates = sweep.rates
    if rates is None:
        best = max((done.level.answered_per_second for _, done in measured), default=0.0)
        rates = tuple(round(share * best, 2) for share in AUTO_SHARES) if best else ()
    for rate in rates:
        yield Level("rate", rate)


def _numbers(option: str, text: str, *, whole: bool) -> tuple[float, ...]:
    expected = f"{option} {text}: expected numbers above 0, such as 1,2,4 or 1:4, or none"
    if text == "none":
        return ()
    try:
        if ":" in text:
            first, last = map(int, text.split(":"))
            values: tuple[float, ...] = tuple(range(first, last + 1))[:MOST_LEVELS]
        else:
            values = tuple(int(part) if whole else float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(expected) from None
    if not values or len(values) > MOST_LEVELS or not all(0 < value < math.inf for value in values):
        raise ValueError(expected)
    return tuple(dict.fromkeys(values))


def _warm_up(url: str, rows: Sequence[WorkloadRequest]) -> None:
    """A few requests from the workload's end, which the levels reach last. Failures are the levels' to report."""
    with RankClient(url, timeout=60, retry=Retry(attempts=1)) as client, suppress(RankError):
        for request in rows[-WARM_UP_REQUESTS:]:
            client.rank(query=request.query, history=request.history, items=request.items, item_ids=request.item_ids)


def _phase(start: float, done: Measured) -> Phase:
    level = done.level
    return Phase(
        name=load_name(level),
        start_second=round(start, 3),
        end_second=round(start + level.seconds, 3),
        rate=level.value if level.mode == "rate" else None,
        totals=_totals([done]),
    )


def _totals(measured: Sequence[Measured]) -> Totals:
    """perf_analyzer reports only requests that were answered, and gives up at the first that was not."""
    requests = sum(done.level.requests for done in measured)
    seconds = sum(done.level.seconds for done in measured)
    latency = Spread.of([1_000 * (end - start) for done in measured for start, end in done.times])
    per_second = round(requests / seconds, 4) if seconds else 0.0
    return Totals(
        seconds=round(seconds, 3),
        offered=requests,
        sent=requests,
        answered=requests,
        good=requests,
        offered_per_second=per_second,
        answered_per_second=per_second,
        goodput_per_second=per_second,
        candidates_per_second=round(sum(done.candidates for done in measured) / seconds, 4) if seconds else 0.0,
        error_rate=0.0,
        latency=latency,
        service=latency,
        rejection=Spread(),
    )


def _health(measured: Sequence[tuple[float, Measured]]) -> ClientHealth:
    most = int(max((done.level.value for _, done in measured if done.level.mode == "concurrency"), default=0))
    return ClientHealth(
        lag=Spread(),
        allowed_lag_ms=0,
        senders=most,
        most_in_flight=most,
        valid=any(done.times for _, done in measured),
        why="" if any(done.times for _, done in measured) else "no level was measured",
    )


@contextmanager
def _progress() -> Iterator[Progress]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        yield progress
