"""Systems without a server: a library in a worker process, asked over a pipe.

One JSON line goes in and one comes out, in order; requests that arrive meanwhile wait in the pipe, as calls of one
library from one program would. The pipe costs well under a millisecond (``pipe_ms`` in the results says how much), so
these systems pay for no HTTP and no second serialization.
"""

import json
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path
from typing import Any

from loadtests.peers.cases import Case
from loadtests.peers.environments import Environment
from loadtests.peers.system import REQUEST_SECONDS
from loadtests.processes import Process, SystemFaultError, resident_bytes


class LibrarySystem:
    """A worker module in an environment.

    Args:
        name, kind, settings: as in System.
        module: run as ``python -m`` and told ``arguments``.
        environment: gives the environment; called by prepare.
        arguments: gives the worker's arguments; called by prepare, may convert a model.
        packages: whose versions are reported.
        takes_pairs: send (context, documents) instead of (query, history, items).
        log: the worker's log file.
    """

    def __init__(
        self,
        *,
        name: str,
        kind: str,
        settings: dict[str, str],
        module: str,
        environment: Callable[[], Environment],
        arguments: Callable[[], Sequence[str]],
        packages: Sequence[str],
        takes_pairs: bool,
        log: Path,
    ) -> None:
        self.name, self.kind, self.settings = name, kind, settings
        self._module = module
        self._find_environment = environment
        self._find_arguments = arguments
        self._packages = packages
        self._takes_pairs = takes_pairs
        self._log = log
        self._environment: Environment | None = None
        self._arguments: Sequence[str] = ()
        self._worker: Worker | None = None

    def prepare(self) -> None:
        self._environment = self._find_environment()
        self._arguments = self._find_arguments()

    def versions(self) -> dict[str, str]:
        assert self._environment is not None
        return self._environment.versions(self._packages)

    def start(self) -> None:
        assert self._environment is not None
        command = [str(self._environment.python), "-m", self._module, *self._arguments]
        self._worker = Worker(command, self._log, self.name)
        self._worker.wait_until_ready()

    def rank(self, case: Case) -> Sequence[float]:
        return [float(score) for score in self.ask(case)["scores"]]

    def ask(self, case: Case) -> dict[str, Any]:
        """The worker's whole answer: scores, and the seconds that it took itself."""
        assert self._worker is not None
        if self._takes_pairs:
            return self._worker.ask({"context": case.context, "documents": case.documents})
        return self._worker.ask({"query": case.query, "history": case.history, "items": case.items})

    def token_rows(self, case: Case) -> list[list[int]]:
        """Only for workers/ours.py: the token ids of each row as a joint ranker of ours gets them."""
        assert self._worker is not None
        message = {"rows": True, "query": case.query, "history": case.history, "items": case.items}
        rows: list[list[int]] = [[]]
        for number in self._worker.ask(message)["scores"]:
            if number < 0:  # the end of a row
                rows.append([])
            else:
                rows[-1].append(int(number))
        return rows[:-1]

    def memory_bytes(self) -> int:
        assert self._worker is not None
        return resident_bytes(self._worker.process.pid)

    def stop(self) -> None:
        if self._worker is not None:
            self._worker.stop()
            self._worker = None


class Worker:
    """A process that answers JSON lines in order; the first line says that it is ready."""

    def __init__(self, command: Sequence[str], log: Path, name: str) -> None:
        self.process = Process(command, log, pipes=True)
        self._name = name
        self._lock = threading.Lock()
        self._ready: Future[dict[str, Any]] = Future()
        self._expected: deque[Future[dict[str, Any]]] = deque([self._ready])
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait_until_ready(self) -> None:
        """Raises SystemFaultError when it ends or takes too long."""
        self.process.wait_until(self._ready.done, self._name)
        self._ready.result()

    def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        """Send one line and wait for its answer.

        Raises:
            SystemFaultError: the worker reports an error, ended, or does not answer in time.
        """
        answer: Future[dict[str, Any]] = Future()
        line = json.dumps(message).encode() + b"\n"
        with self._lock:  # the order of the lines is the order of the answers
            self._expected.append(answer)
            try:
                self.process.stdin.write(line)
                self.process.stdin.flush()
            except (OSError, ValueError):
                raise SystemFaultError(f"{self._name}: the worker ended\n{self.process.log_tail()}") from None
        try:
            return answer.result(REQUEST_SECONDS)
        except FutureTimeoutError:
            raise SystemFaultError(f"{self._name}: no answer after {REQUEST_SECONDS:g} s") from None

    def stop(self) -> None:
        self.process.stop()
        self._reader.join()

    def _read(self) -> None:
        try:
            for line in self.process.stdout:
                if (answer := _answer(line)) is not None:
                    _settle(self._expected.popleft(), answer, self._name)
        except (OSError, ValueError):  # closed by stop()
            pass
        for waiting in [*self._expected]:
            if not waiting.done():
                waiting.set_exception(SystemFaultError(f"{self._name}: the worker ended\n{self.process.log_tail()}"))


def _answer(line: bytes) -> dict[str, Any] | None:
    """None for what a library printed before the worker took its output away."""
    try:
        answer = json.loads(line)
    except ValueError:
        return None
    return answer if isinstance(answer, dict) and answer.keys() & {"ready", "scores", "error"} else None


def _settle(waiting: Future[dict[str, Any]], answer: dict[str, Any], name: str) -> None:
    if "error" in answer:
        waiting.set_exception(SystemFaultError(f"{name}: {answer['error']}"))
    else:
        waiting.set_result(answer)
