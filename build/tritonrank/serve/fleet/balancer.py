"""HAProxy before a fleet: HTTP to the gateways and gRPC to the Tritons, changed while requests run.

Its file is written at every change, for a HAProxy that has to be started again; the one that runs is told the same at
its socket. It asks members for their health itself, too, so a member that is gone is left out within half a second.
What reached nobody, or got no answer at all, is sent again to another one (up to 256 KiB of it): ranking changes
nothing, and events count once.
"""

import asyncio
import shutil
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tritonrank.artifacts import write_whole
from tritonrank.errors import ServerError
from tritonrank.serve.fleet.asking import LOOPBACK
from tritonrank.serve.fleet.members import Kind

PROGRAM = "haproxy"
INSTALL = "HAProxy is not installed; it stands before the fleet. On Debian and Ubuntu: apt-get install haproxy"
BACKEND: Mapping[Kind, str] = {"gateway": "gateways", "triton": "tritons"}
HEALTH: Mapping[Kind, str] = {"gateway": "/health/ready", "triton": "/v2/health/ready"}
CHECK = "inter 250 fall 2 rise 1"
WIRE: Mapping[Kind, str] = {"gateway": "", "triton": "proto h2 check-proto h1 "}
ANSWER_SECONDS = 5.0
STOP_SECONDS = 10.0
CONFIGURATION = """\
# Written by `tritonrank fleet up`, and again at every change.
global
    stats socket {socket} mode 600 level admin
    maxconn 4096
    hard-stop-after 20s
    tune.bufsize 262144
defaults
    mode http
    maxconn 4096
    timeout connect 2s
    timeout client 75s
    timeout server 75s
    timeout queue 5s
    timeout check 2s
    retries 3
    option redispatch 1
    retry-on conn-failure empty-response
frontend http
    bind {host}:{port}
    # A request is here as a whole before it goes on: one whose body is still coming could not be sent again.
    option http-buffer-request
    timeout http-request 15s
    default_backend gateways
frontend grpc
    bind {host}:{grpc_port} proto h2
    default_backend tritons
"""
Target = Literal["ready", "drain"]


@dataclass(frozen=True)
class Place:
    """A member as the balancer sees it."""

    kind: Kind
    name: str
    address: str
    check_port: int

    @property
    def server(self) -> str:
        """Its name there."""
        return f"{BACKEND[self.kind]}/{self.name}"

    @property
    def words(self) -> str:
        """What a server is made of, in the file and at the socket."""
        return f"{self.address} {WIRE[self.kind]}check port {self.check_port} {CHECK}"


class Balancer:
    """One HAProxy; its members are those of the last ``show``.

    Args:
        folder: for its file, its log and its socket; the name of that must be short (108 bytes).
        port: of HTTP; 0 is not taken for a free one.
        grpc_port: the same of gRPC.
        host: address to listen on.
    """

    def __init__(self, folder: Path, port: int, grpc_port: int, host: str = LOOPBACK) -> None:
        self.host, self.port, self.grpc_port = host, port, grpc_port
        self._file, self._socket, self._log = folder / "haproxy.cfg", folder / "haproxy.sock", folder / "haproxy.log"
        self._known: dict[Place, Target] = {}
        self._going: set[str] = set()
        self._process: subprocess.Popen[bytes] | None = None
        self.starts = 0

    @property
    def pid(self) -> int:
        """0 before the start."""
        return self._process.pid if self._process else 0

    def ended(self) -> bool:
        """Whether it has to be started, or started again."""
        return self._process is None or self._process.poll() is not None

    def start(self) -> None:
        """Start it with the members that are known.

        Raises:
            ServerError: it is not installed, or does not start; with its own words.
        """
        program = shutil.which(PROGRAM) or shutil.which(PROGRAM, path="/usr/sbin:/usr/local/sbin")
        if program is None:
            raise ServerError(INSTALL)
        self._going.clear()
        self._write()
        checked = subprocess.run(
            [program, "-c", "-f", str(self._file)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
        )
        if checked.returncode:
            said = checked.stdout.decode(errors="replace").strip()
            raise ServerError(f"{self._file}: HAProxy does not take it: {said[-500:]}")
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [program, "-db", "-f", str(self._file)], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        self.starts += 1

    async def wait(self, seconds: float = ANSWER_SECONDS) -> None:
        """Until it takes commands.

        Raises:
            ServerError: it ended, such as for a port that is taken; with its last words.
        """
        ends = asyncio.get_running_loop().time() + seconds
        while True:
            if self.ended():
                said = self._log.read_text(encoding="utf-8", errors="replace").strip()[-500:]
                raise ServerError(f"HAProxy ended: {said}. Choose other ports: --port and --grpc-port")
            try:
                await self._ask("show version")
            except OSError:
                if asyncio.get_running_loop().time() > ends:
                    raise ServerError(f"HAProxy does not answer at {self._socket}") from None
                await asyncio.sleep(0.05)
            else:
                return

    async def show(self, targets: Mapping[Place, Target]) -> None:
        """These members get requests, or get no more; all others are gone. What fails is tried again by the next call.

        Raises:
            OSError: it does not answer; it is to be started again.
        """
        gone = [place for place in self._known if place not in targets]
        has_changed = bool(gone) or any(self._known.get(place) != target for place, target in targets.items())
        for place in gone:
            await self._ask(f"set server {place.server} state maint")
            del self._known[place]
            self._going.add(place.server)
        for server in list(self._going):  # refused as long as a connection is open
            if "deleted" in (await self._ask(f"del server {server}")).lower():
                self._going.discard(server)
        for place, target in targets.items():
            was = self._known.get(place)
            if was is None and target == "ready":
                await self._ask(f"add server {place.server} {place.words}")
                await self._ask(f"enable health {place.server}")
                await self._ask(f"enable server {place.server}")
                self._known[place] = "ready"
            elif was is not None and was != target:
                await self._ask(f"set server {place.server} state {target}")
                self._known[place] = target
        if has_changed:
            self._write()

    async def stop(self) -> None:
        """Take no more, finish what runs, end."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.send_signal(signal.SIGUSR1)
        try:
            await asyncio.to_thread(self._process.wait, STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    async def _ask(self, command: str) -> str:
        """What the socket answers."""
        async with asyncio.timeout(ANSWER_SECONDS):
            reader, writer = await asyncio.open_unix_connection(str(self._socket))
            try:
                writer.write(command.encode() + b"\n")
                await writer.drain()
                return (await reader.read()).decode(errors="replace")
            finally:
                writer.close()

    def _write(self) -> None:
        text = CONFIGURATION.format(socket=self._socket, host=self.host, port=self.port, grpc_port=self.grpc_port)
        for kind, backend in BACKEND.items():
            text += f"backend {backend}\n    balance leastconn\n    option httpchk GET {HEALTH[kind]}\n"
            text += "".join(
                f"    server {place.name} {place.words}\n"
                for place, target in self._known.items()
                if place.kind == kind and target == "ready"
            )
        write_whole(self._file, text, "choose another folder with --state")
