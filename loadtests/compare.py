"""Which of two servers answers sooner? One client asks both the same requests by turns; ratios are per request.

Two runs on a machine that others use, or that warms up, compare the weather. Here each request goes to one server and
then at once to the other, the first one by turns, so that whatever slows the machine slows both; the median of the
ratios of single requests is what remains. Requests are sent in the order of the workload and none of them twice, so a
context is in a server's cache only where a user came back.
"""

import json
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from tritonrank_client import RankClient, RankError, Retry

from loadtests.console import fail
from loadtests.machine import describe_machine
from loadtests.results import RunFileError, write_whole
from loadtests.target import TargetError, open_target, protocol_of
from loadtests.workload import WorkloadError, WorkloadRequest, read_workload, workload_of

REQUESTS = 100
WARM_UP_REQUESTS = 10
LONGEST_ANSWER_SECONDS = 60.0


@dataclass(frozen=True)
class Comparison:
    """Milliseconds of both servers for the same requests, and the second's time as a share of the first's."""

    requests: int
    candidates: float
    """per request, on average"""
    first_p50: float
    first_p99: float
    second_p50: float
    second_p99: float
    ratio: float
    """median of the ratios of single requests"""
    ratio_low: float
    ratio_high: float
    """their quartiles"""


def compare(
    first: Annotated[str, typer.Argument(help="artifacts/<recipe>, served for this, or a server's URL")],
    second: Annotated[str, typer.Argument(help="The other one")],
    workload: Annotated[
        Path | None, typer.Option(help="What `tritonrank workload` wrote; default: workload.jsonl in the first folder")
    ] = None,
    protocol: Annotated[str, typer.Option(help="grpc or http; of a URL, its own")] = "grpc",
    requests: Annotated[int, typer.Option(min=1, help="To time, after some that warm up")] = REQUESTS,
    most: Annotated[float | None, typer.Option(min=0, help="Exit with 1 when the ratio is above this")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the figures and the machine as JSON")] = None,
) -> None:
    """Time two servers on the same requests, by turns: the second's latency as a share of the first's."""
    here = describe_machine()
    try:
        rows = read_workload(workload_of(first, workload))[: WARM_UP_REQUESTS + requests]
        with ExitStack() as servers:
            spoken = [protocol_of(target, protocol) for target in (first, second)]
            opened = [servers.enter_context(open_target(target)) for target in (first, second)]
            urls = [server.url(own) for server, own in zip(opened, spoken, strict=True)]
            found = timed(urls, rows)
    except (ValueError, TargetError, WorkloadError, RankError) as error:
        fail(str(error))
    table = Table(
        "", "p50 ms", "p99 ms", title=f"{found.requests} requests of {found.candidates:g} candidates, by turns"
    )
    table.add_row(first, f"{found.first_p50:.1f}", f"{found.first_p99:.1f}")
    table.add_row(second, f"{found.second_p50:.1f}", f"{found.second_p99:.1f}")
    console = Console()
    console.print(table)
    console.print(
        f"the second takes {found.ratio:.2f} of the first's time "
        f"(quartiles over the requests {found.ratio_low:.2f} to {found.ratio_high:.2f})",
        highlight=False,
    )
    if out is not None:
        record = {"first": first, "second": second, "protocols": spoken} | asdict(found)
        record |= {"machine": here.model_dump(mode="json")}
        try:
            write_whole(out, json.dumps(record, indent=1) + "\n")
        except RunFileError as error:
            fail(str(error))
    print(json.dumps(asdict(found)))
    raise typer.Exit(1 if most is not None and found.ratio > most else 0)


def timed(urls: Sequence[str], rows: Sequence[WorkloadRequest]) -> Comparison:
    """Send all rows to both servers, one request at a time.

    Args:
        urls: of two servers.
        rows: the first ``WARM_UP_REQUESTS`` are not counted, unless there are no others.

    Raises:
        RankError: a server did not answer.
        WorkloadError: there is no request.
    """
    if not rows:
        raise WorkloadError("the workload has no request")
    seconds: tuple[list[float], list[float]] = ([], [])
    with ExitStack() as clients:
        opened = [
            clients.enter_context(RankClient(url, timeout=LONGEST_ANSWER_SECONDS, retry=Retry(attempts=3)))
            for url in urls
        ]
        for number, row in enumerate(track(rows, "  comparing", transient=True)):
            for turn in (0, 1) if number % 2 == 0 else (1, 0):
                started = time.perf_counter()
                opened[turn].rank(query=row.query, history=row.history, items=row.items)
                seconds[turn].append(time.perf_counter() - started)
    counted = slice(WARM_UP_REQUESTS if len(rows) > WARM_UP_REQUESTS else 0, None)
    first, second = (1_000 * np.array(values[counted]) for values in seconds)
    low, median, high = np.quantile(second / first, [0.25, 0.5, 0.75]).tolist()
    return Comparison(
        requests=len(first),
        candidates=float(np.mean([len(row.items) for row in rows[counted]])),
        first_p50=float(np.quantile(first, 0.5)),
        first_p99=float(np.quantile(first, 0.99)),
        second_p50=float(np.quantile(second, 0.5)),
        second_p99=float(np.quantile(second, 0.99)),
        ratio=median,
        ratio_low=low,
        ratio_high=high,
    )
