"""Which tritonserver runs here: a container's own, or the one in the ``nvidia-pytriton`` wheel.

NVIDIA's containers hold a complete one in ``/opt/tritonserver``; where that exists it is taken, as it is the newer one
and has the GPU backends. Everywhere else it is the wheel's (``triton_wheel.py``), a release with published security
advisories, which therefore may listen on the loopback address only.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from tritonrank.errors import ServerError
from tritonrank.serve import triton_wheel

CONTAINER_ROOT = Path("/opt/tritonserver")
LOOPBACK = "127.0.0.1"
HTTP_MAX_INPUT_BYTES = 64 << 20
"""The default of Triton 2.59 and later, said aloud. As binary tensors it holds 1,000 candidates of 65,536 bytes, the
most that a recipe accepts by default, but not as many history items of that length beside them. gRPC has no such
option; a proxy has to bound it."""
CONTAINER_OPTIONS = (f"--http-max-input-size={HTTP_MAX_INPUT_BYTES}",)
"""What the wheel's release does not know yet. From 2.68 on clients' shared memory is off without an option."""
WHEEL_OPTIONS = ("--allow-gpu-metrics=false",)


@dataclass(frozen=True)
class TritonInstall:
    """A tritonserver that is ready to be started."""

    executable: Path
    backends: Path
    caches: Path
    environment: dict[str, str]
    options: tuple[str, ...]
    """tritonserver arguments for this release"""


def is_container() -> bool:
    """Whether this is a container with a tritonserver of its own."""
    return (CONTAINER_ROOT / "bin" / "tritonserver").is_file()


def check_host(host: str) -> None:
    """Whether the server that is here may listen at an address.

    Raises:
        ServerError: it may not, or there is no server.
    """
    if not is_container():
        wheel = triton_wheel.find_triton_wheel()
        if host != LOOPBACK:
            raise ServerError(
                f"{triton_wheel.DISTRIBUTION} {wheel.version} holds a tritonserver with published security "
                f"advisories, so it listens on {LOOPBACK} only, not on {host}. To serve others, run a current release: "
                "docker compose -f deploy/compose.yaml --profile cpu up (README, On a GPU)"
            )
    elif ":" in host:
        raise ServerError(
            f"--host {host}: Triton is started on IPv4 addresses only here. Choose {LOOPBACK}, or 0.0.0.0 for every "
            "IPv4 address"
        )


def prepare_triton(run_folder: Path) -> TritonInstall:
    """Find a tritonserver and lay out in ``run_folder`` what it lacks.

    Args:
        run_folder: exists as long as the server runs.

    Raises:
        ServerError: there is none, or it is incomplete.
    """
    if is_container():
        return TritonInstall(
            executable=CONTAINER_ROOT / "bin" / "tritonserver",
            backends=CONTAINER_ROOT / "backends",
            caches=CONTAINER_ROOT / "caches",
            environment=triton_wheel.interpreter_environment(os.environ, run_folder),
            options=CONTAINER_OPTIONS,
        )
    wheel = triton_wheel.find_triton_wheel()
    backends = run_folder / "backends"
    triton_wheel.make_backend_folder(wheel, backends)
    return TritonInstall(
        executable=wheel.executable,
        backends=backends,
        caches=wheel.caches,
        environment=triton_wheel.server_environment(wheel, os.environ, run_folder),
        options=WHEEL_OPTIONS,
    )
