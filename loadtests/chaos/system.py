"""The whole service of one test: Triton under its supervisor, a store, a gateway that is kept running, bad networks.

Between gateway and Triton, gateway and store, and callers and gateway lies a proxy each.
"""

import json
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import urlsplit

import psutil

from loadtests.chaos.proxy import TcpProxy
from loadtests.faults import Server, printed_urls
from loadtests.processes import LOOPBACK, Process, SystemFaultError, free_port
from loadtests.target import serve_command
from loadtests.valkey import Valkey

StoreKind = Literal["sqlite", "valkey"]
Link = Literal["ranker", "store", "callers"]
STEPS = ("ranker", "tokenize", "score", "select")
"""Models with a process of their own, as far as the repository has them."""
AGAIN_SECONDS = 0.5
"""From the end of a gateway until whoever runs it starts it again."""


class System:
    """Runs from entering the block to its end.

    Args:
        artifacts: a folder with ``repository`` and ``catalogue``; ``blend`` where there is one.
        folder: an empty one, for logs, the store and the training log.
        store: behind the gateway.
    """

    def __init__(self, artifacts: Path, folder: Path, store: StoreKind) -> None:
        self.artifacts = artifacts
        self.folder = folder
        self.store_kind: StoreKind = store
        self.events_log = folder / "events"
        self.links: dict[Link, TcpProxy] = {}
        self.valkey: Valkey | None = None
        self.gateway_starts = 0
        self._stack = ExitStack()
        self._closing = threading.Event()
        self._gateway_port, self._metrics_port = free_port(), free_port()
        self._keeper: threading.Thread | None = None

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._closing.set()
        if self._keeper is not None:
            self._keeper.join()
        self._stack.close()

    @property
    def golden(self) -> list[Mapping[str, Any]]:
        found: list[Mapping[str, Any]] = json.loads((self.artifacts / "repository" / "golden.json").read_text())[
            "cases"
        ]
        return found

    @property
    def port(self) -> int:
        """Where callers ask."""
        return self.links["callers"].port

    @property
    def store_url(self) -> str:
        """Past the proxy, for counting."""
        return self.valkey.url if self.valkey else f"sqlite:{self.folder}/store.db"

    def parts(self) -> list[str]:
        """Everything that is a process, by name."""
        models = [name for name in STEPS if (self.artifacts / "repository" / name).is_dir()]
        return [*models, "tritonserver", "gateway", *(["store"] if self.valkey else [])]

    def processes(self, part: str) -> list[psutil.Process]:
        """Of a part, as they are now; empty while it is away."""
        with suppress(psutil.NoSuchProcess, IndexError):
            if part == "gateway":
                return [psutil.Process(self._gateway.pid)]
            if part == "store":
                assert self.valkey is not None
                return [psutil.Process(self.valkey.pid)]
            return [self._server.triton()] if part == "tritonserver" else self._server.stubs(part)
        return []

    def gateway_is_ready(self) -> bool:
        return (self.folder / "gateway.json").exists()

    def restarts(self) -> int:
        """Of the server; counted up by its supervisor."""
        return self._server.restarts() or 0

    def _start(self) -> None:
        (self.folder / "tmp").mkdir(parents=True)
        command = [*serve_command(self.artifacts / "repository"), "--ready-file", str(self.folder / "ready")]
        serving = Process(command, self.folder / "serve.log", environment={"TMPDIR": str(self.folder / "tmp")})
        self._stack.callback(serving.stop)
        self._server = Server(serving, self.folder, {})
        serving.wait_until(lambda: self._server.restarts() is not None, f"tritonrank serve {self.artifacts}")
        self._server.urls = printed_urls(serving)
        ports: dict[Link, int] = {"ranker": _port(self._server.urls["gRPC"]), "callers": self._gateway_port}
        if self.store_kind == "valkey":
            self.valkey = self._stack.enter_context(Valkey(self.folder))
            ports["store"] = _port(self.valkey.url)
        self.links = {name: self._stack.enter_context(TcpProxy(port)) for name, port in ports.items()}
        self._gateway = self._start_gateway()
        self._stack.callback(lambda: self._gateway.stop())
        self._gateway.wait_until(self.gateway_is_ready, "tritonrank_gateway")
        self._keeper = threading.Thread(target=self._keep_gateway, name="keeps the gateway", daemon=True)
        self._keeper.start()

    def _start_gateway(self) -> Process:
        (self.folder / "gateway.json").unlink(missing_ok=True)
        self.gateway_starts += 1
        through = f"redis://{LOOPBACK}:{self.links['store'].port}/0" if self.valkey else self.store_url
        blend = self.artifacts / "blend"
        command: Sequence[str] = [
            sys.executable, "-m", "tritonrank_gateway", "--triton", f"{LOOPBACK}:{self.links['ranker'].port}",
            "--port", str(self._gateway_port), "--metrics-port", str(self._metrics_port),
            "--ready-file", str(self.folder / "gateway.json"), "--catalogue", str(self.artifacts / "catalogue"),
            *(["--blend", str(blend)] if blend.is_dir() else []), "--store", through,
            "--events-log", str(self.events_log), "--recommend-deadline-s", "1.5", "--no-access-log",
        ]  # fmt: skip
        return Process(command, self.folder / f"gateway-{self.gateway_starts}.log")

    def _keep_gateway(self) -> None:
        """What an orchestrator does."""
        while not self._closing.wait(0.05):
            if self._gateway.exit_code() is not None and not self._closing.wait(AGAIN_SECONDS):
                self._gateway = self._start_gateway()


def _port(url: str) -> int:
    port = urlsplit(url).port
    if port is None:
        raise SystemFaultError(f"{url}: names no port")
    return port


def wait_until(is_so: Callable[[], bool], seconds: float) -> bool:
    """Whether it was within so many seconds."""
    ends = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > ends:
            return False
        time.sleep(0.05)
    return True
