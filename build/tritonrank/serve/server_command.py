"""The command that starts tritonserver: closed to what nobody here needs, models loaded at the start.

Arguments of a process can be read by every account of the machine. So what closes a protocol is no secret: it is a
header that nobody can send. Its name holds an empty line, which ends the headers of an HTTP request, and which gRPC
refuses in a name. Its value is random all the same.
"""

import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

from tritonrank.serve.grpc_tls import tls_options
from tritonrank.serve.triton_install import LOOPBACK, TritonInstall

UNUSED_PROTOCOLS = "shared-memory,model-repository,trace,logging"
"""Clients could read, write or fill files and memory of the server, or change its models, through these; nothing here
needs them. Whoever may load a model runs code as the server's account."""
STATISTICS = "statistics"
"""How often and how fast which model ranks. Whoever runs the server reads that, on loopback or on the port of metrics;
where other machines reach it, it is closed to them, too."""
UNSENDABLE = "closed\n\n"
"""Name of the header that they are closed with."""


def server_command(
    install: TritonInstall,
    *,
    repository: Path,
    host: str,
    ports: Mapping[str, int],
    exit_timeout_seconds: int,
    shared_memory_prefix: str,
    controlled: Sequence[str] = (),
    tls: Path | None = None,
) -> list[str]:
    """The program and its arguments.

    Args:
        install: which server.
        repository: as the server sees it.
        host: the address that it listens on.
        ports: http_port, grpc_port and metrics_port.
        exit_timeout_seconds: how long requests in flight may take to finish when it stops.
        shared_memory_prefix: begins the names of what it makes in /dev/shm, so that the keeper can find what a killed
            server left there.
        controlled: the models to load at the start where others are loaded and unloaded later (``versions/``); none:
            all that are there, and no others ever.
        tls: folder with the certificate of gRPC (``grpc_tls.py``); HTTP, which has none, is on loopback then.
    """
    protocols = UNUSED_PROTOCOLS if host == LOOPBACK else f"{UNUSED_PROTOCOLS},{STATISTICS}"
    closed = f"{protocols}:{UNSENDABLE}={secrets.token_urlsafe(32)}"
    # One that is being loaded must not make the server say that it is not ready.
    control = ["--model-control-mode=explicit", *(f"--load-model={name}" for name in controlled)]
    mode = (
        [*control, "--strict-readiness=false"]
        if controlled
        else ["--model-control-mode=none", "--strict-readiness=true"]
    )
    return [
        str(install.executable),
        f"--model-repository={repository}",
        f"--backend-directory={install.backends}",
        f"--cache-directory={install.caches}",
        f"--http-port={ports['http_port']}",
        f"--grpc-port={ports['grpc_port']}",
        f"--metrics-port={ports['metrics_port']}",
        f"--http-address={host if tls is None else LOOPBACK}",
        f"--grpc-address={host}",
        f"--metrics-address={host}",
        f"--http-restricted-api={closed}",
        f"--grpc-restricted-protocol={closed}",
        *mode,
        *([] if tls is None else tls_options(tls)),
        "--exit-on-error=true",
        "--disable-auto-complete-config",
        f"--exit-timeout-secs={exit_timeout_seconds}",
        f"--backend-config=python,shm-region-prefix-name={shared_memory_prefix}",
        *install.options,
    ]
