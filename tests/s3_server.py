"""S3 as a process (moto), and a TCP proxy in front of it that cuts connections where a test says."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field

import boto3

START_SECONDS = 120
BUCKET = "models"
KEYS = {"AWS_ACCESS_KEY_ID": "somebody", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}
BLOCK_BYTES = 65_536


@dataclass(frozen=True)
class S3Server:
    """A running one, with a bucket."""

    port: int

    def environment(self, port: int = 0) -> dict[str, str]:
        """What a program needs to talk to it, through a proxy at another port if one is named."""
        return KEYS | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port or self.port}"}


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """Start one, and stop it."""
    with closing(socket.socket()) as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        ends = time.monotonic() + START_SECONDS
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert process.poll() is None
                assert time.monotonic() < ends
                time.sleep(0.05)
        server = S3Server(port)
        client = boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{port}",
            region_name=KEYS["AWS_REGION"],
            aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
        )
        client.create_bucket(Bucket=BUCKET)
        yield server
    finally:
        process.terminate()
        process.wait(30)


@dataclass
class CuttingProxy:
    """Passes bytes on to a port until so many went one way; then cuts that connection, and goes on or stays away."""

    target: int
    cut_after: int | None = None
    """bytes, both ways together; None: never"""
    stays_away: bool = False
    """whether connections are refused from the cut on"""
    passed: int = 0
    cuts: int = 0
    port: int = 0
    slow_seconds: float = 0.0
    """of a pause before each block"""
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _open: list[socket.socket] = field(default_factory=list)

    def __enter__(self) -> "CuttingProxy":
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        for one in self._open:
            _end(one)

    def heal(self) -> None:
        """Pass everything on from now."""
        self.cut_after, self.stays_away = None, False

    def _accept(self) -> None:
        while True:
            try:
                caller, _ = self._listener.accept()
            except OSError:
                return
            if self.cuts and self.stays_away:
                _end(caller)
                continue
            with suppress(OSError):
                server = socket.create_connection(("127.0.0.1", self.target))
                self._open += [caller, server]
                for source, target in ((caller, server), (server, caller)):
                    threading.Thread(target=self._pass, args=(source, target), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(BLOCK_BYTES):
                if self.slow_seconds:
                    time.sleep(self.slow_seconds)
                data, is_cut = self._allowed(data)
                target.sendall(data)
                if is_cut:
                    break
        _end(source)
        _end(target)

    def _allowed(self, data: bytes) -> tuple[bytes, bool]:
        with self._lock:
            if self.stays_away and self.cuts:
                return b"", True
            before, self.passed = self.passed, self.passed + len(data)
            if self.cut_after is None or self.passed < self.cut_after:
                return data, False
            kept = data[: max(0, self.cut_after - before)]
            self.cuts += 1
            self.cut_after = None
            return kept, True


def _end(one: socket.socket) -> None:
    with suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()


def with_environment(values: dict[str, str]) -> dict[str, str]:
    """This process's environment and those."""
    return os.environ | values
