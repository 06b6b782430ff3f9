"""Plans and where they may run: a TensorRT plan fits one TensorRT version and one GPU.

Triton finds that out when it loads the plan, after the start, with a message about magic tags. Here every plan has a
``plan.json`` beside it that says what it was built with, and whoever serves it compares that with the machine first.
"""

import ctypes
import importlib
import json
import re
import shutil
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tritonrank.artifacts import sha256_file
from tritonrank.errors import ArtifactError

PLAN_FILE = "model.plan"
IDENTITY_FILE = "plan.json"
BUILDER_IMAGE = "tritonrank-builder"
"""Built from the Dockerfile, whose one tag is the image that serves: so plans meet the TensorRT that made them."""
TENSORRT, TENSORRT_RTX = "tensorrt", "tensorrt_rtx"


@dataclass(frozen=True)
class Gpu:
    """What nvidia-smi says of the first GPU."""

    name: str
    compute_capability: str
    driver: str


@dataclass(frozen=True)
class PlanIdentity:
    """What ``plan.json`` says."""

    module: str
    """tensorrt or tensorrt_rtx"""
    version: str
    compute_capabilities: list[str]
    gpu: str
    """name of the GPU that it was built on; empty: none (TensorRT-RTX compiles without)"""
    driver: str
    precision: str
    version_compatible: bool
    hardware_compatibility: str
    profiles: list[dict[str, Any]]
    graph: str
    """sha256 of the ONNX file; of plans of several ranks: of the one that was cut"""
    sha256: str
    """of the plan"""


def rebuild_command(precision: str | None = None, ranks: int = 1) -> str:
    """What compiles plans in the image that serves them, on the machine that serves.

    Args:
        precision: one of tensorrt.precisions; None: whoever reads the command knows it.
        ranks: GPUs that compute each layer together.
    """
    run = f'docker run --rm --gpus all --user "$(id -u):$(id -g)" -v "$PWD:/work" {BUILDER_IMAGE}'
    return f"{run} tritonrank compile RECIPE {plan_settings(precision, ranks)}"


def plan_settings(precision: str | None, ranks: int) -> str:
    """The options of a command that works on such plans."""
    devices = f" --set tensor_parallel={ranks}" if ranks > 1 else ""
    return f"--set 'tensorrt.precisions=[{precision or 'PRECISION'}]'{devices}"


def write_identity(folder: Path, identity: PlanIdentity) -> None:
    (folder / IDENTITY_FILE).write_text(json.dumps(asdict(identity), indent=1) + "\n", encoding="utf-8")


def read_identity(folder: Path) -> PlanIdentity:
    """The identity of the plan in a folder.

    Raises:
        ArtifactError: there is none, or it cannot be read.
    """
    path = folder / IDENTITY_FILE
    try:
        return PlanIdentity(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ArtifactError(
            f"{folder}: {PLAN_FILE} without {IDENTITY_FILE}: nobody knows where it may run. Rebuild it: "
            + rebuild_command(ranks=_ranks_in(folder))
        ) from None
    except (OSError, ValueError, TypeError) as error:
        again = rebuild_command(ranks=_ranks_in(folder))
        raise ArtifactError(f"{path}: cannot be read ({error}). Rebuild the plan: {again}") from None


def check_plans(repository: Path) -> None:
    """Check every plan below a folder against this machine; without plans there is nothing to check.

    Raises:
        ArtifactError: as ``check_plan``.
    """
    folders = sorted({path.parent for path in repository.rglob(PLAN_FILE)})
    if folders:
        version, gpu = runtime_version(), find_gpu()
        for folder in folders:
            check_plan(folder, version, gpu)


def check_plan(folder: Path, version: str | None, gpu: Gpu | None) -> None:
    """Refuse a plan that this TensorRT or this GPU cannot run.

    Args:
        folder: holds model.plan and plan.json.
        version: of the TensorRT that will load it; None: there is none here.
        gpu: that will run it; None: there is none here.

    Raises:
        ArtifactError: the plan is damaged or was made for something else; says what, and the command that rebuilds it.
    """
    identity, path = read_identity(folder), folder / PLAN_FILE
    again = rebuild_command(identity.precision, _ranks_in(folder))
    if not path.is_file() or sha256_file(path) != identity.sha256:
        raise ArtifactError(f"{path}: truncated or changed since it was built (sha256 differs). Rebuild it: {again}")
    faults = []
    if identity.module == TENSORRT_RTX:
        faults.append("it is a TensorRT-RTX engine, which Triton's tensorrt backend does not load")
    elif version is None:
        faults.append("no TensorRT is found here")
    elif not _version_fits(identity, version):
        faults.append(f"it was built with TensorRT {identity.version}, here is {version}")
    if gpu is None:
        faults.append("no GPU is found here (nvidia-smi)")
    elif not _gpu_fits(identity, gpu):
        built = f"{identity.gpu or 'no GPU'} (compute capability {', '.join(identity.compute_capabilities)})"
        faults.append(f"it was built on {built}, here is {gpu.name} ({gpu.compute_capability})")
    if faults:
        raise ArtifactError(
            f"{path} cannot be served: {'; '.join(faults)}. Rebuild it on the machine that serves: {again}"
        )


def _ranks_in(folder: Path) -> int:
    return len(list(folder.glob(f"{PLAN_FILE}.rank*"))) or 1


def runtime_version() -> str | None:
    """The version of the TensorRT that would load a plan: of the Python module, else of the library."""
    try:
        return str(importlib.import_module(TENSORRT).__version__)
    except ImportError:
        pass
    for name in ("libnvinfer.so", "libnvinfer.so.11", "libnvinfer.so.10"):
        try:
            number = int(ctypes.CDLL(name).getInferLibVersion())
        except (OSError, AttributeError):
            continue
        return f"{number // 10_000}.{number // 100 % 100}.{number % 100}"
    return None


def find_gpu() -> Gpu | None:
    """The first GPU that nvidia-smi lists; None without one."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return None
    query = [command, "--query-gpu=name,compute_cap,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    parts = [part.strip() for part in (done.stdout.splitlines() or [""])[0].split(",")]
    return Gpu(*parts) if len(parts) == 3 else None


def version_numbers(version: str) -> tuple[int, ...]:
    """Major, minor and patch; the library does not tell more."""
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def _version_fits(identity: PlanIdentity, version: str) -> bool:
    built, here = version_numbers(identity.version), version_numbers(version)
    if identity.version_compatible:  # loads on later versions, the next major one included
        return built <= here and here[0] - built[0] <= 1
    return built == here


def _gpu_fits(identity: PlanIdentity, gpu: Gpu) -> bool:
    if identity.hardware_compatibility == "ampere-plus":
        return version_numbers(gpu.compute_capability) >= (8, 0)
    same_capability = gpu.compute_capability in identity.compute_capabilities
    if identity.hardware_compatibility == "same-compute-capability" or identity.module == TENSORRT_RTX:
        return same_capability
    return same_capability and gpu.name == identity.gpu
