"""kill -9 of processes that take events and write the log: what was acknowledged is in the log, and once."""

import asyncio
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import httpx
import msgspec
import pytest
from event_writer import LEASE_SECONDS, batch
from gateways import running_gateway
from test_events_log import logged
from tritonrank_recommend.log.event_log import EventLog
from tritonrank_recommend.stores import open_store
from valkeys import valkey  # noqa: F401 - a fixture

WRITER = Path(__file__).with_name("event_writer.py")
KILLED = -9


class Writer:
    """One gateway by name, started again after each kill."""

    def __init__(self, store: str, log: Path, name: str) -> None:
        self._arguments, self._name = [store, str(log), name], name
        self.acknowledged = -1

    def start(self, point: str = "never") -> None:
        first = str(max(0, self.acknowledged))  # the client got no answer to the next one, or sends one twice
        command = [sys.executable, str(WRITER), *self._arguments, first, point]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def killed_after(self, seconds: float | None = None) -> None:
        """Wait until it kills itself, or kill it."""
        if seconds is not None:
            time.sleep(seconds)
            self._process.kill()
        told, _ = self._process.communicate(timeout=60)
        assert self._process.returncode == KILLED
        # The last line may be torn: an answer that did not get through.
        self.acknowledged = max([self.acknowledged, *(int(line) for line in told.split("\n")[:-1])])

    @property
    def ids(self) -> set[str]:
        """Of the events that were acknowledged."""
        return {event.event_id for number in range(self.acknowledged + 1) for event in batch(self._name, number)}


def rest_of(url: str, log: Path) -> None:
    """What waits gets into the log."""

    async def write() -> None:
        store = open_store(url)
        last = EventLog(log, store)
        while not last.state.writes_events or await store.outbox(await store.log_position(), 1):
            await last.step()
            await asyncio.sleep(0.1)
        await last.close()
        await store.close()

    asyncio.run(write())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite", "valkey"])
def test_no_acknowledged_event_is_lost_or_written_twice(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = f"sqlite:{tmp_path / 'store.db'}" if kind == "sqlite" else request.getfixturevalue("valkey").url
    log = tmp_path / "log"
    one, two = (Writer(url, log, name) for name in ("one", "two"))
    for point in ("before", "after"):
        one.start(point)
        one.killed_after()
        time.sleep(LEASE_SECONDS)
    one.start()
    two.start()  # both at once; one of them writes
    one.killed_after(2.5)
    two.killed_after(LEASE_SECONDS + 1)
    one.start()
    one.killed_after(1.5)
    rest_of(url, log)

    written = Counter(logged(log))
    assert len(one.ids) > 100
    assert len(two.ids) > 100
    assert (one.ids | two.ids) - set(written) == set()
    assert [event_id for event_id, times in written.items() if times > 1] == []


@pytest.mark.slow
def test_a_gateway_that_is_killed_keeps_what_it_acknowledged(tmp_path: Path) -> None:
    url, log = f"sqlite:{tmp_path / 'store.db'}", tmp_path / "log"
    acknowledged: set[str] = set()
    number = 0
    for life in range(3):
        flags = ("--store", url, "--events-log", str(log), "--no-access-log")
        with running_gateway("127.0.0.1:1", tmp_path / f"gateway{life}", *flags) as gateway:
            threading.Timer(2.0, gateway.process.kill).start()
            try:
                with httpx.Client(base_url=gateway.url, timeout=10) as http:
                    while True:
                        events = [msgspec.to_builtins(one) for one in batch("http", number)]
                        answer = http.post("/v1/events", json={"events": events})
                        assert answer.status_code == 200, answer.text
                        told = answer.json()
                        assert told["accepted"] + told["duplicates"] == len(events)
                        acknowledged |= {one["event_id"] for one in events}
                        number += 1
            except httpx.HTTPError:
                pass  # the batch without an answer is sent again in the next life
            assert gateway.process.wait(10) == KILLED
    rest_of(url, log)
    written = Counter(logged(log))
    assert len(acknowledged) > 100
    assert acknowledged - set(written) == set()
    assert max(written.values()) == 1
