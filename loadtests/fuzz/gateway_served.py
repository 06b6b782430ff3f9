"""The gateway that is fuzzed, before the server that is: with catalogue and store where the artifacts have them."""

import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from loadtests.fuzz.gateway_requests import ADMIN_KEY
from loadtests.processes import LOOPBACK, Process, free_port

DEADLINE_SECONDS = 2
"""Of bodies that never come to their end, among others."""


class FuzzedGateway:
    """Runs from entering the block to its end.

    Args:
        artifacts: ``artifacts/<recipe>``, or a repository.
        triton: HOST:PORT of gRPC.
        folder: an empty one, for its log and its store.
    """

    def __init__(self, artifacts: Path, triton: str, folder: Path) -> None:
        self._ports = free_port(), free_port()
        self._folder = folder
        self._ready = folder / "ready.json"
        self._starts = 0
        options = [
            "--store",
            f"sqlite:{folder}/store.db",
            "--events-log",
            str(folder / "events"),
            "--no-access-log",
            "--deadline-s",
            "2",
        ]
        for name in ("catalogue", "blend"):
            if (artifacts / name).is_dir():
                options += [f"--{name}", str(artifacts / name)]
        self._command = [
            sys.executable, "-m", "tritonrank_gateway", "--triton", triton, "--port", str(self._ports[0]),
            "--metrics-port", str(self._ports[1]), "--ready-file", str(self._ready), *options,
        ]  # fmt: skip
        self._process: Process | None = None

    @property
    def address(self) -> tuple[str, int]:
        return LOOPBACK, self._ports[0]

    @property
    def side(self) -> tuple[str, int]:
        """Of metrics and health."""
        return LOOPBACK, self._ports[1]

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True)
        self._start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.stop()

    def started_again(self) -> float | None:
        """Start it where it has ended; the seconds that it took, None where it runs."""
        assert self._process is not None
        if self._process.exit_code() is None:
            return None
        began = time.monotonic()
        self._start()
        return time.monotonic() - began

    def footprint(self) -> tuple[int, int]:
        """Resident bytes, and open files."""
        assert self._process is not None
        try:
            process = psutil.Process(self._process.pid)
            return process.memory_info().rss, process.num_fds()
        except psutil.NoSuchProcess:
            return 0, 0

    def _start(self) -> None:
        self._ready.unlink(missing_ok=True)
        self._starts += 1
        self._process = Process(self._command, self._folder / f"gateway-{self._starts}.log", environment=ADMIN_KEY)
        self._process.wait_until(self._ready.exists, "tritonrank_gateway")
