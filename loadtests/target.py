"""What a load test is pointed at: a server that runs already, or a folder whose server is started for the test.

A folder is served through the command line, ``tritonrank serve``, in a process of its own: load tests import only the
client, and a test that started the server inside itself would take the cores that it measures. Such a server's three
addresses and its processes are known. Of a server that was only named by its URL the others are guessed from Triton's
usual ports (HTTP, gRPC and metrics are neighbours) and used if something answers there; its processes are found when
it runs on this machine.
"""

import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import psutil

from loadtests.processes import Process, SystemFaultError

Protocol = Literal["grpc", "http"]
TRITON_PROCESS = "tritonserver"
USUAL_PORTS = {"http": 8000, "grpc": 8001, "metrics": 8002}
LOOPBACK_NAMES = ("127.0.0.1", "localhost", "::1")


class TargetError(RuntimeError):
    """There is nothing to test: the folder cannot be served, or the URL is none."""


@dataclass(frozen=True)
class LiveServer:
    """Where a running server is reached; empty addresses are unknown."""

    grpc_url: str
    http_url: str
    metrics_url: str
    pid: int | None
    """of tritonserver; None where it runs elsewhere"""
    artifacts: Path | None = None
    """what was served for this test; None: the server ran already"""

    def url(self, protocol: Protocol) -> str:
        """The address for one protocol."""
        return self.grpc_url if protocol == "grpc" else self.http_url


@contextmanager
def open_target(
    target: str, *, metrics_url: str = "", serve_options: Sequence[str] = (), log: Path | None = None
) -> Iterator[LiveServer]:
    """A server to test; one that was started here is stopped at the end.

    Args:
        target: grpc:// or http:// with host and port, or artifacts/<recipe> or a repository folder.
        metrics_url: where a server that runs already has its metrics page, if not at the usual port.
        serve_options: more arguments of ``tritonrank serve``.
        log: keeps the output of the server that is started here.

    Raises:
        TargetError: neither a URL nor a folder that can be served; with the last lines of the server's log.
    """
    if "://" in target:
        server = _named(target)
        yield replace(server, metrics_url=metrics_url or server.metrics_url)
        return
    if not Path(target).is_dir():
        raise TargetError(
            f"{target}: neither a URL such as grpc://127.0.0.1:8001 nor a folder. Build one: tritonrank build RECIPE"
        )
    with tempfile.TemporaryDirectory(prefix="loadtest-") as scratch:
        output = log or Path(scratch) / "serve.log"
        process = Process([*serve_command(Path(target)), *serve_options], output)
        try:
            yield _started(process, Path(target))
        finally:
            process.stop()


def protocol_of(target: str, protocol: str) -> Protocol:
    """The protocol that a URL names; of a folder, the one that was asked for.

    Raises:
        TargetError: neither grpc nor http.
    """
    spoken = urlsplit(target).scheme if "://" in target else protocol
    if spoken == "grpc":
        return "grpc"
    if spoken == "http":
        return "http"
    raise TargetError(f"{target}: protocol {spoken}; expected grpc or http")


def serve_command(artifacts: Path) -> list[str]:
    """``tritonrank serve`` on free ports."""
    ports = [argument for name in USUAL_PORTS for argument in (f"--{name}-port", "0")]
    return [sys.executable, "-m", "tritonrank", "serve", str(artifacts.resolve()), *ports]


def server_process(port: int) -> int | None:
    """The process on this machine that listens at a port; None where that cannot be seen."""
    try:
        connections = psutil.net_connections(kind="tcp")
    except (psutil.Error, OSError):
        return None
    return next(
        (c.pid for c in connections if c.status == psutil.CONN_LISTEN and c.laddr and c.laddr.port == port and c.pid),
        None,
    )


def _named(url: str) -> LiveServer:
    address = urlsplit(url)
    try:
        port, host = address.port, address.hostname
    except ValueError:
        port, host = None, None
    if address.scheme not in ("grpc", "http") or not host or not port:
        raise TargetError(f"{url}: expected grpc:// or http:// with host and port, such as grpc://127.0.0.1:8001")
    first = port - USUAL_PORTS[address.scheme]
    shown_host = f"[{host}]" if ":" in host else host
    places = {name: f"{shown_host}:{first + usual}" for name, usual in USUAL_PORTS.items()}
    return LiveServer(
        grpc_url=f"grpc://{places['grpc']}",
        http_url=f"http://{places['http']}",
        metrics_url=f"http://{places['metrics']}/metrics",
        pid=server_process(port) if host in LOOPBACK_NAMES else None,
    )


def _started(process: Process, artifacts: Path) -> LiveServer:
    found: dict[str, str] = {}

    def has_printed_urls() -> bool:
        text = process.log.read_text(encoding="utf-8", errors="replace")
        found.update(re.findall(r"^(HTTP|gRPC|metrics)\s+(\S+)$", text, re.MULTILINE))
        return len(found) == len(USUAL_PORTS)

    try:
        process.wait_until(has_printed_urls, f"tritonrank serve {artifacts}")
    except SystemFaultError as error:
        raise TargetError(str(error)) from None
    family = psutil.Process(process.pid).children(recursive=True)
    pid = next((child.pid for child in family if child.name() == TRITON_PROCESS), None)
    return LiveServer(found["gRPC"], found["HTTP"], found["metrics"], pid, artifacts)
