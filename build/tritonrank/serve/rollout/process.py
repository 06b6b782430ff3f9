"""The controller as a process of its own: its look every second, its private API, and its page of metrics."""

import json
import signal
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from tritonrank.errors import ServerError
from tritonrank.serve.gateway_child import missing_packages
from tritonrank.serve.rollout.controller import Controller
from tritonrank.serve.rollout.gateways import Gateways
from tritonrank.serve.rollout.places import check_places
from tritonrank.serve.rollout.rules import Rules
from tritonrank.serve.rollout.tritons import Tritons
from tritonrank.serve.versions.door import INSTALL, Door, key_of_environment

NEEDED = ("starlette", "uvicorn", "prometheus_client")
STOP_SECONDS = 10.0


def run_controller(
    gateways: Sequence[str],
    tritons: Sequence[str],
    folder: Path,
    rules: Rules,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    metrics_port: int = 0,
) -> None:
    """Look, decide and answer until SIGINT or SIGTERM; prints one line of JSON with its URLs once it does.

    Args:
        gateways, tritons: places of their private APIs, see ``places.py``; TRITONRANK_ADMIN_KEY is the key of all.
        folder: of the state and the ledger.
        rules: of rollouts that name none.
        host: address to listen on.
        port: of the private API; 0 takes a free one.
        metrics_port: of /metrics, which needs no key; 0 takes a free one.

    Raises:
        ServerError: there is no key, a package is missing, a port is taken, or the folder is another controller's.
    """
    if missing := missing_packages(NEEDED):
        raise ServerError(f"a rollout needs {', '.join(missing)}: {INSTALL}")
    check_places(gateways, "--gateway")
    check_places(tritons, "--triton-admin")
    if not gateways:
        raise ServerError("no gateway is named: tritonrank rollout run --gateway http://127.0.0.1:8081")
    from prometheus_client import CollectorRegistry, start_http_server
    from starlette.applications import Starlette

    from tritonrank.serve.rollout.api import rollout_routes
    from tritonrank.serve.rollout.metrics import RolloutMetrics

    key, stopping = key_of_environment(), threading.Event()
    with ExitStack() as stack:
        server = Door(port, host)
        stack.callback(server.close)
        controller = Controller(Gateways(gateways, key), Tritons(tritons, key), folder, rules)
        stack.callback(controller.close)
        registry = CollectorRegistry()
        registry.register(RolloutMetrics(controller))
        try:
            page, thread = start_http_server(metrics_port, host, registry)
        except OSError as error:
            raise ServerError(
                f"{host}:{metrics_port}: cannot listen there ({error.strerror}). Choose another: --metrics-port"
            ) from error
        stack.callback(thread.join, STOP_SECONDS)
        stack.callback(page.server_close)
        stack.callback(page.shutdown)
        looking = threading.Thread(target=controller.run, args=(stopping,), name="rollout")
        looking.start()
        stack.callback(looking.join, STOP_SECONDS)
        stack.callback(stopping.set)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stopping.set())
        stack.enter_context(server.answering(Starlette(routes=rollout_routes(controller))))
        metrics_url = f"http://{host}:{page.server_port}"
        print(json.dumps({"url": server.url, "metrics_url": metrics_url}), flush=True)
        while not stopping.wait(1.0):
            if not looking.is_alive():
                raise ServerError("the controller itself failed; its last lines say why. Start it again")
