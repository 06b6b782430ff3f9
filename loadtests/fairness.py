"""Does a large request starve small ones? Latency of small requests alone, and while a large one is always in flight.

    python -m loadtests.fairness grpc://127.0.0.1:8001 small.jsonl large.jsonl

Both files come from ``tritonrank workload`` (such as --candidates 10 and --candidates 1000). Small requests are sent
one after the other; beside them one client sends large requests without a pause. Prints a table and one line of JSON.
Exits with 1 when the small requests' p99 grows beyond --most times, and with 2 when a request was not answered: small
requests that were alone all the time say nothing.
"""

import argparse
import itertools
import json
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

from rich.console import Console
from rich.table import Table
from tritonrank_client import RankClient, RankError, Retry

from loadtests.console import fail
from loadtests.peers.load import percentile
from loadtests.workload import WorkloadRequest, read_workload

WARM_UP_REQUESTS = 20
LONGEST_ANSWER_SECONDS = 60.0
LEAD_SECONDS = 0.5
"""After which the first large request is being computed."""


def compare(
    url: str, small: Sequence[WorkloadRequest], large: Sequence[WorkloadRequest], count: int
) -> dict[str, float]:
    """Milliseconds of the small requests alone and beside large ones; large ones answered per second meanwhile.

    Raises:
        RankError: a request was not answered, small or large.
        ValueError: nothing was to be sent, or no large request was answered meanwhile.
    """
    if count < 1 or not small or not large:
        raise ValueError(f"{count} of {len(small)} small requests beside {len(large)} large ones compare nothing")
    stop = Event()

    def send_large() -> int:
        answered, requests = 0, itertools.cycle(large)
        with RankClient(url, timeout=LONGEST_ANSWER_SECONDS, retry=Retry(attempts=3)) as client:
            while not stop.is_set():
                _rank(client, next(requests))
                answered += 1
        return answered

    with (
        RankClient(url, timeout=LONGEST_ANSWER_SECONDS, retry=Retry(attempts=3)) as client,
        ThreadPoolExecutor(1) as beside_us,
    ):
        requests = itertools.cycle(small)
        for _ in range(WARM_UP_REQUESTS):
            _rank(client, next(requests))
        alone = [_milliseconds(client, next(requests)) for _ in range(count)]
        started = time.perf_counter()
        background = beside_us.submit(send_large)
        try:
            time.sleep(LEAD_SECONDS)
            beside = [_milliseconds(client, next(requests)) for _ in range(count)]
        finally:
            stop.set()  # else its thread would not end, whatever ended this one
        answered = background.result()
        seconds = time.perf_counter() - started
    if not answered:
        raise ValueError("no large request was answered while the small ones were sent; send more with --requests")
    return {
        "alone_p50": percentile(alone, 0.5),
        "alone_p99": percentile(alone, 0.99),
        "beside_large_p50": percentile(beside, 0.5),
        "beside_large_p99": percentile(beside, 0.99),
        "p99_ratio": percentile(beside, 0.99) / percentile(alone, 0.99),
        "large_per_second": answered / seconds,
    }


def _milliseconds(client: RankClient, request: WorkloadRequest) -> float:
    started = time.perf_counter()
    _rank(client, request)
    return 1_000 * (time.perf_counter() - started)


def _rank(client: RankClient, request: WorkloadRequest) -> None:
    client.rank(query=request.query, history=request.history, items=request.items)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m loadtests.fairness", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("url", help="a running server, such as grpc://127.0.0.1:8001")
    parser.add_argument("small", type=Path, help="workload of small requests")
    parser.add_argument("large", type=Path, help="workload of large requests")
    parser.add_argument("--requests", type=int, default=300, help="small requests in each half (default 300)")
    parser.add_argument("--most", type=float, default=3.0, help="largest ratio of the p99 (default 3)")
    options = parser.parse_args()
    try:
        found = compare(options.url, read_workload(options.small), read_workload(options.large), options.requests)
    except (RankError, ValueError) as error:  # of the server; of a file or the URL
        fail(str(error))
    table = Table("small requests", "p50 ms", "p99 ms")
    table.add_row("alone", f"{found['alone_p50']:.1f}", f"{found['alone_p99']:.1f}")
    table.add_row("beside large ones", f"{found['beside_large_p50']:.1f}", f"{found['beside_large_p99']:.1f}")
    Console().print(table)
    print(json.dumps({name: round(value, 3) for name, value in found.items()}))
    sys.exit(0 if found["p99_ratio"] <= options.most else 1)


if __name__ == "__main__":
    main()
