"""The verb ``kills``: kill -9 of the gateway, Triton and the store while people visit, and count what became of it.

Senders post batches of events until each is acknowledged, under the same ids, as the client library does; some batches
are sent again after that, some in part before. At the end every acknowledged event has to be in its user's counters
and in the training log, once. Meanwhile pages are asked for, one attempt each: none may be an error of the server while
somebody is there to answer, and whole pages, not degraded ones, have to come back by themselves.
"""

import asyncio
import json
import random
import re
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

import psutil
import typer
from rich import box
from rich.console import Console
from rich.table import Table
from tritonrank_client import InvalidRequest, RankError, ServerFault

from loadtests.console import fail
from loadtests.event_ledger import (
    ANSWER_SECONDS,
    EVENT_SENDERS,
    PATIENCE_SECONDS,
    USERS_PER_SENDER,
    Events,
    count,
    send_events,
)
from loadtests.json_connections import JsonConnections
from loadtests.machine import describe_machine
from loadtests.processes import LOOPBACK, Process, SystemFaultError
from loadtests.runs import versions
from loadtests.valkey import Valkey

PAGES_PER_SECOND = 5.0
SERVED = ("dataset", "repository", "catalogue", "blend")
EVENTS = "events"
"""Folder of the training log, beside the artifacts."""
BEFORE_SECONDS, MOST_AWAY_SECONDS = 2.0, 30.0
WHOLE_PAGES = 10
"""In a row, and everything is as it was."""
Part = Literal["gateway", "tritonserver", "store"]
PARTS: tuple[Part, ...] = get_args(Part)


@dataclass
class Kill:
    """What one kill did; seconds count from it.

    Attributes:
        part: what was killed.
        away_seconds: until pages came again, whole and in a row.
        pages: asked for meanwhile, by what came: whole, degraded, refused, unreachable, failed.
    """

    part: str
    away_seconds: float | None
    pages: dict[str, int]

    @property
    def passed(self) -> bool:
        return self.away_seconds is not None and not self.pages.get("failed")


def kills(
    target: Annotated[Path, typer.Argument(metavar="ARTIFACTS", help="artifacts/<recipe> with a catalogue")],
    store: Annotated[Literal["sqlite", "valkey"], typer.Option(help="Behind the gateway; Valkey is started here")] = (
        "sqlite"
    ),
    out: Annotated[Path | None, typer.Option(help="Where the results go as JSON; default: only shown")] = None,
) -> None:
    """Kill the gateway, Triton and the store (of Valkey) in turn under visits, with `tritonrank up` in charge.

    Exits with 1 when an acknowledged event is lost or counts twice, a page failed, or something did not come back.
    """
    with tempfile.TemporaryDirectory(prefix="kills-") as scratch, ExitStack() as stack:
        folder = Path(scratch)
        valkey = stack.enter_context(Valkey(folder)) if store == "valkey" else None
        url = valkey.url if valkey else f"sqlite:{folder}/store.db"
        try:
            root = _beside(target, folder)
            with _up(root, url, folder) as (gateway, process):
                events, results = _kill_each(gateway, process, valkey)
                lost, twice = asyncio.run(count(events, url, root / EVENTS))
        except SystemFaultError as error:
            fail(str(error))
    _show(results)
    found = {
        "what": f"python -m loadtests kills {target.name} --store {store}",
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": describe_machine().model_dump(),
        "versions": versions(),
        "acknowledged": events.count,
        "lost": lost,
        "twice": twice + events.counted_twice,
        "given_up": events.given_up,
        "kills": [asdict(one) | {"passed": one.passed} for one in results],
    }
    found["passed"] = not (lost or found["twice"] or events.given_up) and all(one.passed for one in results)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    told = {name: found[name] for name in ("passed", "acknowledged", "given_up")}
    typer.echo(
        json.dumps(
            told | {"lost": len(lost), "twice": len(twice) + len(events.counted_twice), "examples": [*lost, *twice][:3]}
        )
    )
    sys.exit(0 if found["passed"] else 1)


def _beside(target: Path, folder: Path) -> Path:
    """The build once more, in a folder of its own, so that no event of this test gets into the shop's training log."""
    if not (target / "catalogue").is_dir():
        fail(f"{target}: no catalogue. A recipe with a retrieval section makes one: tritonrank build RECIPE")
    root = folder / target.name
    for name in SERVED:
        if (target / name).is_dir():
            shutil.copytree(target / name, root / name)
    return root


@contextmanager
def _up(target: Path, store: str, folder: Path) -> Iterator[tuple[str, Process]]:
    command = [sys.executable, "-m", "tritonrank", "up", str(target), "--port", "0", "--store", store]
    process = Process(command, folder / "up.log", environment={"COLUMNS": "200"})
    try:
        found: list[str] = []

        def is_told() -> bool:
            text = process.log.read_text(encoding="utf-8", errors="replace")
            found[:] = re.findall(rf"(http://{re.escape(LOOPBACK)}:\d+)/v1/re", text)
            return bool(found)

        process.wait_until(is_told, f"tritonrank up {target}")
        yield found[0], process
    finally:
        process.stop()


def _kill_each(url: str, process: Process, valkey: Valkey | None) -> tuple[Events, list[Kill]]:
    items = _some_items(url)
    events, ended = Events(), threading.Event()
    senders = [
        threading.Thread(target=send_events, args=(url, place, items, events, ended)) for place in range(EVENT_SENDERS)
    ]
    for sender in senders:
        sender.start()
    results = []
    try:
        for part in PARTS:
            if part == "store" and valkey is None:
                continue  # a file has no process of its own: it is the gateway's
            results.append(_kill(url, process, part, valkey))
    finally:
        ended.set()
        for sender in senders:
            sender.join(PATIENCE_SECONDS + 5)
    return events, results


def _kill(url: str, process: Process, part: Part, valkey: Valkey | None) -> Kill:
    Console(stderr=True).print(f"kill -9 {part} ...", highlight=False)
    pages: Counter[str] = Counter()
    connections = JsonConnections(url)
    _look(connections, pages, BEFORE_SECONDS)
    pages.clear()
    victim = valkey.pid if part == "store" and valkey else _process_of(process, part).pid
    struck = time.monotonic()
    psutil.Process(victim).kill()
    if part == "store" and valkey is not None:
        _look(connections, pages, 2.0)  # whoever runs it starts it again after a while
        valkey.start()
    in_a_row, first_whole = 0, 0.0
    while time.monotonic() - struck < MOST_AWAY_SECONDS:
        if _page(connections, pages) == "whole":
            first_whole = first_whole or time.monotonic() - struck
            in_a_row += 1
            if in_a_row == WHOLE_PAGES:
                return Kill(part, round(first_whole, 2), dict(pages))
        else:
            in_a_row, first_whole = 0, 0.0
        time.sleep(1 / PAGES_PER_SECOND)
    return Kill(part, None, dict(pages))


def _look(connections: JsonConnections, pages: Counter[str], seconds: float) -> None:
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        _page(connections, pages)
        time.sleep(1 / PAGES_PER_SECOND)


def _page(connections: JsonConnections, pages: Counter[str]) -> str:
    kind = "whole"
    try:
        body = {"user_id": f"visitor-{random.randrange(USERS_PER_SENDER)}", "size": 10}
        answer = json.loads(connections.post("/v1/recommend", body, ANSWER_SECONDS).body)
        kind = "degraded" if answer.get("degraded") else "whole"
        kind = "failed" if not answer["items"] else kind
    except (ServerFault, InvalidRequest):
        kind = "failed"
    except RankError as error:
        kind = "refused" if re.match(r"\d+:", str(error)) else "unreachable"
    pages[kind] += 1
    return kind


def _process_of(process: Process, part: str) -> psutil.Process:
    for child in psutil.Process(process.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if child.name() == part or (part == "gateway" and "tritonrank_gateway" in child.cmdline()):
                return child
    raise SystemFaultError(f"no {part} is running\n{process.log_tail()}")


def _some_items(url: str) -> list[str]:
    answer = json.loads(JsonConnections(url).post("/v1/recommend", {"size": 50}, 30.0).body)
    return [item["item_id"] for item in answer["items"]]


def _show(results: Sequence[Kill]) -> None:
    kinds = ("whole", "degraded", "refused", "unreachable", "failed")
    table = Table("kill -9", "whole again after", *kinds, "", box=box.SIMPLE)
    for one in results:
        away = "never" if one.away_seconds is None else f"{one.away_seconds:.2f} s"
        counts = [str(one.pages.get(kind, 0)) for kind in kinds]
        table.add_row(one.part, away, *counts, "" if one.passed else "[red]FAILS[/]")
    Console().print(table)
