"""``python -m loadtests overhead``: what all metrics together cost, or traces, as a ratio in one run.

Two services of the same artifact run side by side, each a gateway and a Triton: one as it is, its pages read as often
as Prometheus does; one that counts nothing (``silent.py``). With ``--tracing`` both count, and the first sends a
hundredth of its requests' traces to a collector. A few callers keep one of them busy for some seconds, then the other,
in the order A B B A, so that whatever else the machine does meets both. Of each pair of turns comes one
ratio.

Two figures: answers per second, which is what users have of it, and processor seconds of the service per answer, which
say the same with less noise where the machine has other work.
"""

import itertools
import json
import math
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import httpx
import psutil
import typer
from rich.console import Console
from rich.table import Column, Table
from tritonrank.artifacts.workspace import Workspace
from tritonrank.errors import TritonRankError
from tritonrank.serve.server import LocalTriton

from loadtests.collector import Collector, collecting
from loadtests.console import fail
from loadtests.gateway import REFUSED_SECONDS, VOCABULARY, WORDS
from loadtests.machine import describe_machine
from loadtests.processes import Process, SystemFaultError
from loadtests.silent import silence_models

MOST_LOSS = 0.02
GATEWAYS = {"with": "tritonrank_gateway", "without": "loadtests.silent"}
SCRAPE_SECONDS = 15.0
"""As Prometheus does it as a rule; of load, as the other service's turns are none of this one's time."""
WARM_UP_SECONDS = 2.0
ANSWER_SECONDS = 60.0
NOT_NOW = (429, 504)
"""What a busy machine answers."""
Ask = Callable[[httpx.Client], httpx.Response]


@dataclass
class Service:
    """A gateway and the Triton behind it."""

    url: str
    pages: tuple[str, ...]
    roots: tuple[int, ...]
    """process ids; their children belong to them"""
    unread_seconds: float = SCRAPE_SECONDS
    """of load since the pages were read"""

    def read_pages(self, seconds: float) -> None:
        """Read them where it is time to, before so many seconds of load."""
        if self.unread_seconds >= SCRAPE_SECONDS:
            self.unread_seconds = 0.0
            for page in self.pages:
                httpx.get(page, timeout=ANSWER_SECONDS).raise_for_status()
        self.unread_seconds += seconds

    def processor_seconds(self) -> float:
        """Of all its processes, since they began."""
        spent = 0.0
        for root in self.roots:
            for one in (process := psutil.Process(root), *process.children(recursive=True)):
                with suppress(psutil.NoSuchProcess):
                    times = one.cpu_times()
                    spent += times.user + times.system
        return spent


@dataclass(frozen=True)
class Turn:
    """Some seconds of one service."""

    answers: int
    seconds: float
    processor_seconds: float

    @property
    def per_second(self) -> float:
        return self.answers / self.seconds

    @property
    def processor_ms(self) -> float:
        return 1_000 * self.processor_seconds / self.answers


def overhead(
    artifacts: Annotated[Path, typer.Argument(help="artifacts/<recipe>, with the stage repository")],
    turns: Annotated[int, typer.Option(min=2, help="of each service, for each kind of request")] = 20,
    turn_seconds: Annotated[float, typer.Option(min=0.5, help="before the other one is loaded")] = 3.0,
    callers: Annotated[int, typer.Option(min=1, help="waiting for their answers")] = 8,
    candidates: Annotated[int, typer.Option(min=1, help="of a request to rank")] = 100,
    tracing: Annotated[bool, typer.Option("--tracing", help="what traces cost at 1% sampling, not metrics")] = False,
) -> None:
    """Measure what metrics cost, or traces. Exits with 1 when they surely take more than 2% of the throughput."""
    workspace = Workspace(artifacts)
    try:
        with ExitStack() as stack:
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="loadtest-overhead-")))
            collector = stack.enter_context(collecting()) if tracing else None
            services = {
                name: stack.enter_context(
                    serving(
                        workspace,
                        scratch / name,
                        GATEWAYS["with"] if tracing else module,
                        collector if name == "with" else None,
                    )
                )
                for name, module in GATEWAYS.items()
            }
            kinds: dict[str, Ask] = {"rank": ranking_of(candidates)}
            if workspace.catalogue.is_dir():
                kinds["recommend"] = recommendation()
            compared = {name: compare(services, ask, turns, turn_seconds, callers) for name, ask in kinds.items()}
    except (TritonRankError, SystemFaultError) as error:
        fail(str(error))
    passed = all(found["sure_loss"] <= MOST_LOSS for found in compared.values())
    show(compared)
    machine = describe_machine().model_dump()
    told: dict[str, Any] = {"kinds": compared, "most_loss": MOST_LOSS, "machine": machine, "passed": passed}
    if collector is not None:
        told["exports"] = collector.exports
    print(json.dumps(told))
    sys.exit(0 if passed else 1)


@contextmanager
def serving(workspace: Workspace, folder: Path, module: str, collector: Collector | None = None) -> Iterator[Service]:
    """Serve an artifact from a copy.

    Args:
        workspace: of the recipe.
        folder: for the copy, logs and the store.
        module: of the gateway; another one than the product's counts nothing, and its models neither.
        collector: takes traces of gateway and models; None makes none.

    Raises:
        SystemFaultError: the gateway did not start.
        ServerError: Triton did not.
    """
    repository = folder / "repository"
    shutil.copytree(workspace.repository, repository, ignore=shutil.ignore_patterns("recommend"))
    if module != GATEWAYS["with"]:
        silence_models(repository)
    ready = folder / "gateway.json"
    flags = ["--golden", str(repository / "golden.json")]
    for name, part in (("catalogue", workspace.catalogue), ("blend", workspace.blend)):
        flags += [f"--{name}", str(part)] if part.is_dir() else []
    environment = {} if collector is None else collector.environment
    flags += [] if collector is None else ["--tracing"]
    with LocalTriton(repository, environment=environment) as triton:
        gateway = Process(
            [
                sys.executable, "-m", module, "--triton", urlsplit(triton.grpc_url).netloc, "--port", "0",
                "--metrics-port", "0", "--ready-file", str(ready), "--no-access-log", "--adapt", "off",
                "--deadline-s", f"{ANSWER_SECONDS:g}", "--recommend-deadline-s", f"{ANSWER_SECONDS:g}",
                "--store", f"sqlite:{folder / 'store.db'}", *flags,
            ],
            folder / "gateway.log",
            environment=environment,
        )  # fmt: skip
        try:
            gateway.wait_until(ready.is_file, f"python -m {module}")
            urls = json.loads(ready.read_text(encoding="utf-8"))
            pages = (f"{urls['metrics_url']}/metrics", triton.metrics_url)
            yield Service(urls["url"], pages, (triton.pid, gateway.pid))
        finally:
            gateway.stop()


def ranking_of(candidates: int) -> Ask:
    """Requests of texts that were never sent before."""
    drawn = random.Random(time.monotonic_ns())

    def ask(http: httpx.Client) -> httpx.Response:
        items = [" ".join(drawn.choices(VOCABULARY, k=WORDS)) for _ in range(candidates)]
        return http.post("/v1/rank", json={"query": "a lamp for my desk", "items": items})

    return ask


def recommendation() -> Ask:
    """Requests of users whom nobody knows, each with a query of its own."""
    drawn, numbers = random.Random(time.monotonic_ns()), itertools.count()

    def ask(http: httpx.Client) -> httpx.Response:
        query = " ".join(drawn.choices(VOCABULARY, k=3))
        return http.post("/v1/recommend", json={"user_id": f"u{next(numbers)}", "query": query, "size": 20})

    return ask


def compare(services: dict[str, Service], ask: Ask, turns: int, turn_seconds: float, callers: int) -> dict[str, float]:
    """Load both services in turns; what the one with metrics loses, and how sure that is."""
    for service in services.values():
        keep_busy(service, ask, WARM_UP_SECONDS, callers)
    taken: dict[str, list[Turn]] = {name: [] for name in services}
    for number in range(turns):
        for name in list(services) if number % 2 else reversed(list(services)):
            taken[name].append(keep_busy(services[name], ask, turn_seconds, callers))
    pairs = [*zip(taken["with"], taken["without"], strict=True)]
    loss, error = mean_and_error([1 - one.per_second / other.per_second for one, other in pairs])
    more, more_error = mean_and_error([one.processor_ms / other.processor_ms - 1 for one, other in pairs])
    found = {"loss": loss, "loss_error": error, "processor": more, "processor_error": more_error}
    for name, of_one in taken.items():
        found[f"{name}_per_second"] = sum(one.answers for one in of_one) / sum(one.seconds for one in of_one)
        found[f"{name}_processor_ms"] = statistics.median(one.processor_ms for one in of_one)
    # Two standard errors: what a hundred runs would show in all but a few. The quieter of both figures decides.
    return found | {"sure_loss": min(loss - 2 * error, more - 2 * more_error), "turns": float(turns)}


def keep_busy(service: Service, ask: Ask, seconds: float, callers: int) -> Turn:
    """Let some callers ask for so long; its pages are read meanwhile where it is time to.

    Raises:
        SystemFaultError: nothing was answered, or an answer was no ranking.
    """
    ends = time.perf_counter() + seconds

    def call() -> int:
        count = 0
        with httpx.Client(base_url=service.url, timeout=ANSWER_SECONDS) as http:
            while time.perf_counter() < ends:
                answer = ask(http)
                if answer.status_code in NOT_NOW:  # no answer, and no reason to stop: the other one meets the same
                    time.sleep(REFUSED_SECONDS)
                    continue
                if answer.status_code != 200:
                    raise SystemFaultError(f"the gateway answered {answer.status_code}: {answer.text[:200]}")
                count += 1
        return count

    before, began = service.processor_seconds(), time.perf_counter()
    with ThreadPoolExecutor(callers + 1) as pool:
        reading = pool.submit(service.read_pages, seconds)
        counts = [future.result() for future in [pool.submit(call) for _ in range(callers)]]
        reading.result()
        took, spent = time.perf_counter() - began, service.processor_seconds() - before
    if not sum(counts):
        raise SystemFaultError(f"no answer within {seconds:g} s; longer turns (--turn-seconds) may help")
    return Turn(sum(counts), took, spent)


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """The mean, and the standard error of it."""
    return statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))


def show(compared: dict[str, dict[str, Any]]) -> None:
    """The figures for people."""
    names = ("answers/s", "without", "lost", "CPU ms each", "without", "more")
    table = Table("request", *(Column(name, justify="right") for name in names))
    for kind, found in compared.items():
        table.add_row(
            kind,
            f"{found['with_per_second']:.1f}",
            f"{found['without_per_second']:.1f}",
            f"{found['loss']:.2%} ± {found['loss_error']:.2%}",
            f"{found['with_processor_ms']:.2f}",
            f"{found['without_processor_ms']:.2f}",
            f"{found['processor']:.2%} ± {found['processor_error']:.2%}",
        )
    Console().print(table)
    Console().print("± one standard error of the mean over pairs of turns")
