"""The processes of a fleet: what each is started with, when it is ready, how it ends."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tritonrank.serve.fleet.asking import LOOPBACK, get
from tritonrank.serve.ports import choose_ports
from tritonrank.serve.server_processes import Part, children_of

Kind = Literal["triton", "gateway"]
State = Literal["starting", "ready", "unready", "draining"]
START_SECONDS = 240.0
"""To become ready; then it counts as one that cannot."""
END_SECONDS = 45.0
"""After its drain, for requests in flight and for unloading; then it is killed."""
GATEWAY_LOOK_SECONDS = 0.5
LOG_LINES = 5
KEEPER = b"server_keeper"
"""In the command of the process that tidies up behind a Triton; it survives a kill for that."""


@dataclass(frozen=True)
class Spec:
    """What members of one kind are started from.

    Attributes:
        kind: of them.
        repository: what is served.
        flags: of the command, beside ports and files.
        revision: rises with each spec of the kind.
        has_admin: whether a Triton listens for versions, too.
    """

    kind: Kind
    repository: Path
    flags: tuple[str, ...]
    revision: int = 1
    has_admin: bool = False


class Member:
    """One process, with all that it starts; it runs from the beginning on.

    Args:
        name: unlike all others that ever were in the fleet.
        spec: what it is started from.
        folder: for its log and its ready file; made anew, and removed with ``forget``.
        drain_seconds: see ``Plan``.
    """

    def __init__(self, name: str, spec: Spec, folder: Path, drain_seconds: float) -> None:
        self.name, self.spec, self.folder = name, spec, folder
        self.began = time.monotonic()
        self.was_ready = self.is_draining = False
        self._is_ready = False
        self._looked_at = 0.0
        self._told_at: float | None = None
        self._drain_seconds = drain_seconds
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.ports = choose_ports(dict.fromkeys(_PORTS[spec.kind] + (("admin_port",) if spec.has_admin else ()), 0))
        with self.log.open("wb") as log:
            # A session of its own: Ctrl-C reaches the fleet alone, which ends its members in order.
            self._process = subprocess.Popen(
                [sys.executable, "-m", *self._command()], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        self.part = Part.of(name, self._process.pid)

    @property
    def log(self) -> Path:
        """What it says, and its Triton in ``triton.log`` beside it."""
        return self.folder / "log"

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def address(self) -> str:
        """Where requests go: gRPC of a Triton, HTTP of a gateway."""
        return f"{LOOPBACK}:{self.ports['grpc_port' if self.spec.kind == 'triton' else 'port']}"

    @property
    def check_port(self) -> int:
        """Where it says over HTTP whether it is ready."""
        return self.ports["http_port" if self.spec.kind == "triton" else "metrics_port"]

    @property
    def private_address(self) -> str:
        """Where a rollout asks it: a Triton's port for versions, a gateway's of metrics; "" where there is none."""
        port = self.ports.get("admin_port" if self.spec.kind == "triton" else "metrics_port")
        return f"{LOOPBACK}:{port}" if port else ""

    @property
    def state(self) -> State:
        if self.is_draining:
            return "draining"
        return "ready" if self._is_ready else "unready" if self.was_ready else "starting"

    async def look(self) -> None:
        """See whether it is ready."""
        if self.spec.kind == "triton":
            # The file says that golden requests are answered as they should be; Triton's own word would not.
            self._is_ready = (self.folder / "ready").is_file()
        elif (now := time.monotonic()) - self._looked_at >= GATEWAY_LOOK_SECONDS:
            self._looked_at = now
            status, _ = await get(self.check_port, "/health/ready")
            self._is_ready = status == 200
        self.was_ready |= self._is_ready

    def ended(self) -> str:
        """How it ended; "" while it runs."""
        code = self._process.poll()
        if code is None:
            return ""
        return f"code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"

    def tell_to_end(self) -> None:
        """Once: it drains, finishes what it has, and ends. Called again when that takes too long: it is killed."""
        now = time.monotonic()
        if self._told_at is None:
            self._told_at = now
            self._process.terminate()
        elif now - self._told_at > self._drain_seconds + END_SECONDS:
            self.kill()

    def end_now(self) -> None:
        """Finish what it has, and end without a drain."""
        self._told_at = time.monotonic()
        self._process.terminate()
        time.sleep(0.05)  # two signals at once would be one
        self._process.terminate()

    def kill(self) -> None:
        """As if its machine were gone: no goodbye, no answer to what is in flight."""
        if self.part is not None:
            kill_tree(self.part)

    def wait(self, seconds: float) -> bool:
        """Whether it has ended after so many seconds."""
        try:
            self._process.wait(max(0.0, seconds))
        except subprocess.TimeoutExpired:
            return False
        return True

    def last_lines(self) -> str:
        """Of its log."""
        try:
            lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return ""
        return " | ".join(line.strip() for line in lines[-LOG_LINES:] if line.strip())

    def forget(self) -> None:
        """Remove its folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _command(self) -> Sequence[str]:
        ports = [word for name, port in self.ports.items() for word in (f"--{name.replace('_', '-')}", str(port))]
        common = ["--ready-file", str(self.folder / "ready"), "--drain-s", str(self._drain_seconds), *self.spec.flags]
        if self.spec.kind == "triton":
            log = ["--log-file", str(self.folder / "triton.log")]
            return ["tritonrank", "serve", str(self.spec.repository), *ports, *log, *common]
        return ["tritonrank_gateway", "--host", LOOPBACK, *ports, *common]


_PORTS: dict[Kind, tuple[str, ...]] = {
    "triton": ("http_port", "grpc_port", "metrics_port"),
    "gateway": ("port", "metrics_port"),
}


def kill_tree(part: Part) -> None:
    """Kill a process and all below it, but for whoever tidies up behind them."""
    below = children_of(part.pid)
    if not _is_keeper(part.pid):
        part.send(signal.SIGKILL)
    for child in below:
        kill_tree(child)


def _is_keeper(pid: int) -> bool:
    try:
        return KEEPER in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def is_installed(program: str) -> bool:
    """Whether the shell would find a program."""
    return shutil.which(program) is not None or os.access(f"/usr/sbin/{program}", os.X_OK)
