"""Every attack by its name: what is done to the service, for how long, and what callers may see of it."""

import random
import resource
import sqlite3
import time
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial

import psutil

from loadtests.chaos.ledger import Became
from loadtests.chaos.proxy import Network
from loadtests.chaos.system import Link, System
from loadtests.processes import SystemFaultError

PULSE_SECONDS = (0.04, 0.01)
"""Of a part that is slow: stopped, and running."""
CLOCK_STEPS_SECONDS = (3_600.0, -7_200.0, 40_000.0)
"""One after the other, in the clock of those who send events."""
UNSEEN = frozenset[Became]()
AWAY = frozenset[Became]({"unreachable", "lost"})
"""Who asks a gateway that is gone sees that; the others are told."""
GARBLED = frozenset[Became]({"wrong", "failed"})
"""A bit that turns over in a text or a score is noticed by nobody: TCP's own checksum lies below. For TLS to find."""
NETWORKS: tuple[Network, ...] = ("slow", "lossy", "silent", "cut", "forgotten")


@dataclass
class Clock:
    """Of those who send events; a step makes it go wrong."""

    offset_seconds: float = 0.0

    def __call__(self) -> float:
        return time.time() + self.offset_seconds


@dataclass(frozen=True)
class Attack:
    """What is done.

    Attributes:
        strike: does it, for so many seconds, and takes back what does not end by itself.
        allowed: what may become of requests, beyond answers and refusals.
    """

    strike: Callable[[System, Clock, float], None]
    allowed: frozenset[Became] = UNSEEN


def attacks_of(system: System) -> dict[str, Attack]:
    """All that the system can be put to."""
    found: dict[str, Attack] = {}
    for part in system.parts():
        allowed = AWAY if part == "gateway" else UNSEEN
        found[f"kill -9 {part}"] = Attack(partial(_kill, part), allowed)
        found[f"SIGSTOP {part}"] = Attack(partial(_stop, part), allowed)
        found[f"slow {part}"] = Attack(partial(_slow_down, part), allowed)
    for link in system.links:
        for network in NETWORKS:
            allowed = AWAY if link == "callers" else UNSEEN
            found[f"network to {link} {network}"] = Attack(partial(_spoil, link, network), allowed)
    found["network to ranker corrupt"] = Attack(partial(_spoil, "ranker", "corrupt"), GARBLED)
    if system.valkey is None:
        found["store locked"] = Attack(_lock)
    found["disk full"] = Attack(_fill_disk)
    found["clock of callers steps"] = Attack(_step_clock)
    return found


def chosen(all_of_them: Mapping[str, Attack], only: list[str]) -> dict[str, Attack]:
    """Those whose name holds one of these texts; all without one.

    Raises:
        SystemFaultError: a text fits none.
    """
    for text in only:
        if not any(text in name for name in all_of_them):
            raise SystemFaultError(f"--only {text}: no such attack; there are {', '.join(all_of_them)}")
    return {name: one for name, one in all_of_them.items() if not only or any(text in name for text in only)}


def _kill(part: str, system: System, clock: Clock, seconds: float) -> None:
    for process in system.processes(part):
        process.kill()
    if part == "store" and system.valkey is not None:
        time.sleep(seconds)
        system.valkey.start()


def _stop(part: str, system: System, clock: Clock, seconds: float) -> None:
    stopped = system.processes(part)
    for process in stopped:
        process.suspend()
    time.sleep(seconds)
    _go_on(stopped)


def _slow_down(part: str, system: System, clock: Clock, seconds: float) -> None:
    ends, slowed = time.monotonic() + seconds, system.processes(part)
    stop_seconds, run_seconds = PULSE_SECONDS
    try:
        while time.monotonic() < ends:
            for process in slowed:
                process.suspend()
            time.sleep(stop_seconds)
            for process in slowed:
                process.resume()
            time.sleep(run_seconds)
    except psutil.NoSuchProcess:  # its supervisor found it too slow
        time.sleep(max(0.0, ends - time.monotonic()))
    finally:
        _go_on(slowed)


def _go_on(processes: list[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.resume()


def _spoil(link: Link, network: Network, system: System, clock: Clock, seconds: float) -> None:
    system.links[link].become(network)
    time.sleep(seconds)
    system.links[link].become("good")


def _lock(system: System, clock: Clock, seconds: float) -> None:
    """Another process that writes and does not come to an end."""
    path = system.store_url.removeprefix("sqlite:")
    with closing(sqlite3.connect(path, isolation_level=None, timeout=seconds)) as other:
        other.execute("BEGIN IMMEDIATE")
        time.sleep(seconds)
        other.execute("ROLLBACK")


def _fill_disk(system: System, clock: Clock, seconds: float) -> None:
    """No file of the gateway may grow, as on a full disk: its store's, its log's, and those of the training log."""
    (process,) = system.processes("gateway")
    usual = process.rlimit(resource.RLIMIT_FSIZE)
    process.rlimit(resource.RLIMIT_FSIZE, (0, usual[1]))
    time.sleep(seconds)
    with suppress(psutil.NoSuchProcess):  # it ended of that, and its ledger says so
        process.rlimit(resource.RLIMIT_FSIZE, usual)


def _step_clock(system: System, clock: Clock, seconds: float) -> None:
    for step in CLOCK_STEPS_SECONDS:
        clock.offset_seconds = step + random.random()
        time.sleep(seconds / len(CLOCK_STEPS_SECONDS))
    clock.offset_seconds = 0.0
