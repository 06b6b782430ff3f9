"""Several clients at once against a live server: each a thread with a connection of its own, in few processes, because
sixteen threads of one would wait for each other.
"""

import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from multiprocessing import get_context

import numpy as np
from tritonrank_client import RankClient
from tritonrank_runtime.cores import available_cores

from tritonrank.errors import ServerError
from tritonrank.gpu_check.packed import PackedRequest
from tritonrank.gpu_check.report import UnderLoad
from tritonrank.rankers.server_scorer import Request, ServerScorer

CLIENTS = (1, 4, 16)
SECONDS = 4.0
"""For each number of clients and each size of requests."""
MOST_PROCESSES = 4
REQUEST_SECONDS = 30.0


def under_load(name: str, url: str, timed: Mapping[int, Sequence[PackedRequest]]) -> list[UnderLoad]:
    """Latency and throughput with 1, 4 and 16 clients, each of which asks again as soon as it is answered.

    Args:
        name: of what serves, for people.
        url: of the server's gRPC port.
        timed: requests by candidates.

    Raises:
        ServerError: none was answered.
    """
    processes = max(1, min(MOST_PROCESSES, available_cores() // 2))
    found = []
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        for candidates, requests in timed.items():
            for clients in CLIENTS:
                shares = [len(one) for one in np.array_split(np.arange(clients), min(processes, clients))]
                asked = [pool.submit(_ask, url, requests, share, SECONDS) for share in shares]
                answers = [one.result() for one in asked]
                seconds = [latency for latencies, _ in answers for latency in latencies]
                if not seconds:
                    raise ServerError(f"{url}: none of {clients} clients was answered at {candidates:,} candidates")
                per_second = len(seconds) / SECONDS
                p50, p99 = (float(np.percentile(seconds, share)) for share in (50, 99))
                found.append(
                    UnderLoad(
                        name=name,
                        candidates=candidates,
                        clients=clients,
                        requests=len(seconds),
                        refused=sum(refused for _, refused in answers),
                        p50_ms=round(1_000 * p50, 3),
                        p99_ms=round(1_000 * p99, 3),
                        requests_per_second=round(per_second, 1),
                        candidates_per_second=round(candidates * per_second, 1),
                    )
                )
    return found


def _ask(url: str, requests: Sequence[PackedRequest], clients: int, seconds: float) -> tuple[list[float], int]:
    """Latencies of some clients of one process, and how many requests were refused."""
    latencies: list[float] = []
    refused: list[int] = []
    faults: list[BaseException] = []
    ready = threading.Barrier(clients)

    def ask(place: int) -> None:
        try:
            with RankClient(url, timeout=REQUEST_SECONDS) as client:
                scorer = ServerScorer(client)
                with suppress(ServerError):  # the connection is there all the same
                    _ask_once(scorer, requests[place % len(requests)])
                ready.wait(REQUEST_SECONDS)
                until = time.perf_counter() + seconds
                while (began := time.perf_counter()) < until:
                    place += clients
                    try:
                        _ask_once(scorer, requests[place % len(requests)])
                        latencies.append(time.perf_counter() - began)
                    except ServerError:  # more than its queue takes: counted, and no reason to stop
                        refused.append(place)
        except Exception as error:  # noqa: BLE001 - a thread's; raised below
            ready.abort()
            faults.append(error)

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(clients)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    if faults:
        raise faults[0]
    return latencies, len(refused)


def _ask_once(scorer: ServerScorer, request: PackedRequest) -> None:
    scorer.score(Request(request.query, request.history, request.items))
