"""A gateway as its users run it: a process on free ports of loopback, ended with the test."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

START_SECONDS = 30


@dataclass(frozen=True)
class RunningGateway:
    """A gateway that takes requests."""

    url: str
    metrics_url: str
    process: subprocess.Popen[str]
    folder: Path

    @property
    def log(self) -> str:
        """What it wrote until now: its access log, and on standard error what went wrong."""
        return (self.folder / "gateway.log").read_text(encoding="utf-8")


@contextmanager
def running_gateway(
    triton: str, folder: Path, *flags: str, environment: Mapping[str, str] | None = None
) -> Iterator[RunningGateway]:
    """Start a gateway and wait until it takes requests.

    Args:
        triton: a URL such as grpc://127.0.0.1:8001, or several addresses parted by commas.
        folder: for its log and its ready file.
        flags: of its command line.
        environment: on top of this process's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ready = folder / "ready.json"
    ready.unlink(missing_ok=True)
    address = urlsplit(triton).netloc if "://" in triton else triton
    command = [
        sys.executable, "-m", "tritonrank_gateway", "--triton", address, "--port", "0", "--metrics-port", "0",
        "--ready-file", str(ready), *flags,
    ]  # fmt: skip
    with (folder / "gateway.log").open("w") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, text=True, env=os.environ | dict(environment or {})
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while not ready.exists():
            assert process.poll() is None, (folder / "gateway.log").read_text()
            assert time.monotonic() < deadline, f"not ready after {START_SECONDS} s"
            time.sleep(0.02)
        urls = json.loads(ready.read_text())
        yield RunningGateway(urls["url"], urls["metrics_url"], process, folder)
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
