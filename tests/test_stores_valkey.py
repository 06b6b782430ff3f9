"""Redis and Valkey as servers: killed, stopped, behind a password, not append only; who is erased leaves no bytes."""

import asyncio
import logging
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import uvloop
from blocked import without
from misbehaving_server import HangingUp
from store_counts import check_after_a_kill, kill_after, start_writer
from store_writer import BATCH
from tritonrank_recommend.events import Event
from tritonrank_recommend.stores import GuardedStore, open_store
from tritonrank_recommend.stores.guard import FAILURES
from tritonrank_recommend.stores.interface import Added, StoreError, StoreRefusedError
from tritonrank_recommend.stores.redis_connection import RETRIES, RedisConnection
from valkeys import Valkey, running, valkey

__all__ = ["valkey"]
EVENT = Event(event_id="e1", user_id="ann", type="click", timestamp=1.0, item_id="i1")


@pytest.mark.parametrize("batches", [1, 60])
def test_a_killed_gateway_loses_nothing_that_it_acknowledged(valkey: Valkey, batches: int) -> None:
    with valkey.client() as client:
        client.flushall()
    check_after_a_kill(valkey.url, kill_after(start_writer(valkey.url), batches))


def test_the_first_event_that_comes_counts_what_a_killed_gateway_did_not(valkey: Valkey) -> None:
    with valkey.client() as client:
        client.flushall()
    last = kill_after(start_writer(valkey.url), 40)

    async def count() -> list[dict[str, int]]:
        store = open_store(valkey.url)
        await store.add_events([EVENT])  # of another user, and so of another part
        counters = await store.item_counters([f"i{place}" for place in range(BATCH)])
        await store.close()
        return counters

    own = {1: 1}  # the event's
    for place, counted in enumerate(asyncio.run(count())):
        batches = counted["click"] - own.get(place, 0)
        assert batches in {last + 1, last + 2}  # the one after the last may have been taken


@pytest.mark.parametrize("server", ["valkey", pytest.param("valkey cluster", marks=pytest.mark.slow)])
def test_a_killed_server_comes_back_with_everything_that_was_acknowledged(tmp_path: Path, server: str) -> None:
    with running(tmp_path, server, loses_nothing=True) as killed:
        writer = start_writer(killed.url)
        assert writer.stdout is not None
        for _ in range(2):
            for _ in range(40):
                assert writer.stdout.readline(), "the writer ended"
            killed.kill()
            time.sleep(0.3)
            killed.start()
        check_after_a_kill(killed.url, kill_after(writer, 100, first=80))  # it went on by itself


def test_a_server_that_hangs_costs_little_and_comes_back(tmp_path: Path) -> None:
    async def run(server: Valkey) -> None:
        store = GuardedStore(open_store(server.url), rest_seconds=1.0)
        assert await store.add_events([EVENT]) == Added(1, 0)
        assert server.process is not None
        server.process.send_signal(signal.SIGSTOP)
        for _ in range(FAILURES):
            with pytest.raises(StoreError, match="100 ms"):
                await store.profile("ann")
        started = time.perf_counter()
        for _ in range(100):
            with pytest.raises(StoreError, match="asked again"):
                await store.profile("ann")
        assert time.perf_counter() - started < 0.9
        server.process.send_signal(signal.SIGCONT)
        deadline, counters = time.monotonic() + 30, {}
        while not counters and time.monotonic() < deadline:
            await asyncio.sleep(0.1)
            with suppress(StoreError):
                counters = (await store.profile("ann")).counters
        assert counters == {"click": 1}
        await store.close()

    with running(tmp_path) as server:
        asyncio.run(run(server))


@pytest.mark.parametrize("scheme", ["redis", "redis+cluster"])
def test_a_server_that_hangs_up_is_told_as_one_that_is_not_there(scheme: str) -> None:
    """uvloop, which gateways run on, has an error of its own for that; it comes in one call of a hundred."""

    async def ask(connection: RedisConnection) -> None:
        with pytest.raises(StoreError):
            await connection.ask("GET", "key")

    async def run() -> None:
        connection = RedisConnection(f"{scheme}://{server.address}")
        for _ in range(10):
            await asyncio.gather(*(ask(connection) for _ in range(40 if scheme == "redis" else 2)))
        await connection.close()

    server = HangingUp()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run())
        assert server.accepted
    finally:
        server.close()


def test_calls_that_come_together_check_the_server_once(valkey: Valkey) -> None:
    async def run() -> None:
        store = open_store(valkey.url)
        try:
            assert all(await asyncio.gather(*(store.ready() for _ in range(50))))
        finally:
            await store.close()

    with valkey.client() as client:
        client.config_resetstat()
        asyncio.run(run())
        asked = client.info("commandstats")["cmdstat_info"]["calls"]
        assert 1 <= asked <= 1 + RETRIES, "a broken connection asks again, nobody else"


def test_a_server_that_is_not_there_is_named_without_the_password(tmp_path: Path) -> None:
    async def run() -> None:
        store = open_store(f"unix://:secret@{tmp_path / 'nobody'}")
        with pytest.raises(StoreError, match="nobody") as caught:
            await store.profile("ann")
        assert "secret" not in str(caught.value)
        await store.close()

    asyncio.run(run())


def test_a_password_comes_from_the_environment(valkey: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        store = open_store(valkey.url)
        try:
            await store.ready()
        finally:
            await store.close()

    with valkey.client() as client:
        client.config_set("requirepass", "secret")
        try:
            with pytest.raises(StoreRefusedError, match="TRITONRANK_STORE_PASSWORD"):
                asyncio.run(run())
            monkeypatch.setenv("TRITONRANK_STORE_PASSWORD", "secret")
            asyncio.run(run())
        finally:
            client.config_set("requirepass", "")


@pytest.mark.parametrize("append_only", [False, True])
def test_a_server_that_would_lose_events_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, append_only: bool
) -> None:
    async def run(url: str) -> None:
        store = open_store(url)
        await store.add_events([EVENT])
        await store.close()

    with running(tmp_path, append_only=append_only) as server, caplog.at_level(logging.WARNING):
        asyncio.run(run(server.url))
    assert ("appendonly yes" in caplog.text) is not append_only


def test_what_is_kept_of_a_user_ends(valkey: Valkey) -> None:
    async def run() -> None:
        store = open_store(f"{valkey.url}?profile_days=2")
        await store.add_events([EVENT])
        await store.put("page", b"1", 30, user_id="ann")
        await store.close()

    with valkey.client() as client:
        client.flushall()
        asyncio.run(run())
        of_user = {key.decode(): client.ttl(key) for key in client.keys("tr:{u*:ann")}
        assert len(of_user) == 3
        assert {0 < seconds <= 14 * 86_400 for seconds in of_user.values()} == {True}
        assert 86_400 < next(seconds for key, seconds in of_user.items() if ":p:" in key) <= 2 * 86_400
        assert 0 < client.ttl("tr:k:page") <= 30


def test_an_erased_user_leaves_no_bytes_in_the_append_only_file(tmp_path: Path) -> None:
    event = Event(event_id="e", user_id="ann", type="search", timestamp=1.0, query="words of nobody else")
    other = Event(event_id="e", user_id="bob", type="search", timestamp=1.0, query="words that stay")

    async def run(url: str) -> None:
        store = open_store(url)
        await store.add_events([event, other])
        await store.put("page", b"words of nobody else", 600, user_id="ann")
        assert b"words of nobody else" in held()
        await store.erase_user("ann")
        end = time.monotonic() + 20
        while b"words of nobody else" in held() and time.monotonic() < end:
            await asyncio.sleep(0.05)  # the server writes its file anew beside its work
        assert b"words of nobody else" not in held()
        assert b"words that stay" in held()
        await store.close()

    def held() -> bytes:
        found = b""
        for file in (tmp_path / "appendonlydir").iterdir():
            with suppress(FileNotFoundError):  # the server renames the new ones
                found += file.read_bytes()
        return found

    with running(tmp_path) as server:
        asyncio.run(run(server.url))


def test_without_the_package_the_message_says_how_to_install_it(tmp_path: Path) -> None:
    code = "from tritonrank_recommend.stores import open_store; open_store('redis://127.0.0.1/0')"
    environment = without(tmp_path / "blocked", {"redis"})
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert "StoreRefusedError" in result.stderr
    assert "pip install 'tritonrank[redis]'" in result.stderr
