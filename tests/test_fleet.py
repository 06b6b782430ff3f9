"""A fleet on this machine: what it writes, decides and says; and, with real processes, that no request is lost."""

import asyncio
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from programs import require_program
from tritonrank.artifacts.workspace import Workspace
from tritonrank.errors import ArtifactError, ServerError
from tritonrank.serve.fleet.autoscale import Autoscaler, Bounds, wish_in
from tritonrank.serve.fleet.balancer import Balancer, Place
from tritonrank.serve.fleet.control import ask
from tritonrank.serve.fleet.fleet import Fleet
from tritonrank.serve.fleet.groups import Group
from tritonrank.serve.fleet.members import Spec
from tritonrank.serve.fleet.plan import Plan
from tritonrank.serve.fleet.state_folder import GATEWAYS, TRITON_ADMINS, TRITONS, StateFolder
from tritonrank.serve.ports import choose_ports
from tritonrank.serve.rollout.places import urls_of
from tritonrank.serve.server_processes import Part
from tritonrank.serve.versions.admin_client import TritonAdmin
from tritonrank.serve.versions.shapes import KEY_VARIABLE

from loadtests.fleet import LocalFleet, OpenLoop, under_load

PAGE = "# HELP ...\ntritonrank_adapt_wished_replicas {}\ntritonrank_adapt_utilisation {}\nother_wished_replicas 9\n"
RATE = 6.0
ITEMS = ["oak desk", "brass lamp", "garden chair", "steel shelf"]


def test_a_wish_is_read_where_one_is_known() -> None:
    assert wish_in(PAGE.format("3.0", "0.4")) == 3
    assert wish_in(PAGE.format("3.0", "0.0")) is None  # no speed is known: it repeats what it sees
    assert wish_in("") is None


def test_wishes_add_up_go_up_at_once_and_down_to_the_largest_of_a_while() -> None:
    scaler = Autoscaler(Bounds(2, 4), 10.0)
    assert scaler.look(0.0, [None, None], 3) == 3  # nobody knows: it stays
    assert scaler.look(1.0, [2.0, None], 3) == 4  # who does not know counts as the others do
    assert scaler.look(2.0, [1.0, 1.0], 4) == 4
    assert scaler.look(8.0, [1.0, 2.0], 4) == 4
    assert scaler.look(11.5, [1.0, 1.0], 4) == 3
    assert scaler.look(12.0, [9.0, 9.0], 3) == 4  # at most
    assert scaler.look(23.0, [1.0, 0.0], 4) == 2  # at least
    assert scaler.look(24.0, [], 2) == 2


@pytest.mark.parametrize("text", ["", "3", "4:2", "0:2", "a:b", "1:2:3"])
def test_bounds_that_make_no_sense(text: str) -> None:
    with pytest.raises(ValueError, match="MIN:MAX"):
        Bounds.read(text)


@pytest.mark.parametrize(
    "settings", [{"replicas": 0}, {"gateways": 100}, {"drain_seconds": 0.5}], ids=["none", "many", "short drain"]
)
def test_a_plan_that_cannot_be(settings: dict[str, float]) -> None:
    with pytest.raises(ServerError, match="--"):
        Plan("artifacts/demo", **settings)  # type: ignore[arg-type]


def test_nothing_to_serve_is_said_before_anything_starts(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path / "state")
    folder.open()
    try:
        with pytest.raises(ArtifactError, match="tritonrank"):
            Fleet(Plan(str(tmp_path)), folder, lambda line: None)
    finally:
        folder.close()


@pytest.fixture
def sleeper() -> Iterator["subprocess.Popen[bytes]"]:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield process
    process.kill()
    process.wait()


def test_a_folder_has_one_fleet_and_ends_what_a_killed_one_left(
    tmp_path: Path, sleeper: "subprocess.Popen[bytes]"
) -> None:
    folder = StateFolder(tmp_path / "state")
    assert folder.open() == []
    assert folder.path.stat().st_mode & 0o777 == 0o700
    with pytest.raises(ServerError, match="fleet status"):
        StateFolder(tmp_path / "state").open()
    part = Part.of("triton-1", sleeper.pid)
    assert part is not None
    stranger = Part("triton-2", sleeper.pid, part.started + 1)  # another process had that number
    folder.record([stranger])
    kept = (folder.path / "fleet.json").read_text()
    folder.close()
    (folder.path / "fleet.json").write_text(kept)
    assert folder.open() == []
    assert sleeper.poll() is None
    folder.record([part, stranger])
    kept = (folder.path / "fleet.json").read_text()
    folder.close()
    (folder.path / "fleet.json").write_text(kept)
    assert folder.open() == ["triton-1"]
    sleeper.wait(10)
    folder.close()


def test_a_path_too_long_for_a_socket_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="--state"):
        StateFolder(tmp_path / ("long" * 30)).open()


def test_who_asks_where_no_fleet_is_hears_how_to_start_one(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="tritonrank fleet up"):
        ask(tmp_path / "control.sock", {"do": "status"})


def test_a_group_counts_who_is_there() -> None:
    spec = Spec("triton", Path("repository"), (), 2)
    group = Group(spec, wanted=0)
    assert group.is_settled
    group.failures.append((1, "old"))
    assert group.failed(spec) == []
    group.failures.append((2, "new"))
    assert group.failed(spec) == ["new"]


async def _page(path: Path, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One answer, whatever is asked: 200 and its own name."""
    with_body = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
    length = next((int(line.split(b":")[1]) for line in with_body if line.lower().startswith(b"content-length")), 0)
    await reader.readexactly(length)
    body = str(path).encode()
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
    await writer.drain()
    writer.close()


async def test_haproxy_learns_who_is_in_rotation_while_it_runs(tmp_path: Path) -> None:
    require_program("haproxy", "haproxy")
    ports = choose_ports({"http": 0, "grpc": 0, "one": 0, "two": 0})
    balancer = Balancer(tmp_path, ports["http"], ports["grpc"])

    async def named(name: str, port: int) -> asyncio.Server:
        return await asyncio.start_server(lambda *streams: _page(Path(name), *streams), "127.0.0.1", port)

    async def ask_some(count: int = 12) -> set[str]:
        answers = set()
        for _ in range(count):
            reader, writer = await asyncio.open_connection("127.0.0.1", ports["http"])
            writer.write(b"POST /v1/rank HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
            answers.add((await reader.read()).rpartition(b"\r\n\r\n")[2].decode())
            writer.close()
        return answers

    places = {name: Place("gateway", name, f"127.0.0.1:{ports[name]}", ports[name]) for name in ("one", "two")}
    servers = {name: await named(name, ports[name]) for name in places}
    balancer.start()
    try:
        await balancer.wait()
        await balancer.show(dict.fromkeys(places.values(), "ready"))
        assert await ask_some() == {"one", "two"}
        await balancer.show({places["one"]: "drain", places["two"]: "ready"})
        assert await ask_some() == {"two"}
        await balancer.show({places["two"]: "ready"})
        await balancer.show({places["one"]: "ready", places["two"]: "ready"})
        assert await ask_some() == {"one", "two"}
        servers["one"].close()  # gone without a word: who was to get a request is not asked, another one answers
        assert await ask_some() == {"two"}
        await balancer.stop()
        assert balancer.ended()
        balancer.start()  # from its file alone
        await balancer.wait()
        assert await ask_some() == {"two"}
    finally:
        await balancer.stop()
        for server in servers.values():
            server.close()


async def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    require_program("haproxy", "haproxy")
    taken = await asyncio.start_server(lambda *streams: None, "127.0.0.1", 0)
    port = taken.sockets[0].getsockname()[1]
    balancer = Balancer(tmp_path, port, choose_ports({"grpc": 0})["grpc"])
    balancer.start()
    with pytest.raises(ServerError, match="--port"):
        await balancer.wait()
    taken.close()


def processes_of(state: Path) -> list[str]:
    """Command lines that name a fleet's folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            words = entry.read_bytes().decode(errors="replace")
            found += [words] if str(state) in words else []
    return found


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.patient
async def test_no_request_is_lost_whatever_happens_to_members(workspace: Workspace, tmp_path: Path) -> None:
    """A rolling update, a replica killed, one drained, a gateway killed, more and fewer of them: under load."""
    require_program("haproxy", "haproxy")
    (tmp_path / "a").mkdir()
    repository = shutil.copytree(workspace.repository, tmp_path / "a" / "repository")
    bodies = [{"query": f"desk {number}", "items": ITEMS} for number in range(20)]
    local = LocalFleet(repository, tmp_path, "--replicas", "2", "--gateways", "2", "--drain-s", "1.5")
    try:
        loop = OpenLoop(await local.ready(), bodies, RATE, deadline_seconds=20.0)

        async def first(do: str, kind: str) -> None:
            await local.do(do, (await local.members(kind))[0])

        await under_load(
            loop,
            [
                ("kill triton", lambda: first("kill", "triton")),
                ("scale 3", lambda: asyncio.gather(local.do("scale", "3"), first("kill", "gateway"))),
                ("drain triton", lambda: first("drain", "triton")),
                ("scale 1", lambda: local.do("scale", "1")),
                ("roll", lambda: local.do("roll")),
            ],
        )
        status = await local.status()
        assert {one["revision"] for one in status["members"]} == {2}
        assert await local.down() == 0
    finally:
        local.process.stop()
    totals = loop.totals
    assert not totals.failed, [totals.failed, *loop.recorder.failures(), *map(json.dumps, local.ledger()[-30:])]
    assert totals.answered == totals.offered > 10 * RATE
    events = [line["event"] for line in local.ledger()]
    assert {"killed", "lost", "draining", "ended", "scale", "rolled", "down"} <= set(events)
    assert "haproxy failed" not in events
    assert not processes_of(local.state)


@pytest.mark.slow
async def test_a_roll_to_something_that_does_not_start_changes_nothing(workspace: Workspace, tmp_path: Path) -> None:
    require_program("haproxy", "haproxy")
    for name in ("good", "bad"):
        shutil.copytree(workspace.repository, tmp_path / name / "repository")
    golden = tmp_path / "bad" / "repository" / "golden.json"
    golden.write_text(golden.read_text().replace("cases", "places"))  # damaged: its hash tells
    key = "a key of sixteen or more"
    local = LocalFleet(
        tmp_path / "good" / "repository", tmp_path, "--replicas", "1", "--gateways", "1",
        environment={KEY_VARIABLE: key},
    )  # fmt: skip
    try:
        await local.ready()
        before = await local.members("triton")
        # Where a rollout of the fleet asks: both files lead to somebody who knows the key.
        (admin,) = urls_of([f"file:{local.state / TRITON_ADMINS}"])
        assert TritonAdmin(admin, key).list().live
        (gateway,) = urls_of([f"file:{local.state / GATEWAYS}"])
        told = httpx.get(f"{gateway}/versions", headers={"Authorization": f"Bearer {key}"}).json()
        assert told["live"]["triton"] == [f"file:{local.state / TRITONS}"]
        with pytest.raises(Exception, match=r"fleet roll .*golden\.json"):
            await local.do("roll", str(tmp_path / "bad" / "repository"))
        assert await local.members("triton") == before
        assert (await local.status())["is_settled"]
        began = time.monotonic()
        await local.down()
        assert time.monotonic() - began < 60
    finally:
        local.process.stop()
