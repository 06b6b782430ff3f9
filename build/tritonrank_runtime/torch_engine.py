"""Token ids -> logits by PyTorch: a checkpoint as it was trained, without an export, behind the interface of engine.py.

For GPU machines that have PyTorch and neither TensorRT nor onnxruntime-gpu: FP16 there, but for the score head, which
stays FP32. On a CPU it is FP32, and slower than ONNX Runtime: good for checks. There runs go side by side, one thread
each, as sessions do, and PyTorch's own threads are switched off in this process: those of two scorers would wait for
each other on busy cores. A shared-context ranker needs torch and safetensors alone; a joint ranker is whatever
transformers loads. What runs is in ``torch_passes.py``.
"""

from pathlib import Path

import torch

from tritonrank_runtime.architecture import ROWS_PER_BATCH, EngineOptions
from tritonrank_runtime.architectures import architecture_of_type
from tritonrank_runtime.engine import Engine, ExecutorError
from tritonrank_runtime.engines import engine_of
from tritonrank_runtime.kept_states import EXACT_BITS
from tritonrank_runtime.torch_passes import read_config


def open_torch_engine(
    folder: Path,
    device: str = "cpu",
    threads: int = 0,
    rows_per_batch: int = ROWS_PER_BATCH,
    context_cache_bytes: int = 0,
    context_cache_bits: int = EXACT_BITS,
) -> Engine:
    """The engine for a checkpoint: FP16 on a GPU, FP32 on the CPU.

    Args:
        folder: holds config.json and model.safetensors, of either architecture and in either precision.
        device: cpu or cuda; cuda:1 is the second GPU.
        threads: runs side by side on the CPU at the most; 0 = all cores this process may use.
        rows_per_batch: rows in one run of a joint ranker on the CPU at the most.
        context_cache_bytes: keys and values of contexts that a shared-context ranker keeps on the device at the most.
        context_cache_bits: 32; PyTorch keeps them as it computes them.

    Raises:
        ExecutorError: PyTorch sees no such device, or a joint ranker lacks transformers.
    """
    check_device(device)
    if context_cache_bits != EXACT_BITS:
        raise ExecutorError(
            "serve.context_cache_dtype: PyTorch keeps keys and values as it computes them; set it to float32, or "
            "serve.executor to onnxruntime"
        )
    if device != "cpu" and (packed := architecture_of_type(read_config(folder)["model_type"]).packed(folder)):
        from tritonrank_runtime.packed.opening import open_packed_engine

        return open_packed_engine(*packed, device, context_cache_bytes=context_cache_bytes)
    graphs = architecture_of_type(read_config(folder)["model_type"]).torch_graphs(folder, device)
    if device != "cpu":
        return engine_of(graphs, EngineOptions.on_gpu(context_cache_bytes))
    torch.set_num_threads(1)
    return engine_of(graphs, EngineOptions(threads, rows_per_batch, context_cache_bytes))


def check_device(device: str) -> None:
    """Raise ExecutorError unless PyTorch can compute there."""
    if device == "cpu":
        return
    if not torch.cuda.is_available():
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "a build for CPUs"
        raise ExecutorError(
            f"PyTorch {torch.__version__} ({built}) sees no GPU. Look at nvidia-smi; builds for CUDA: pip install "
            "torch --index-url https://download.pytorch.org/whl/cu130"
        )
    number = int(device.partition(":")[2] or 0)
    if number >= torch.cuda.device_count():
        raise ExecutorError(f"{device}: PyTorch sees {torch.cuda.device_count()} GPU(s), numbered from 0")
