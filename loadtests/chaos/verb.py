"""The verb ``chaos``: attack each part of the whole service in turn under an open-loop load, and keep the ledger.

Every request that was due is answered, answered without a part (degraded), refused in words, or it counts: nothing may
fail or rank wrongly, nothing that was taken may get no answer but where the gateway itself is gone, and whole answers
have to come back by themselves. Every event that was acknowledged has to be stored, once.
"""

import asyncio
import json
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Column, Table

from loadtests.chaos.attacks import Attack, Clock, attacks_of, chosen
from loadtests.chaos.ledger import KINDS, Answer, Became, Traffic
from loadtests.chaos.system import StoreKind, System, wait_until
from loadtests.console import fail
from loadtests.event_ledger import EVENT_SENDERS, PATIENCE_SECONDS, USERS_PER_SENDER, Events, count, send_events
from loadtests.json_connections import JsonConnections
from loadtests.machine import describe_machine
from loadtests.processes import LOOPBACK, SystemFaultError
from loadtests.runs import versions

BEFORE_SECONDS = 0.5
WHOLE_ANSWERS = 10
"""In a row, and the service is as it was."""
BACK_SECONDS = 20.0
"""It has to be by then, counted from the attack's end."""
USERS = [f"sender-0-{number}" for number in range(USERS_PER_SENDER)]


@dataclass
class Outcome:
    """The ledger of one attack.

    Attributes:
        attack: its name.
        counts: requests by what became of them.
        back_seconds: from the attack's end until answers were whole again; None: they were not.
        slowest_refusal_seconds: from when the request was due.
        server_restarts, gateway_starts: that it took.
        not_allowed: requests to which happened what the attack does not excuse, the first ones.
    """

    attack: str
    counts: dict[str, int]
    back_seconds: float | None
    slowest_refusal_seconds: float
    server_restarts: int
    gateway_starts: int
    not_allowed: list[str]

    @property
    def passed(self) -> bool:
        return self.back_seconds is not None and not self.not_allowed and self.counts["answered"] > 0


@dataclass
class Ledger:
    """Of all attacks, and of the events that were sent all the time."""

    outcomes: list[Outcome]
    acknowledged: int
    given_up: int
    lost: list[str]
    twice: list[str]

    @property
    def passed(self) -> bool:
        is_kept = self.acknowledged > 0 and not (self.given_up or self.lost or self.twice)
        return is_kept and bool(self.outcomes) and all(one.passed for one in self.outcomes)


def chaos(
    artifacts: Annotated[Path, typer.Argument(metavar="ARTIFACTS", help="artifacts/<recipe> with a catalogue")],
    store: Annotated[StoreKind, typer.Option(help="Behind the gateway; Valkey is started here")] = "sqlite",
    seconds: Annotated[float, typer.Option(min=0.5, max=600, help="That an attack lasts")] = 3.0,
    rate: Annotated[float, typer.Option(min=1, max=60, help="Requests per second")] = 20.0,
    only: Annotated[list[str] | None, typer.Option(help="Part of an attack's name; may be repeated")] = None,
    out: Annotated[Path | None, typer.Option(help="Where the ledger goes as JSON; default: only shown")] = None,
) -> None:
    """Kill, stop, slow down and corrupt each part of the service and its networks in turn under load.

    Exits with 1 when a request failed, ranked wrongly or got no answer without excuse, when service did not come back,
    or when an acknowledged event is lost or stored twice.
    """
    for name in ("repository", "catalogue"):
        if not (artifacts / name).is_dir():
            fail(f"{artifacts}: no {name}. A recipe with a retrieval section makes one: tritonrank build RECIPE")
    with tempfile.TemporaryDirectory(prefix="chaos-") as scratch:
        try:
            with System(artifacts, Path(scratch) / "system", store) as system:
                ledger = attack_each(system, only or [], seconds=seconds, rate=rate)
        except SystemFaultError as error:
            fail(str(error))
    show(ledger)
    found = {
        "what": f"python -m loadtests chaos {artifacts.name} --store {store} --seconds {seconds:g} --rate {rate:g}",
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": describe_machine().model_dump(),
        "versions": versions(),
        "passed": ledger.passed,
        **asdict(ledger),
    }
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    told: dict[str, Any] = {"passed": ledger.passed, "attacks": len(ledger.outcomes)}
    told |= {"acknowledged": ledger.acknowledged, "lost": len(ledger.lost), "twice": len(ledger.twice)}
    typer.echo(json.dumps(told | {"out": str(out) if out else None}))
    sys.exit(0 if ledger.passed else 1)


def attack_each(system: System, only: list[str], *, seconds: float, rate: float) -> Ledger:
    """Attack a system that runs, one attack after the other.

    Args:
        system: is as it was at the end, if it passed.
        only: parts of names of attacks; empty: all.
        seconds: that an attack lasts.
        rate: requests per second.

    Raises:
        SystemFaultError: no such attack, or the system is not whole before the first one.
    """
    clock = Clock()
    attacks = chosen(attacks_of(system), only)
    with _events(system, clock) as events:
        outcomes: list[Outcome] = []
        for name, one in attacks.items():
            outcomes.append(_attack(system, clock, name, one, seconds, rate))
            if outcomes[-1].back_seconds is None:  # nobody knows what the next attack would be of
                break
    lost, twice = asyncio.run(count(events, system.store_url, system.events_log))
    return Ledger(outcomes, events.count, events.given_up, lost, twice + events.counted_twice)


def show(ledger: Ledger) -> None:
    """For people."""
    table = Table(Column("attack", no_wrap=True), *KINDS, "slowest no", "back", "restarts", "", box=box.SIMPLE)
    for one in ledger.outcomes:
        back = "never" if one.back_seconds is None else f"{one.back_seconds:.1f} s"
        numbers = [str(one.counts[kind]) for kind in KINDS]
        restarts = f"{one.server_restarts} + {one.gateway_starts}"
        table.add_row(
            one.attack,
            *numbers,
            f"{one.slowest_refusal_seconds:.2f} s",
            back,
            restarts,
            "" if one.passed else "[red]FAILS[/]",
        )
    console = Console(width=max(Console().width, 130))
    console.print(table)
    for one in ledger.outcomes:
        for told in one.not_allowed:
            console.print(f"{one.attack}: {told}", markup=False, highlight=False)
    kept = f"{ledger.acknowledged} events acknowledged, {len(ledger.lost)} lost, {len(ledger.twice)} twice"
    console.print(f"{kept}, {ledger.given_up} senders gave up", highlight=False)


@contextmanager
def _events(system: System, clock: Clock) -> Iterator[Events]:
    """Events are sent inside the block, and each is acknowledged at its end."""
    url = f"http://{LOOPBACK}:{system.port}"
    answer = json.loads(JsonConnections(url).post("/v1/recommend", {"size": 50}, 30.0).body)
    items = [item["item_id"] for item in answer["items"]]
    events, ended = Events(), threading.Event()
    senders = [
        threading.Thread(target=send_events, args=(url, place, items, events, ended, clock))
        for place in range(EVENT_SENDERS)
    ]
    for sender in senders:
        sender.start()
    try:
        yield events
    finally:
        ended.set()
        for sender in senders:
            sender.join(PATIENCE_SECONDS + 5)


def _attack(system: System, clock: Clock, name: str, attack: Attack, seconds: float, rate: float) -> Outcome:
    Console(stderr=True).print(f"{name} ...", highlight=False)
    restarts, starts = system.restarts(), system.gateway_starts
    with Traffic(system.port, system.golden, rate, USERS) as traffic:
        if not wait_until(lambda: traffic.whole_in_a_row() >= WHOLE_ANSWERS, BACK_SECONDS):
            raise SystemFaultError(f"{name}: the service is not whole before it: {_first(traffic.answers)}")
        time.sleep(BEFORE_SECONDS)
        already = len(traffic.answers)
        attack.strike(system, clock, seconds)
        ended = time.monotonic()
        is_back = wait_until(lambda: _whole_since(traffic.answers, ended) >= WHOLE_ANSWERS, BACK_SECONDS)
        back = _back_seconds(traffic.answers, ended) if is_back else None
    since = sorted(traffic.answers[already:])
    not_allowed = [one for one in since if one.became not in _excused(attack)]
    refusals = [one.seconds for one in since if one.became == "refused"]
    return Outcome(
        name,
        {kind: sum(one.became == kind for one in since) for kind in KINDS},
        None if back is None else round(back, 2),
        round(max(refusals, default=0.0), 2),
        max(0, system.restarts() - restarts),
        system.gateway_starts - starts,
        [f"{one.became} after {one.seconds:.2f} s: {one.told}" for one in not_allowed[:5]],
    )


def _excused(attack: Attack) -> frozenset[Became]:
    return frozenset[Became]({"answered", "degraded", "refused"}) | attack.allowed


def _whole_since(answers: Sequence[Answer], moment: float) -> int:
    """How many of the newest requests in a row, due since then, were answered whole."""
    ordered = [one for one in sorted(answers) if one.due >= moment]
    return next((n for n, one in enumerate(reversed(ordered)) if one.became != "answered"), len(ordered))


def _back_seconds(answers: Sequence[Answer], ended: float) -> float:
    """Until the last request that was not answered whole was followed by one that was."""
    ordered = [one for one in sorted(answers) if one.due >= ended]
    bad = [place for place, one in enumerate(ordered) if one.became != "answered"]
    first_good = bad[-1] + 1 if bad else 0
    return ordered[first_good].due - ended if first_good < len(ordered) else 0.0


def _first(answers: Sequence[Answer]) -> str:
    return next((f"{one.became} {one.told}" for one in answers if one.became != "answered"), "no answer came")
