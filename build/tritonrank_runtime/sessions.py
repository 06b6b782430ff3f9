"""Graphs opened by ONNX Runtime, on the CPU or a GPU."""

from pathlib import Path

import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state

from tritonrank_runtime.engine import ExecutorError

RUNTIME_ERRORS: tuple[type[Exception], ...] = (
    ValueError,
    *(
        found
        for found in vars(onnxruntime_pybind11_state).values()
        if isinstance(found, type) and issubclass(found, Exception)
    ),
)
"""What ONNX Runtime raises: a class for each of its status codes, without a common base; ValueError for feeds."""

CUDA_PROVIDER = "CUDAExecutionProvider"


def open_session(model: Path, device: str = "cpu") -> onnxruntime.InferenceSession:
    """A session that computes in the thread that calls it, or on a GPU.

    Raises:
        ExecutorError: ONNX Runtime has no kernels for the device, or cannot use it.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if device != "cpu":
        return _gpu_session(model, options, device)
    # The fused operator is slower than the ones it replaces (6 to 10% of a request here).
    return onnxruntime.InferenceSession(
        str(model), options, providers=["CPUExecutionProvider"], disabled_optimizers=["SkipLayerNormFusion"]
    )


def _gpu_session(model: Path, options: onnxruntime.SessionOptions, device: str) -> onnxruntime.InferenceSession:
    available = onnxruntime.get_available_providers()
    if CUDA_PROVIDER not in available:
        raise ExecutorError(
            f"ONNX Runtime {onnxruntime.__version__} has no {CUDA_PROVIDER} (it has {', '.join(available)}); the GPU "
            "build brings it: pip uninstall onnxruntime && pip install onnxruntime-gpu"
        )
    number = device.removeprefix("cuda").removeprefix(":") or "0"
    providers = [(CUDA_PROVIDER, {"device_id": number}), "CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(str(model), options, providers=providers)
    if CUDA_PROVIDER not in session.get_providers():  # ONNX Runtime falls back to the CPU with a warning alone
        raise ExecutorError(
            f"ONNX Runtime {onnxruntime.__version__} cannot use the GPU {device}: {CUDA_PROVIDER} did not start. Its "
            "CUDA and cuDNN libraries must be found: pip install 'onnxruntime-gpu[cuda,cudnn]'"
        )
    return session
