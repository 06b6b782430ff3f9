"""The ports of a server on this machine: free ones, those of one that runs, and what is heard there."""

import http.client
import socket
from collections.abc import Mapping
from contextlib import ExitStack
from urllib.parse import urlsplit

from tritonrank.errors import ServerError
from tritonrank.serve.running import RunningServer
from tritonrank.serve.triton_install import LOOPBACK

REFUSAL_SECONDS = 1.0
"""How long a server's word on its health is waited for; silence is no refusal."""


def choose_ports(wanted: Mapping[str, int], host: str = LOOPBACK) -> dict[str, int]:
    """Replace every 0 by a free port, all of them different.

    Raises:
        ServerError: a port that was asked for is taken, or asked for twice.
    """
    with ExitStack() as sockets:
        ports = {}
        # Given ports first, so that a free one is never one of them.
        for name, port in sorted(wanted.items(), key=lambda item: item[1] == 0):
            probe = sockets.enter_context(socket.socket())
            # As the server does: a port whose last connection closed a moment ago counts as free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(port != 0))
            try:
                probe.bind((host, port))
                probe.listen()
            except (OSError, OverflowError) as error:
                reason = getattr(error, "strerror", None) or str(error)
                raise ServerError(
                    f"port {port} cannot be used on {host} ({reason}). "
                    f"Choose another with --{name.replace('_', '-')}, or 0 for a free one"
                ) from None
            ports[name] = probe.getsockname()[1]
    return ports


def ports_of(server: RunningServer) -> dict[str, int]:
    """Those of a server that runs, by the names that ``choose_ports`` gives them."""
    urls = {"http_port": server.http_url, "grpc_port": server.grpc_url, "metrics_port": server.metrics_url}
    return {name: port for name, url in urls.items() if (port := urlsplit(url).port)}


def answers(url: str) -> bool:
    """Whether a GET on our own server gives 200; never through a proxy that the environment names."""
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.netloc, timeout=5)
    try:
        connection.request("GET", address.path)
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def refuses(http_url: str) -> bool:
    """Whether Triton says that it is not ready, or nobody listens; a busy machine's silence is neither."""
    connection = http.client.HTTPConnection(urlsplit(http_url).netloc, timeout=REFUSAL_SECONDS)
    try:
        connection.request("GET", "/v2/health/ready")
        return connection.getresponse().status != http.client.OK
    except TimeoutError:
        return False
    except (OSError, http.client.HTTPException):
        return True
    finally:
        connection.close()
