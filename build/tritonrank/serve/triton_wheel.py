"""Find a tritonserver that pip installed, and tell it where its parts are.

The ``nvidia-pytriton`` wheel carries a complete tritonserver with the Python backend. Only its ``tritonserver/``
folder and its libraries are used here, never its Python API. The wheel leaves three things to the caller, and
this file is about them: the backend folder lacks the stub (the process a Python model runs in; there is one per
Python version), the libraries lie outside the loader's path, and the stub takes the first ``python3`` on PATH for its
own, whatever started the server (PYTHONPATH and the other PYTHON variables have no effect there).
"""

import ctypes.util
import importlib.metadata
import os
import shutil
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tritonrank.errors import ServerError

DISTRIBUTION = "nvidia-pytriton"
PREFIX_VARIABLE = "TRITONRANK_PREFIX"
"""Environment variable naming the Python environment that models must run in; they compare it with sys.prefix."""
NO_TELEMETRY = {"ORT_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
"""onnxruntime 1.29 and later call Microsoft from every process that loads them, unless told not to."""


@dataclass(frozen=True)
class TritonWheel:
    """Where the parts of an installed wheel lie; all paths exist."""

    version: str
    """of the wheel, not of tritonserver"""
    executable: Path
    python_backend: Path
    stub: Path
    caches: Path
    libraries: Path
    """shared libraries, under names that carry a hash"""


def find_triton_wheel() -> TritonWheel:
    """The wheel in this Python environment.

    Raises:
        ServerError: it is not installed, is incomplete, or has no stub for this Python version.
    """
    try:
        distribution = importlib.metadata.distribution(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        raise ServerError(
            f"tritonserver is not installed: no {DISTRIBUTION} in {sys.prefix}. Run: pip install 'tritonrank[server]'"
        ) from None
    root = Path(str(distribution.locate_file("pytriton/tritonserver")))
    python_version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stubs = root / "python_backend_stubs"
    wheel = TritonWheel(
        version=distribution.version,
        executable=root / "bin" / "tritonserver",
        python_backend=root / "backends" / "python",
        stub=stubs / python_version / "triton_python_backend_stub",
        caches=root / "caches",
        libraries=root.parents[1] / "nvidia_pytriton.libs",
    )
    for part in (wheel.executable, wheel.python_backend, wheel.caches, wheel.libraries):
        if not part.exists():
            raise ServerError(
                f"{DISTRIBUTION} {wheel.version} is incomplete: {part} is missing. "
                f"Run: pip install --force-reinstall --no-deps {DISTRIBUTION}=={wheel.version}"
            )
    if not wheel.stub.exists():
        supported = ", ".join(sorted((path.name for path in stubs.iterdir()), key=lambda name: int(name.split(".")[1])))
        raise ServerError(
            f"{DISTRIBUTION} {wheel.version} cannot run Python {python_version} models; it supports {supported}. "
            "Make an environment with one of these, and install 'tritonrank[server]' there"
        )
    return wheel


def make_backend_folder(wheel: TritonWheel, folder: Path) -> None:
    """Fill ``folder`` with what completes the wheel's Python backend; pass it as ``--backend-directory``.

    The stub is a copy: Triton makes it executable, which only its owner may do, and the wheel may be another's.
    """
    python_backend = folder / "python"
    python_backend.mkdir(parents=True)
    for source in wheel.python_backend.glob("*.*"):
        (python_backend / source.name).symlink_to(source)
    stub = python_backend / wheel.stub.name
    shutil.copyfile(wheel.stub, stub)
    stub.chmod(0o755)


def server_environment(wheel: TritonWheel, inherited: Mapping[str, str], temporary_folder: Path) -> dict[str, str]:
    """Environment variables for tritonserver and its stubs.

    Raises:
        ServerError: the stub would find no ``python3`` of this environment, or no shared libpython.
    """
    environment = interpreter_environment(inherited, temporary_folder)
    environment["LD_LIBRARY_PATH"] = _path_list(
        str(wheel.libraries), _libpython_folder(), inherited.get("LD_LIBRARY_PATH")
    )
    return environment


def interpreter_environment(inherited: Mapping[str, str], temporary_folder: Path) -> dict[str, str]:
    """Environment variables that make any tritonserver run its models in this Python environment.

    Raises:
        ServerError: the stub would find no ``python3`` of this environment.
    """
    # Not resolved: in a virtual environment the link's own folder is what makes python3 the right one.
    python_folder = Path(sys.executable).parent
    if not (python_folder / "python3").exists():
        raise ServerError(
            f"{python_folder} has no python3, which the Python backend starts models with. "
            "Run tritonrank from a virtual environment: python -m venv .venv"
        )
    environment = {**inherited, **NO_TELEMETRY}
    environment["PATH"] = _path_list(str(python_folder), inherited.get("PATH"))
    environment[PREFIX_VARIABLE] = sys.prefix
    environment["TMPDIR"] = str(temporary_folder)
    return environment


def _libpython_folder() -> str | None:
    """Folder of this interpreter's shared library; None where the loader finds one by itself."""
    library = f"libpython{sys.version_info.major}.{sys.version_info.minor}.so.1.0"
    for folder in (sysconfig.get_config_var("LIBDIR"), os.path.join(sys.base_prefix, "lib")):  # noqa: PTH118
        if folder and Path(folder, library).exists():
            return str(folder)
    if ctypes.util.find_library(library.removeprefix("lib").removesuffix(".so.1.0")) == library:
        return None
    raise ServerError(
        f"{library} was not found, and the Python backend needs it: this Python was built without a shared library. "
        f"Use a Python that has one (apt-get install libpython{library[9:13].rstrip('.')}, conda, uv, "
        "or pyenv with PYTHON_CONFIGURE_OPTS=--enable-shared)"
    )


def _path_list(*entries: str | None) -> str:
    return os.pathsep.join(entry for entry in entries if entry)
