"""Do Locust and perf_analyzer see the same server? One client, the same requests in the same order, the p50 of both.

Two generators that disagree about an idle server measure themselves. Each sends the same rows of the workload, one
after the other, and their p50 are compared. They take turns in an order that gives a machine which becomes slower or
faster meanwhile to both alike. A turn before them does not count: it fills the server's caches, contexts among them,
which would make the first of the others slower.
"""

import json
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from loadtests.console import fail
from loadtests.generator import GeneratorError, generate
from loadtests.machine import describe_machine
from loadtests.perf_analyzer import LAUNCHER, Level, PerfAnalyzerError, measure, sendable
from loadtests.results import RunFileError, write_whole
from loadtests.runs import sha256_file, versions
from loadtests.server_metrics import served_settings
from loadtests.settings import LoadSettings
from loadtests.shapes import plan_of
from loadtests.target import Protocol, TargetError, open_target, protocol_of
from loadtests.workload import WorkloadError, WorkloadRequest, read_workload, workload_of

REQUESTS = 100
ALLOWED = 0.10
PAIR = ("perf_analyzer", "locust")
ORDER = (*PAIR, *reversed(PAIR), *reversed(PAIR), *PAIR)
LONGEST_ANSWER_SECONDS = 60.0
FEWEST_SECONDS = 2.0
SHARE = 0.95
"""Of perf_analyzer's time is Locust's, so that it does not begin the rows again, whose contexts are in the cache."""


@dataclass
class Agreement:
    """Milliseconds that each generator found, in the order of its turns."""

    protocol: Protocol
    p50: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in PAIR})
    requests: dict[str, list[int]] = field(default_factory=lambda: {name: [] for name in PAIR})
    settings: dict[str, str] = field(default_factory=dict)
    """of the server, as far as it says"""

    @property
    def ratio(self) -> float:
        """Locust's p50 by perf_analyzer's, each the median of its turns."""
        return statistics.median(self.p50["locust"]) / statistics.median(self.p50["perf_analyzer"])

    def is_within(self, allowed: float) -> bool:
        """Whichever of them is larger."""
        return max(self.ratio, 1 / self.ratio) <= 1 + allowed


def agree(
    target: Annotated[str, typer.Argument(help="artifacts/<recipe>, served for this, or a server's URL")],
    workload: Annotated[
        Path | None, typer.Option(help="What `tritonrank workload` wrote; default: workload.jsonl in the folder")
    ] = None,
    protocol: Annotated[str, typer.Option(help="grpc or http; of a URL, its own")] = "grpc",
    requests: Annotated[
        int, typer.Option(min=1, help="Sent by each in each turn, the first ones of the file")
    ] = REQUESTS,
    allowed: Annotated[float, typer.Option(min=0, help="Difference of the two p50, as a share")] = ALLOWED,
    launcher: Annotated[Path, typer.Option("--perf-analyzer", help="What `make tools` wrote")] = LAUNCHER,
    out: Annotated[Path | None, typer.Option(help="Write the figures, the machine and the settings as JSON")] = None,
) -> None:
    """Compare Locust's and perf_analyzer's p50 for one client. Exits with 1 when they differ by more than --allowed."""
    here = describe_machine()
    try:
        path = workload_of(target, workload)
        rows = sendable(read_workload(path))[:requests]
        if not rows:
            raise WorkloadError(f"{path}: no request has a history, and perf_analyzer cannot send an empty one")
        found = compare(target, protocol_of(target, protocol), rows, launcher)
        figures: dict[str, Any] = {
            "protocol": found.protocol,
            "p50": found.p50,
            "requests": found.requests,
            "ratio": round(found.ratio, 4),
            "allowed": allowed,
        }
        if out is not None:
            sent = {"path": str(path), "sha256": sha256_file(path), "rows": len(rows)}
            about = {"settings": found.settings, "versions": versions(), "machine": here.model_dump()}
            record = {"target": target, "workload": sent} | figures | about
            write_whole(out, json.dumps(record, indent=1) + "\n")
    except (ValueError, TargetError, PerfAnalyzerError, GeneratorError, RunFileError) as error:
        fail(str(error))
    table = Table("generator", "requests", "p50 ms")
    for name in PAIR:
        counts, values = found.requests[name], found.p50[name]
        table.add_row(name, " and ".join(map(str, counts)), " and ".join(f"{value:.2f}" for value in values))
    Console().print(table)
    print(json.dumps(figures))
    raise typer.Exit(0 if found.is_within(allowed) else 1)


def compare(target: str, protocol: Protocol, rows: Sequence[WorkloadRequest], launcher: Path) -> Agreement:
    """All turns.

    Args:
        target: a folder or a URL.
        protocol: of both generators.
        rows: what both send, in this order.
        launcher: starts perf_analyzer.

    Raises:
        TargetError: no server.
        PerfAnalyzerError, GeneratorError: a generator could not measure, or a request was not answered.
    """
    found = Agreement(protocol)
    with tempfile.TemporaryDirectory(prefix="agree-") as scratch:
        file = Path(scratch) / "rows.jsonl"
        write_rows(rows, file)
        seconds = FEWEST_SECONDS
        with open_target(target) as server:
            found.settings = served_settings(server.http_url)
            for name, counts in [(ORDER[0], False), *((name, True) for name in ORDER)]:
                if name == "perf_analyzer":
                    count, p50, seconds = _by_perf_analyzer(server.url(protocol), protocol, rows, scratch, launcher)
                else:
                    plan = plan_of("closed", rate=1, seconds=max(FEWEST_SECONDS, SHARE * seconds), clients=1)
                    settings = LoadSettings(file, plan, deadline_seconds=LONGEST_ANSWER_SECONDS)
                    run = generate(server, protocol, settings)
                    if run.totals.failed:
                        raise GeneratorError(f"Locust: {run.totals.failed} failed: {run.failures}")
                    if run.totals.service.p50 is None:
                        raise GeneratorError("Locust: no request was answered")
                    count, p50 = run.totals.answered, run.totals.service.p50
                if counts:
                    found.requests[name].append(count)
                    found.p50[name].append(p50)
    return found


def write_rows(rows: Sequence[WorkloadRequest], path: Path) -> None:
    """A workload of its own: numbers from 0, one arrival per second."""
    with path.open("w", encoding="utf-8") as file:
        for number, row in enumerate(rows):
            values = asdict(replace(row, number=number, at_seconds=float(number)))
            file.write(json.dumps(values, ensure_ascii=False) + "\n")


def _by_perf_analyzer(
    url: str, protocol: Protocol, rows: Sequence[WorkloadRequest], scratch: str, launcher: Path
) -> tuple[int, float, float]:
    done = measure(
        Level("concurrency", 1), rows, url=url, protocol=protocol, folder=Path(scratch) / "perf", launcher=launcher
    )
    if done.level.failed or done.level.latency.p50 is None:
        raise PerfAnalyzerError(f"{url}: {done.level.failed}")
    return done.level.requests, done.level.latency.p50, done.level.seconds
