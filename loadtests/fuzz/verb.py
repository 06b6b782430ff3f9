"""The verb ``fuzz``: seeded requests that nobody should send, to a local server, and whether it stands them.

Requests come in blocks. After each block the golden requests have to rank as before, to the last digit, and no answer
may hold a traceback or a path. Whenever a process of the server ends, the request before it is written down, and the
server has to be back within five seconds by itself. The same seed sends the same requests in the same order.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from tritonrank_client import RankError

from loadtests.console import fail
from loadtests.fuzz.clients import ClientFuzz
from loadtests.fuzz.gateway_requests import GatewayFuzz
from loadtests.fuzz.gateway_served import FuzzedGateway
from loadtests.fuzz.grpc_requests import GrpcFuzz
from loadtests.fuzz.http_requests import HttpFuzz
from loadtests.fuzz.record import KEPT_CHARACTERS, NO_ANSWER, Answer, End, Record
from loadtests.fuzz.served import SERVER, FuzzedServer, Ranking
from loadtests.machine import describe_machine
from loadtests.processes import SystemFaultError
from loadtests.results import RunFileError, write_whole
from loadtests.runs import versions

BLOCK_REQUESTS = 250
RUNS = Path("artifacts/loadtests")
SETTLE_SECONDS = 0.1
"""After a request that met no answer: a process that it ended is gone by then."""

console = Console(stderr=True, emoji=False)


@dataclass(frozen=True)
class Family:
    """Requests of one kind."""

    name: str
    share: int
    """of all requests, relative to the others'"""
    send: Callable[[Random], Answer]


def fuzz(
    artifacts: Annotated[
        Path, typer.Argument(metavar="ARTIFACTS", help="artifacts/<recipe>, which is served meanwhile")
    ],
    requests: Annotated[int, typer.Option(min=1, help="To send, of all kinds together")] = 10_000,
    seed: Annotated[int, typer.Option(help="The same seed sends the same requests")] = 17,
    minutes: Annotated[float, typer.Option(min=0.1, help="End after so many, however many were sent")] = 45.0,
    only: Annotated[list[str] | None, typer.Option(help="Only kinds whose name contains this; repeatable")] = None,
    out: Annotated[Path | None, typer.Option(help="The record; default: artifacts/loadtests/fuzz-TIME.json")] = None,
) -> None:
    """Send seeded hostile requests to a local server and a gateway before it. Exits with 1 when it does not stand them.

    It has to rank golden requests as before, give away neither traceback nor path, and be back within five seconds
    whenever a request ends it. Sends to loopback only.
    """
    started = datetime.now(UTC)
    try:
        with (
            tempfile.TemporaryDirectory(prefix="fuzz-") as scratch,
            FuzzedServer(artifacts, Path(scratch) / "server") as server,
            FuzzedGateway(artifacts, server.urls["grpc"].removeprefix("grpc://"), Path(scratch) / "gateway") as gateway,
            families(server, gateway, only or ()) as kinds,
        ):
            record = run_fuzz(server, kinds, requests=requests, seed=seed, seconds=60 * minutes, gateway=gateway)
    except (OSError, ValueError, KeyError, SystemFaultError, RankError) as error:
        fail(f"{artifacts}: {error}")
    faults = record.faults()
    result = {
        "passed": not faults,
        "why": faults,
        "started": started.isoformat(timespec="seconds"),
        "seed": seed,
        "asked_for": requests,
        "requests": record.requests,
        "accepted": record.accepted,
        "blocks": record.blocks,
        "slow": record.slow,
        "counts": {name: dict(counts.most_common()) for name, counts in record.counts.items()},
        "ends": [asdict(end) for end in record.ends],
        "leaking": record.leaking,
        "leaks": record.leaks,
        "unexpected": record.unexpected,
        "wrong_golden": record.wrong_golden,
        "footprints": record.footprints,
        "machine": describe_machine().model_dump(),
        "versions": versions(),
    }
    path = out or RUNS / f"fuzz-{started:%Y%m%d-%H%M%S}.json"
    try:
        write_whole(path, json.dumps(result, indent=1) + "\n")
    except RunFileError as error:
        fail(str(error))
    show(record)
    kept = ("passed", "why", "requests", "accepted", "blocks", "leaking")
    print(json.dumps({"record": str(path)} | {key: result[key] for key in kept} | {"ends": len(record.ends)}))
    sys.exit(1 if faults else 0)


@contextmanager
def families(server: FuzzedServer, gateway: FuzzedGateway, only: Sequence[str] = ()) -> Iterator[list[Family]]:
    """All kinds of requests, or those whose name contains one of these words.

    Raises:
        ValueError: there is none of such a name.
    """
    over_http, dialects = HttpFuzz(server.http_address), GatewayFuzz(gateway.address, gateway.side)
    with (
        closing(GrpcFuzz(server.urls["grpc"].removeprefix("grpc://"))) as over_grpc,
        closing(ClientFuzz(server.urls)) as client,
    ):
        every = [
            Family("HTTP JSON", 30, over_http.json),
            Family("HTTP binary", 18, over_http.binary),
            Family("HTTP generate", 6, over_http.generate),
            Family("HTTP raw", 1, over_http.raw),
            Family("HTTP hang-ups", 4, over_http.hang_up),
            Family("gRPC structured", 20, over_grpc.structured),
            Family("gRPC damaged", 12, over_grpc.damaged),
            Family("gRPC hang-ups", 2, over_grpc.hang_up),
            Family("product's client", 12, client.call),
            Family("gateway JSON", 30, dialects.json),
            Family("gateway paths", 14, dialects.paths),
            Family("gateway headers", 10, dialects.headers),
            Family("gateway tuning", 4, dialects.tuning),
            Family("gateway raw", 1, dialects.raw),
            Family("gateway hang-ups", 5, dialects.hang_up),
        ]
        chosen = [one for one in every if not only or any(word.lower() in one.name.lower() for word in only)]
        if not chosen:
            raise ValueError(f"--only {' '.join(only)}: there are {', '.join(one.name for one in every)}")
        yield chosen


def run_fuzz(
    server: FuzzedServer,
    kinds: Sequence[Family],
    *,
    requests: int,
    seed: int,
    seconds: float,
    gateway: FuzzedGateway | None = None,
) -> Record:
    """Send and watch.

    Args:
        server: is running.
        kinds: of requests.
        requests: how many in all.
        seed: of all that is drawn.
        seconds: no request is sent after so many.
        gateway: is running, too; what ends it is a fault, because nobody but this harness starts it again.

    Raises:
        RankError: golden requests are not answered before anything is sent.
        SystemFaultError: the server could not be started again.
    """
    record, golden, started = Record(), server.golden(), time.monotonic()
    order = Random(seed)
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("fuzzing", total=requests)
        for number in range(requests):
            if time.monotonic() - started > seconds:
                break
            kind = order.choices(kinds, [one.share for one in kinds])[0]
            # A stream of its own for each request: one can be sent again without all before it.
            answer, taken = _send(kind, Random(f"{seed} {number}"))
            record.add(kind.name, answer, taken)
            if answer.status == NO_ANSWER:
                time.sleep(SETTLE_SECONDS)
            _note_ends(server, gateway, record, number, kind.name, answer.request)
            progress.update(task, completed=number + 1, description=f"{kind.name}, {len(record.ends)} ends")
            if (number + 1) % BLOCK_REQUESTS == 0:
                _end_block(server, gateway, record, number, golden)
    if record.requests % BLOCK_REQUESTS:
        _end_block(server, gateway, record, record.requests - 1, golden)
    return record


def show(record: Record) -> None:
    """Counts, ends and the verdict for people."""
    out = Console(emoji=False)
    table = Table("requests", "sent", "accepted", "answers")
    for name, counts in record.counts.items():
        accepted = sum(count for status, count in counts.items() if Answer(status, "", "").is_accepted)
        told = ", ".join(f"{status} {count}" for status, count in counts.most_common())
        table.add_row(name, str(counts.total()), str(accepted), told)
    out.print(table)
    for end in record.ends:
        back = "not back" if end.repaired_seconds is None else f"back after {end.repaired_seconds:.1f} s"
        how = "" if end.by_itself else ", started again by the harness"
        told = f"{end.what} ended after request {end.number}: {back}{how}; {end.family}: {end.request[:200]}"
        out.print(told, markup=False, highlight=False)
    for example in (*record.leaks, *record.unexpected):
        out.print(str(example), style="red", markup=False, highlight=False)
    faults = record.faults()
    verdict = f"{record.blocks} blocks, golden requests as before, {len(record.ends)} ends repaired, nothing given away"
    out.print("\n".join(faults) or verdict, style="bold red" if faults else "green", markup=False, highlight=False)


def _send(kind: Family, random: Random) -> tuple[Answer, float]:
    started = time.monotonic()
    try:
        answer = kind.send(random)
    except OSError as error:  # of a plain socket
        answer = Answer(NO_ANSWER, str(error), f"{type(error).__name__}")
    return answer, time.monotonic() - started


def _note_ends(
    server: FuzzedServer, gateway: FuzzedGateway | None, record: Record, number: int, family: str, request: str
) -> None:
    """Write down what ended, if anything did, and wait until the server is back."""
    if gateway is not None and (again := gateway.started_again()) is not None:
        record.ends.append(End(number, "gateway", family, request[:KEPT_CHARACTERS], round(again, 2), by_itself=False))
    ended = server.take_ended()
    if not ended:
        return
    # A server that ends takes its stubs along: that is one end.
    what = next((name for _, name in ended if name == SERVER), ended[0][1])
    seconds, by_itself = server.wait_for_repair(min(moment for moment, _ in ended))
    server.take_ended()
    told = request[:KEPT_CHARACTERS]
    record.ends.append(End(number, what, family, told, None if seconds is None else round(seconds, 2), by_itself))


def _end_block(
    server: FuzzedServer, gateway: FuzzedGateway | None, record: Record, number: int, golden: list[Ranking]
) -> None:
    time.sleep(SETTLE_SECONDS)
    _note_ends(server, gateway, record, number, "end of a block", "")
    record.blocks += 1
    for name, one in (("server", server), ("gateway", gateway)):
        if one is not None:
            record.footprints.setdefault(name, []).append(one.footprint())
    try:
        found: Any = server.golden()
    except RankError as error:
        found = f"{type(error).__name__}: {error}"
    if found != golden:
        told = found if isinstance(found, str) else "another ranking or other scores"
        record.wrong_golden.append(f"after request {number}: {told}")
