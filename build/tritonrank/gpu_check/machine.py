"""What computes here, for the record of gpu-check."""

import importlib.metadata
import platform

from tritonrank_runtime.cores import available_cores

from tritonrank.gpu_check.report import Machine
from tritonrank.system.machine import processor_name
from tritonrank.tensorrt.plans import find_gpu

RECORDED = (
    "tritonrank", "torch", "transformers", "tokenizers", "onnxruntime", "onnxruntime-gpu", "onnx", "tensorrt", "numpy",
    "nvidia-pytriton",
)  # fmt: skip


def describe_machine(*, cpu: bool) -> Machine:
    """What computes: the first GPU, or this processor in a rehearsal."""
    gpu, versions, memory = find_gpu(), _versions(), 0.0
    name, capability = (gpu.name, gpu.compute_capability) if gpu else ("", "")
    try:
        import torch

        if torch.version.cuda:
            versions["CUDA of PyTorch"] = torch.version.cuda
        if torch.cuda.is_available():
            properties = torch.cuda.get_device_properties(0)
            name, capability = name or properties.name, capability or f"{properties.major}.{properties.minor}"
            memory = round(properties.total_memory / 1e9, 1)
    except ImportError:
        pass
    return Machine(
        gpu="" if cpu else name,
        compute_capability="" if cpu else capability,
        driver="" if cpu or gpu is None else gpu.driver,
        gpu_memory_gb=0.0 if cpu else memory,
        processor=processor_name(),
        cores=available_cores(),
        versions=versions,
    )


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in RECORDED:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
