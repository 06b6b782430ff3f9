"""Addresses that are looked up again and again: replicas join and leave while requests run, and none is lost."""

import asyncio
import logging
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from gateway_stand_ins import StandIn
from tritonrank_client import Unavailable
from tritonrank_gateway import discovery
from tritonrank_gateway.compose import compose
from tritonrank_gateway.discovery import Addresses
from tritonrank_gateway.golden import GoldenRequest
from tritonrank_gateway.metrics import Metrics
from tritonrank_gateway.ranking import RankRequest
from tritonrank_gateway.replicas import PoolSettings, ReplicaPool
from tritonrank_gateway.settings import GatewaySettings, read_settings

REQUEST = RankRequest(query="boots", items=["hiking boots", "lamp"], deadline_s=5.0)
QUICK = PoolSettings(probe_seconds=0.02, probe_timeout_seconds=0.2, look_seconds=0.02)
GOLDEN = GoldenRequest()


class Following:
    """A pool over stand-ins whose addresses stand in a file."""

    def __init__(self, folder: Path, *names: str) -> None:
        self.file = folder / "tritons"
        self.backends: dict[str, StandIn] = {}
        self.prepare: Callable[[StandIn], None] = lambda backend: None
        self.write(*names)
        self.pool = ReplicaPool({}, GOLDEN, QUICK, following=(Addresses([f"file:{self.file}"]), self.make))

    def write(self, *names: str) -> None:
        draft = self.file.with_suffix(".new")
        draft.write_text("# where they are\n" + "".join(f"{name}:8001\n" for name in names))
        draft.replace(self.file)

    def make(self, address: str) -> StandIn:
        backend = self.backends[address.removesuffix(":8001")] = StandIn(address)
        self.prepare(backend)
        return backend

    def ranked(self, name: str) -> int:
        """Requests, beside golden ones."""
        return sum(request.query != GOLDEN.query for request in self.backends[name].asked)

    @property
    def names(self) -> list[str]:
        return [replica.name for replica in self.pool.replicas]


async def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


async def test_replicas_join_and_leave_under_load_and_no_request_is_lost(tmp_path: Path) -> None:
    following = Following(tmp_path, "a", "b")
    following.prepare = lambda backend: setattr(backend, "delay", 0.01)
    answered, is_over = 0, False

    async def call(number: int) -> None:
        nonlocal answered
        while not is_over:
            await following.pool.rank(replace(REQUEST, user=f"u{number}-{answered}"))
            answered += 1

    calls = [asyncio.create_task(call(number)) for number in range(8)]
    await until(lambda: answered > 50)
    gone = following.backends["a"]
    for names in (("a", "b", "c"), ("b", "c"), ("c", "d", "e"), ("d",)):
        following.write(*names)
        await until(lambda names=names: following.names == [f"{name}:8001" for name in names])  # type: ignore[misc]
        await until(lambda names=names: all(following.ranked(name) for name in names))  # type: ignore[misc]
    is_over = True
    await asyncio.gather(*calls)
    assert answered == sum(following.ranked(name) for name in following.backends)
    await until(lambda: gone.is_closed)
    await following.pool.close()
    assert all(backend.is_closed for backend in following.backends.values())


async def test_one_that_leaves_answers_what_it_has_and_is_closed_then(tmp_path: Path) -> None:
    following = Following(tmp_path, "a")
    following.prepare = lambda backend: setattr(backend, "delay", 0.0)
    await following.pool.rank(REQUEST)
    leaving = following.backends["a"]
    leaving.delay = 2.0
    running = asyncio.create_task(following.pool.rank(REQUEST))
    await until(lambda: following.ranked("a") == 2)
    following.write("b")
    await until(lambda: following.names == ["b:8001"])
    await asyncio.sleep(QUICK.probe_timeout_seconds + 0.1)
    assert not leaving.is_closed
    assert (await running).artifact == leaving.artifact
    await until(lambda: leaving.is_closed)
    await following.pool.close()


async def test_one_that_joins_is_asked_after_its_golden_answer_only(tmp_path: Path) -> None:
    following = Following(tmp_path, "a")
    await following.pool.rank(REQUEST)
    following.prepare = lambda backend: setattr(backend, "failure", lambda: Unavailable("it loads", retryable=True))
    following.write("a", "b")
    await until(lambda: "b" in following.backends and following.backends["b"].asked)
    for user in range(50):
        await following.pool.rank(replace(REQUEST, user=f"u{user}"))
    assert not following.ranked("b")
    following.backends["b"].failure = None
    await until(lambda: all(replica.is_up for replica in following.pool.replicas))
    for user in range(50):
        await following.pool.rank(replace(REQUEST, user=f"u{user}"))
    assert following.ranked("b")
    await following.pool.close()


@pytest.mark.parametrize(
    "content",
    [None, "", "# nobody\n", "no address\n", "a:1\n" * 20_000],
    ids=["gone", "empty", "remark", "bad", "large"],
)
async def test_a_list_that_tells_nothing_takes_nobody_away(
    tmp_path: Path, content: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "tritons"
    file.write_text("b:2\na:1  # first\n\na:1\n")
    addresses = Addresses([f"file:{file}", "z:9"])
    assert await addresses.now() == ("a:1", "b:2", "z:9")
    if content is None:
        file.unlink()
    else:
        file.write_text(content)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert await addresses.now() == ("a:1", "b:2", "z:9")
    assert len(caplog.records) == 1  # once, not each second
    assert str(file) in caplog.text
    file.write_text("c:3\n")
    assert await addresses.now() == ("c:3", "z:9")


async def test_a_name_gives_all_its_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    known = ["10.0.0.2", "10.0.0.1"]

    async def resolve(host: str, port: str, **_: object) -> list[object]:
        assert (host, port) == ("triton.fleet.svc", "8001")
        if not known:
            raise socket.gaierror(socket.EAI_AGAIN, "temporary failure")
        v4 = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, int(port))) for address in known]
        return [*v4, (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("fd00::1", int(port), 0, 0))]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolve)
    addresses = Addresses(["dns:triton.fleet.svc:8001"])
    first = await addresses.now()
    assert first == ("10.0.0.1:8001", "10.0.0.2:8001", "[fd00::1]:8001")
    known.clear()
    assert await addresses.now() == first
    known.extend(f"10.0.1.{number}" for number in range(discovery.MOST_ADDRESSES + 1))
    assert await addresses.now() == first


async def test_a_real_name_is_resolved() -> None:
    assert "127.0.0.1:8001" in await Addresses(["dns:localhost:8001"]).now()


async def test_nobody_known_is_unavailable_and_not_ready(tmp_path: Path) -> None:
    pool = compose(GatewaySettings(triton=(f"file:{tmp_path / 'missing'}",)), Metrics())
    assert not await pool.ready()
    with pytest.raises(Unavailable, match="--triton"):
        await pool.rank(replace(REQUEST, deadline_s=0.3))
    await pool.close()


async def test_what_comes_before_the_first_replica_is_known_waits_for_it(tmp_path: Path) -> None:
    """A gateway that starts beside its Tritons: it has looked once and found none."""
    following = Following(tmp_path)
    following.pool = ReplicaPool({}, GOLDEN, following=(Addresses([f"file:{following.file}"]), following.make))
    assert not await following.pool.ready()
    began = time.monotonic()
    asked = [asyncio.create_task(following.pool.rank(REQUEST)), asyncio.create_task(following.pool.info())]
    await asyncio.sleep(0.05)
    following.write("a")
    ranking, info = await asyncio.gather(*asked)
    assert ranking.artifact == following.backends["a"].artifact  # type: ignore[union-attr]
    assert info.name == "a:8001"  # type: ignore[union-attr]
    assert time.monotonic() - began < PoolSettings().look_seconds  # found sooner than by the usual looks
    await following.pool.close()


async def test_metrics_follow_those_that_come_and_go(tmp_path: Path) -> None:
    metrics, file = Metrics(), tmp_path / "tritons"

    def shown() -> set[str]:
        lines = metrics.page().decode().splitlines()
        return {line.split('replica="')[1].split('"')[0] for line in lines if 'replica="' in line}

    file.write_text("127.0.0.1:1\n127.0.0.1:2\n")
    backend = compose(GatewaySettings(triton=(f"file:{file}",), probe_s=0.05), metrics)
    await backend.ready()
    assert shown() == {"127.0.0.1:1", "127.0.0.1:2"}
    assert metrics.replicas() == 2
    file.write_text("127.0.0.1:3\n")
    await until(lambda: shown() == {"127.0.0.1:3"})
    assert metrics.replicas() == 1
    await backend.close()


@pytest.mark.parametrize("entry", ["dns:nothing", "file:", "nothing"])
def test_an_entry_that_says_nothing_is_refused(entry: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read_settings(["--triton", entry], {})
    assert "--triton" in capsys.readouterr().err
