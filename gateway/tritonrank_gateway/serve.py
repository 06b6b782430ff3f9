"""One process that serves both applications until it is told to stop.

uvicorn rather than granian: two applications with one event loop, one backend and one set of metrics, and a caller who
hangs up is seen. uvloop's turns are shorter than asyncio's, which shows in the slowest pages; HTTP stays with h11,
which bounds headers.
"""

import asyncio
import json
import logging
import signal
import socket
import sys
from pathlib import Path
from typing import Any, Literal

import uvicorn
import uvloop
from tritonrank_recommend.engine.memory import set_aside_what_is_open

from tritonrank_gateway.app import create_app, create_metrics_app
from tritonrank_gateway.certificates import ServerCertificates
from tritonrank_gateway.compose import compose, compose_recommender
from tritonrank_gateway.load import Load
from tritonrank_gateway.metrics import Metrics
from tritonrank_gateway.settings import GatewaySettings
from tritonrank_gateway.tracing import open_tracing

BACKLOG = 1_024
GRACE_SECONDS = 10
"""How long running requests may take when the gateway is told to stop."""
LAST_SECONDS = 0.2
"""After the last connection was accepted: its request is on its way, and would be cut off."""


def serve(settings: GatewaySettings) -> None:
    """Serve until SIGINT or SIGTERM; then for ``drain_s`` more, not ready any longer, and what runs then is finished.

    Raises:
        ValueError: a key is wrong.
        OSError: a port is taken.
    """
    _log_to_stdout()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(settings))


async def _serve(settings: GatewaySettings) -> None:
    metrics = Metrics()
    tracing = open_tracing(settings.tracing)
    app = create_app(settings, compose(settings, metrics, tracing), metrics, compose_recommender(settings), tracing)
    sockets = [socket.socket(fileno=int(number)) for number in settings.listen_on] or [
        _listen(settings.host, port) for port in (settings.port, settings.metrics_port)
    ]
    certificates = _certificates(settings, metrics)
    main = _server(app, certificates[0], lifespan="on")
    side = _server(create_metrics_app(app.state.gateway), certificates[1])
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    running = [
        asyncio.create_task(_run(server, listener)) for server, listener in zip((main, side), sockets, strict=True)
    ]
    stopping = asyncio.create_task(stop.wait())
    looking = [asyncio.create_task(one.keep()) for one in certificates if one is not None]
    while not (main.started and side.started) and not stop.is_set() and not any(task.done() for task in running):
        await asyncio.sleep(0.01)
    set_aside_what_is_open()
    _tell(settings, sockets)
    await asyncio.wait([stopping, *running], return_when=asyncio.FIRST_COMPLETED)
    if stop.is_set():
        stop.clear()
        await _drain(app.state.gateway.load, settings.drain_s, stop, running)
    for one in getattr(main, "servers", ()):  # none where it did not come to its start
        one.close()
    await asyncio.sleep(LAST_SECONDS)
    main.should_exit = True
    await running[0]
    side.should_exit = True  # it says until the end that nothing more is taken
    await running[1]
    for task in (stopping, *looking):
        task.cancel()


def _certificates(
    settings: GatewaySettings, metrics: Metrics
) -> tuple[ServerCertificates | None, ServerCertificates | None]:
    """Of the port for callers, and of the one for metrics; None serves plain HTTP there.

    Raises:
        ValueError: the files do not fit together.
    """
    if settings.tls_certificate is None or settings.tls_key is None:
        return None, None
    pair = settings.tls_certificate, settings.tls_key
    main = ServerCertificates(*pair, settings.tls_client_ca, lambda result: metrics.certificates.labels(result).inc())
    return main, ServerCertificates(*pair) if settings.tls_metrics else None


async def _drain(load: Load, seconds: float, stop: asyncio.Event, running: list["asyncio.Task[None]"]) -> None:
    """Serve on while balancers find out that this gateway is about to end; a second signal makes an end of it."""
    load.is_draining = True
    if seconds:
        again = asyncio.create_task(stop.wait())
        await asyncio.wait([again, *running], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        again.cancel()


def _server(
    app: Any, certificates: ServerCertificates | None = None, lifespan: Literal["on", "off"] = "off"
) -> uvicorn.Server:
    return uvicorn.Server(
        uvicorn.Config(
            app,
            lifespan=lifespan,
            ssl_context_factory=None if certificates is None else lambda *_: certificates.context,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
    )


async def _run(server: uvicorn.Server, listener: socket.socket) -> None:
    await server._serve([listener])  # its own serve() would take the signals, which are for both


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Of a socket that does not name TCP, asyncio leaves Nagle's algorithm on: each answer would wait 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise OSError(f"{host}:{port}: cannot listen there ({error.strerror or error}); choose another port") from error
    return listener


def _tell(settings: GatewaySettings, sockets: list[socket.socket]) -> None:
    port, metrics_port = (one.getsockname()[1] for one in sockets)
    scheme = "https" if settings.tls_certificate else "http"
    side = "https" if settings.tls_metrics else "http"
    urls = {"url": f"{scheme}://{settings.host}:{port}", "metrics_url": f"{side}://{settings.host}:{metrics_port}"}
    print(json.dumps(urls), flush=True)
    if settings.ready_file is not None:
        _write_whole(settings.ready_file, json.dumps(urls) + "\n")


def _write_whole(path: Path, text: str) -> None:
    """Whoever waits for the file never sees a part of it."""
    draft = path.with_name(path.name + ".tmp")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


def _log_to_stdout() -> None:
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(name)s %(message)s")
    access = logging.getLogger("tritonrank_gateway.access")
    access.setLevel(logging.INFO)
    access.propagate = False
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    access.addHandler(handler)
