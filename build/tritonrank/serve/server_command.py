"""The command that starts tritonserver: closed to what nobody here needs, models loaded once, at the start."""

import secrets
from collections.abc import Mapping
from pathlib import Path

from tritonrank.serve.triton_install import TritonInstall

UNUSED_PROTOCOLS = "shared-memory,model-repository,trace,logging"
"""Clients could read, write or fill files and memory of the server, or change its models, through these; nothing here
needs them. They answer to a secret that nobody knows."""


def server_command(
    install: TritonInstall,
    *,
    repository: Path,
    host: str,
    ports: Mapping[str, int],
    exit_timeout_seconds: int,
    shared_memory_prefix: str,
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
    """
    closed = f"{UNUSED_PROTOCOLS}:closed={secrets.token_urlsafe(32)}"
    return [
        str(install.executable),
        f"--model-repository={repository}",
        f"--backend-directory={install.backends}",
        f"--cache-directory={install.caches}",
        f"--http-port={ports['http_port']}",
        f"--grpc-port={ports['grpc_port']}",
        f"--metrics-port={ports['metrics_port']}",
        f"--http-address={host}",
        f"--grpc-address={host}",
        f"--metrics-address={host}",
        f"--http-restricted-api={closed}",
        f"--grpc-restricted-protocol={closed}",
        "--model-control-mode=none",
        "--exit-on-error=true",
        "--strict-readiness=true",
        "--disable-auto-complete-config",
        f"--exit-timeout-secs={exit_timeout_seconds}",
        f"--backend-config=python,shm-region-prefix-name={shared_memory_prefix}",
        *install.options,
    ]
