"""The folder of a fleet: one fleet at a time, its sockets and files, and what a fleet that was killed left running.

control.sock    where `tritonrank fleet status` and the others ask
fleet.json      the processes, for whoever has to end them without the fleet
ledger.jsonl    what happened, a line each
tritons         addresses of the Tritons that are in rotation, which the gateways read
gateways        private addresses of the gateways, and triton-admins those of the Tritons: for a rollout
haproxy.cfg, haproxy.sock, haproxy.log
triton-1/, gateway-1/, ...    log, triton.log, ready
"""

import fcntl
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from tritonrank.artifacts import write_whole
from tritonrank.errors import ServerError
from tritonrank.serve.fleet.members import kill_tree
from tritonrank.serve.server_processes import Part

TRITONS, GATEWAYS, TRITON_ADMINS = "tritons", "gateways", "triton-admins"
"""Files of addresses."""
LONGEST_PATH = 80
"""Of the folder: a socket's whole path has 107 bytes at most."""
MOST_LEDGER_BYTES = 2**24
CHOOSE = "choose another folder with --state"


def default_folder() -> Path:
    """One for each user of the machine."""
    base = Path(os.environ.get("XDG_RUNTIME_DIR", "") or tempfile.gettempdir())
    return base / f"tritonrank-fleet-{os.getuid()}"


class StateFolder:
    """Where one fleet keeps what others need to know.

    Args:
        path: is made, for this user alone.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._lock: int | None = None

    @property
    def control(self) -> Path:
        return self.path / "control.sock"

    @property
    def tritons(self) -> Path:
        return self.path / TRITONS

    @property
    def _record(self) -> Path:
        return self.path / "fleet.json"

    @property
    def _ledger(self) -> Path:
        return self.path / "ledger.jsonl"

    def open(self) -> list[str]:
        """Take the folder, and end what a fleet left behind that was killed; its names.

        Raises:
            ServerError: another fleet has it, or it cannot be used.
        """
        if len(str(self.path)) > LONGEST_PATH:
            raise ServerError(f"{self.path}: too long for a socket in it ({LONGEST_PATH} characters at most); {CHOOSE}")
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self.path.stat().st_uid != os.getuid():
                raise ServerError(f"{self.path}: it belongs to another user; {CHOOSE}")
            self.path.chmod(0o700)
            self._lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock or -1)
            self._lock = None
            raise ServerError(
                f"{self.path}: a fleet runs there already. See it with: tritonrank fleet status; or {CHOOSE}"
            ) from None
        except OSError as error:
            raise ServerError(f"{self.path}: cannot be used ({error.strerror}); {CHOOSE}") from None
        left = self._end_leftovers()
        for one in self.path.iterdir():
            if one.is_dir():
                shutil.rmtree(one, ignore_errors=True)
            elif one.name != "lock":
                one.unlink(missing_ok=True)
        return left

    def close(self) -> None:
        """Others may take it; the ledger stays to be read."""
        for name in (self.control.name, self._record.name, TRITONS, GATEWAYS, TRITON_ADMINS):
            (self.path / name).unlink(missing_ok=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def record(self, parts: Iterable[Part]) -> None:
        """These processes run."""
        told = [{"name": part.name, "pid": part.pid, "started": part.started} for part in parts]
        write_whole(self._record, json.dumps(told) + "\n", CHOOSE)

    def write_addresses(self, file: str, addresses: Iterable[str]) -> None:
        """These are in rotation."""
        write_whole(self.path / file, "".join(f"{address}\n" for address in addresses), CHOOSE)

    def note(self, event: str, **figures: Any) -> dict[str, Any]:
        """One more line of the ledger."""
        line = {"at": round(time.time(), 3), "event": event} | figures
        with suppress(OSError):  # a full disk must not end a fleet
            is_long = self._ledger.is_file() and self._ledger.stat().st_size > MOST_LEDGER_BYTES
            if is_long:
                self._ledger.replace(self._ledger.with_suffix(".old.jsonl"))
            with self._ledger.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        return line

    def _end_leftovers(self) -> list[str]:
        try:
            told = json.loads(self._record.read_text(encoding="utf-8"))
            parts = [Part(str(one["name"]), int(one["pid"]), int(one["started"])) for one in told]
        except (OSError, ValueError, KeyError, TypeError):
            return []
        left = [part for part in parts if part.state() is not None]
        for part in left:
            kill_tree(part)
        deadline = time.monotonic() + 10.0
        while any(part.state() for part in left) and time.monotonic() < deadline:
            time.sleep(0.05)
        return [part.name for part in left]
