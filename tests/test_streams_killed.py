"""Consumers and brokers that are killed: profiles are those of a batch, to the byte, whatever came twice or late."""

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from kafka_mock import mock_brokers
from stream_events import POISON, append_all, dump_of, rebuilt, sent_events
from tritonrank_recommend.streams.opening import open_stream
from valkeys import running

CONSUMER = Path(__file__).with_name("stream_consumer.py")


class Consumer:
    """A process; ``kill`` is kill -9."""

    def __init__(self, stream: str, store: str, folder: Path, hesitates: float = 0.0) -> None:
        self.letters = folder / "dead-letters.jsonl"
        command = [sys.executable, str(CONSUMER), stream, store, str(self.letters), str(hesitates)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    def wait_for(self, line: str) -> None:
        assert self._process.stdout is not None
        while (told := self._process.stdout.readline()) != f"{line}\n":
            assert told, "the consumer ended"

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@contextmanager
def consuming(stream: str, store: str, folder: Path, hesitates: float = 0.0) -> Iterator[Consumer]:
    consumer = Consumer(stream, store, folder, hesitates)
    try:
        yield consumer
    finally:
        consumer.kill()


def append(url: str, bodies: list[bytes]) -> None:
    async def work() -> None:
        stream = open_stream(url)
        assert stream is not None
        await append_all(stream, bodies)
        await stream.close()

    asyncio.run(work())


def wait_until_nothing_waits(url: str, seconds: float = 40.0) -> None:
    async def work() -> None:
        stream = open_stream(url)
        assert stream is not None
        end = time.monotonic() + seconds
        while (lag := await stream.lag("profiles")).messages:
            assert time.monotonic() < end, lag
            await asyncio.sleep(0.1)
        await stream.close()

    asyncio.run(work())


def letters_of(file: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line]


@pytest.mark.parametrize("kind", ["local", "valkey"])
def test_what_a_killed_consumer_had_is_claimed_and_counts_once(kind: str, tmp_path: Path) -> None:
    with running(tmp_path) as server:
        store = server.url if kind == "valkey" else f"sqlite:{tmp_path / 'store.db'}"
        stream = server.url if kind == "valkey" else f"local:{tmp_path / 'stream.db'}"
        bodies = sent_events(1, 400)
        append(stream, [*bodies[:100], *POISON, *bodies[100:200]])
        with consuming(stream, store, tmp_path, hesitates=60.0) as killed:
            killed.wait_for("applied")  # in the store, not acknowledged
            killed.kill()
        with consuming(stream, store, tmp_path) as one, consuming(stream, store, tmp_path):
            append(stream, bodies[200:])
            time.sleep(0.3)
            one.kill()  # in the midst of work, or not
            wait_until_nothing_waits(stream)
        assert dump_of(store) == rebuilt(stream, tmp_path, seed=1) == rebuilt(stream, tmp_path, seed=2)
        assert len(dump_of(store).splitlines()) == 12 + 9
        letters = letters_of(tmp_path / "dead-letters.jsonl")
        assert {letter["body"] for letter in letters} == {body.decode("utf-8", "backslashreplace") for body in POISON}


def test_a_broker_that_is_killed_comes_back_with_everything(tmp_path: Path) -> None:
    bodies = sent_events(2, 900)
    with running(tmp_path, loses_nothing=True) as server:
        sender = threading.Thread(target=append, args=(server.url, bodies))
        with consuming(server.url, server.url, tmp_path), consuming(server.url, server.url, tmp_path) as other:
            sender.start()
            for _ in range(2):
                time.sleep(0.4)
                server.kill()
                time.sleep(0.2)
                server.start()
            other.kill()
            sender.join(60)
            assert not sender.is_alive()
            wait_until_nothing_waits(server.url)
        live = dump_of(server.url)
        assert live == rebuilt(server.url, tmp_path)
        users = [json.loads(line) for line in live.splitlines() if b'"user"' in line]
        assert sum(sum(user["counters"].values()) for user in users) == 900, "each event once"


def test_the_store_is_away_for_a_while_and_the_stream_keeps_everything(tmp_path: Path) -> None:
    """Streams need not lie in the store's server: here the store alone is killed."""
    stream, bodies = f"local:{tmp_path / 'stream.db'}", sent_events(3, 300)
    with running(tmp_path, loses_nothing=True) as server, consuming(stream, server.url, tmp_path):
        append(stream, bodies[:100])
        wait_until_nothing_waits(stream)
        server.kill()
        append(stream, bodies[100:])
        time.sleep(1.5)
        server.start()
        wait_until_nothing_waits(stream)
        assert dump_of(server.url) == rebuilt(stream, tmp_path)
    assert not (tmp_path / "dead-letters.jsonl").exists(), "an outage makes no dead letters"


@pytest.mark.slow
def test_kafka_gives_the_same_profiles_with_a_consumer_killed(tmp_path: Path) -> None:
    """On librdkafka's mock cluster."""
    store, bodies = f"sqlite:{tmp_path / 'store.db'}", sent_events(4, 400)
    with mock_brokers() as hosts:
        stream = f"kafka://{hosts}/events"
        append(stream, [*bodies[:200], *POISON])
        with consuming(stream, store, tmp_path, hesitates=60.0) as killed:
            killed.wait_for("applied")
            killed.kill()
        with consuming(stream, store, tmp_path):
            append(stream, bodies[200:])
            wait_until_nothing_waits(stream, 60)
        assert dump_of(store) == rebuilt(stream, tmp_path)
        assert len(letters_of(tmp_path / "dead-letters.jsonl")) >= len(POISON)
