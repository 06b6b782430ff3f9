"""Which tritonserver runs here: a container's own, or the one in the ``nvidia-pytriton`` wheel.

NVIDIA's containers hold a complete one in ``/opt/tritonserver``; where that exists it is taken, as it is the newer one
and has the GPU backends. Everywhere else it is the wheel's (``triton_wheel.py``), a release with published security
advisories, which therefore may listen on the loopback address only.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from tritonrank import triton_wheel
from tritonrank.errors import ServerError

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


def prepare_triton(run_folder: Path, host: str) -> TritonInstall:
    """Find a tritonserver and lay out in ``run_folder`` what it lacks.

    Args:
        run_folder: exists as long as the server runs.
        host: the address that it will listen on.

    Raises:
        ServerError: there is none, it is incomplete, or it must not listen there.
    """
    if (CONTAINER_ROOT / "bin" / "tritonserver").is_file():
        return TritonInstall(
            executable=CONTAINER_ROOT / "bin" / "tritonserver",
            backends=CONTAINER_ROOT / "backends",
            caches=CONTAINER_ROOT / "caches",
            environment=triton_wheel.interpreter_environment(os.environ, run_folder),
            options=CONTAINER_OPTIONS,
        )
    wheel = triton_wheel.find_triton_wheel()
    if host != LOOPBACK:
        raise ServerError(
            f"{triton_wheel.DISTRIBUTION} {wheel.version} holds a tritonserver with published security advisories, so "
            f"it listens on {LOOPBACK} only, not on {host}. To serve others, run a current release: "
            "docker compose -f deploy/compose.yaml --profile cpu up (README, On a GPU)"
        )
    backends = run_folder / "backends"
    triton_wheel.make_backend_folder(wheel, backends)
    return TritonInstall(
        executable=wheel.executable,
        backends=backends,
        caches=wheel.caches,
        environment=triton_wheel.server_environment(wheel, os.environ, run_folder),
        options=WHEEL_OPTIONS,
    )
