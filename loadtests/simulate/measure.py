"""Measures what a replica costs: CPU seconds of a served build by the number of candidates, over the cores it may use.

CPU seconds and not seconds, so that other work on the machine does not lie in them; of the whole server, so that
tokenizing and Triton's own share are in. Requests come one after the other and are of different users.
"""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
from tritonrank_client import RankClient
from tritonrank_recommend.blend import BlendError, open_levels
from tritonrank_runtime.cores import available_cores

from loadtests.machine import describe_machine
from loadtests.simulate.cost import Cost, CostError, line_of
from loadtests.target import open_target
from loadtests.workload import WorkloadRequest, read_workload, workload_of

SHARES = (0.125, 0.25, 0.5, 0.75, 1.0)
"""Of a whole list: what is measured."""
WARM_UP_CALLS, CALLS = 3, 20
START_SECONDS = 40.0
"""From the wish for a replica to its first answer: a start of the server, whose first one on a machine took 35 s and
later ones 3 s (docs/measurements.md), and some to find a place for it."""
QUEUE_SECONDS = 0.5
"""``serve.queue_share`` of a page's deadline of one second."""


def measure(artifacts: Path) -> Cost:
    """The cost of a build's server, and what its levels are worth.

    Args:
        artifacts: artifacts/<recipe>, with a blend.

    Raises:
        CostError: there are no levels, or the cost is no line.
        TargetError: it cannot be served.
        WorkloadError: it has no workload.
    """
    try:
        file = open_levels(artifacts / "blend")
    except BlendError as error:
        raise CostError(str(error)) from None
    if file is None:
        raise CostError(f"{artifacts}/blend: no levels.json. Make it: tritonrank build RECIPE, with a catalogue")
    requests = read_workload(workload_of(str(artifacts), None))
    sizes = [round(share * file.full) for share in SHARES]
    cores = available_cores()
    with open_target(str(artifacts)) as server, RankClient(server.grpc_url, timeout=60) as client:
        assert server.pid is not None, "a server that was started here has a process"
        seconds_of = cpu_seconds(server.pid)
        found = {size: seconds_per_call(client, requests, size, seconds_of) / cores for size in sizes}
    fixed, each = line_of(found)
    machine = describe_machine()
    shares = {int(name): share for name, share in file.by_candidates.items()}
    return Cost(
        seconds_per_request=fixed,
        seconds_per_candidate=each,
        ndcg_share={0: file.retrieval} | {depth: share for depth, share in shares.items() if depth < file.full}
        | {file.full: 1.0},
        start_seconds=START_SECONDS,
        queue_seconds=QUEUE_SECONDS,
        measured=f"{artifacts.name} on {machine.processor}, {cores} cores: "
        + ", ".join(f"{size} candidates {1e3 * one:.1f} ms" for size, one in found.items()),
    )  # fmt: skip


def seconds_per_call(
    client: RankClient, requests: Sequence[WorkloadRequest], size: int, seconds_of: Callable[[], float]
) -> float:
    """CPU seconds of the server for a list of so many candidates."""
    texts = list(dict.fromkeys(itertools.chain.from_iterable(request.items for request in requests)))
    before = 0.0
    for number in range(WARM_UP_CALLS + CALLS):
        if number == WARM_UP_CALLS:
            before = seconds_of()
        asked = requests[number % len(requests)]
        places = range(number * size, (number + 1) * size)
        # A text that was drawn before is another one here: a list without repetitions costs what a list costs.
        items = [f"{texts[place % len(texts)]} {place // len(texts) or ''}".rstrip() for place in places]
        client.rank(query=asked.query, history=asked.history, items=items)
    return (seconds_of() - before) / CALLS


def cpu_seconds(pid: int) -> Callable[[], float]:
    """A clock of a process and its children."""
    processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]

    def seconds() -> float:
        return sum(one.cpu_times().user + one.cpu_times().system for one in processes)

    return seconds
