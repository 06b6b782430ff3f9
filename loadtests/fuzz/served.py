"""The server that is fuzzed: ``tritonrank serve`` as a process of its own, its ends noticed, its repairs timed.

Serve repairs what ends; where it does not (it ended itself, or nothing came back), the harness starts it again, so that
the rest of the requests still find a server, and says so.
"""

import json
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil
from tritonrank_client import RankClient, RankError, Retry

from loadtests.checks import GOLDEN_FILE
from loadtests.processes import LOOPBACK, Process, free_port

LOOK_SECONDS = 0.02
GOLDEN_SECONDS = 10.0
"""A golden request may take so long when a burst is still being worked off."""
PATIENCE_SECONDS = 20.0
"""Serve may take so long to repair itself before the harness does."""
SERVER, STUB = "tritonserver", "triton_python_backend_stub"

Ranking = list[tuple[int, float]]


class FuzzedServer:
    """Runs from entering the block to its end.

    Args:
        artifacts: ``artifacts/<recipe>``, or a repository.
        folder: an empty one, for its log and its temporary files.
    """

    def __init__(self, artifacts: Path, folder: Path) -> None:
        repository = artifacts / "repository" if (artifacts / "repository").is_dir() else artifacts
        self._cases = json.loads((repository / GOLDEN_FILE).read_text(encoding="utf-8"))["cases"]
        self._artifacts = artifacts
        self._folder = folder
        self._ports = {name: free_port() for name in ("http", "grpc", "metrics")}
        self._process: Process | None = None
        self._started_times = 0
        self._watched: dict[int, str] = {}
        self._lock = threading.Lock()
        self._ended: list[tuple[float, str]] = []
        self._stopped = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    @property
    def http_address(self) -> tuple[str, int]:
        return LOOPBACK, self._ports["http"]

    @property
    def urls(self) -> dict[str, str]:
        """By protocol."""
        return {name: f"{name}://{LOOPBACK}:{self._ports[name]}" for name in ("grpc", "http")}

    def __enter__(self) -> Self:
        self._start()
        self._watcher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._watcher.join()
        if self._process is not None:
            self._process.stop()

    def golden(self, seconds: float = GOLDEN_SECONDS) -> list[Ranking]:
        """How the golden requests rank now.

        Raises:
            RankError: one was not answered.
        """
        found = []
        with RankClient(self.urls["grpc"], timeout=seconds, retry=Retry(attempts=1)) as client:
            for case in self._cases:
                result = client.rank(query=case["query"], history=case["history"], items=case["items"])
                found.append([(one.index, one.score) for one in result.ranking])
        return found

    def take_ended(self) -> list[tuple[float, str]]:
        """(when on the monotonic clock, which process) since the last time."""
        with self._lock:
            ended, self._ended = self._ended, []
        return ended

    def wait_for_repair(self, since: float) -> tuple[float | None, bool]:
        """Wait until golden requests are answered again.

        Args:
            since: when it ended, on the monotonic clock.

        Returns:
            Seconds since then, None where it never came back; and whether it came back by itself.

        Raises:
            SystemFaultError: it did not even start again.
        """
        while time.monotonic() < since + PATIENCE_SECONDS:
            if self._process is None or self._process.exit_code() is not None:
                break
            if self._is_back():
                return time.monotonic() - since, True
            time.sleep(LOOK_SECONDS)
        if self._process is not None:
            self._process.stop()
        self._start()
        self.take_ended()
        return time.monotonic() - since, False

    def footprint(self) -> tuple[int, int]:
        """Resident bytes, and open files, of tritonserver and its stubs together."""
        resident = files = 0
        for process in self._parts():
            try:
                resident += process.memory_info().rss
                files += process.num_fds()
            except psutil.NoSuchProcess:
                continue
        return resident, files

    def _is_back(self) -> bool:
        """Its processes are there, and golden requests are answered."""
        names = [name for _, name in self._named_parts()]
        if SERVER not in names:
            return False
        try:
            self.golden(seconds=1)
        except RankError:
            return False
        return True

    def _start(self) -> None:
        temporary = self._folder / "tmp"
        temporary.mkdir(parents=True, exist_ok=True)
        ports = [word for name, port in self._ports.items() for word in (f"--{name}-port", str(port))]
        command = [sys.executable, "-m", "tritonrank", "serve", str(self._artifacts.resolve()), *ports]
        self._started_times += 1
        log = self._folder / f"serve-{self._started_times}.log"
        self._process = Process(command, log, environment={"TMPDIR": str(temporary)})
        self._process.wait_until(self._is_back, f"tritonrank serve {self._artifacts}")
        with self._lock:
            self._watched = dict(self._named_parts())

    def _watch(self) -> None:
        """Notice that a process is gone, whoever brings another."""
        while not self._stopped.wait(LOOK_SECONDS):
            with self._lock:
                gone = [pid for pid in self._watched if not _is_alive(pid)]
                now = time.monotonic()
                self._ended += [(now, self._watched.pop(pid)) for pid in gone]
                if not self._watched or gone:
                    self._watched |= dict(self._named_parts())
            if not self._watched:  # until the server is back
                time.sleep(LOOK_SECONDS)

    def _parts(self) -> Sequence[psutil.Process]:
        if self._process is None:
            return []
        try:
            family = psutil.Process(self._process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        return [one for one in family if _name_of(one)]

    def _named_parts(self) -> list[tuple[int, str]]:
        return [(one.pid, _name_of(one)) for one in self._parts()]


def _name_of(process: psutil.Process) -> str:
    """tritonserver, or "stub of" a model; empty: neither, or gone."""
    try:
        command = process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return ""
    program = Path(command[0]).name if command else ""
    if program == STUB:
        models = [Path(word).parts for word in command if word.endswith("model.py")]
        return f"stub of {models[0][-3]}" if models and len(models[0]) >= 3 else "stub"
    return SERVER if program == SERVER else ""


def _is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
