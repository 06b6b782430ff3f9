"""Opens the engine of a model folder: by ONNX Runtime, by the native engine, or by PyTorch, on the CPU or a GPU."""

import logging
import sys
from collections.abc import Mapping
from pathlib import Path

from tritonrank_runtime.architecture import ROWS_PER_BATCH, EngineOptions
from tritonrank_runtime.architectures import architecture_of_graphs, graph_inputs, graph_names
from tritonrank_runtime.engine import MODEL_FILE, WEIGHTS_FILE, Engine, ExecutorError, Graph
from tritonrank_runtime.images import ImageTable
from tritonrank_runtime.kept_states import EXACT_BITS

ONNXRUNTIME, NATIVE, TORCH = "onnxruntime", "native", "torch"
"""The executors, as recipes and the scorer's parameter name them."""

ENGINE_PARAMETERS = ("rows_per_batch", "context_cache_bytes", "context_cache_bits")
"""The scorer's parameters that are options of its engine; where one is not told, its default is right."""

logger = logging.getLogger("tritonrank")


def model_files(folder: Path) -> list[Path]:
    """The graphs that a folder holds, in the order in which they run."""
    return [path for name in graph_names() if (path := folder / name).is_file()]


def loaded_files(folder: Path) -> list[Path]:
    """All that is loaded to score: the graphs of a folder, and the weights that they refer to."""
    return model_files(folder) + [path for path in (folder / WEIGHTS_FILE,) if path.is_file()]


def open_engine(
    folder: Path,
    threads: int = 0,
    rows_per_batch: int = ROWS_PER_BATCH,
    context_cache_bytes: int = 0,
    device: str = "cpu",
    context_cache_bits: int = EXACT_BITS,
) -> Engine:
    """The engine for the graphs in a folder.

    Args:
        folder: holds the graphs of one architecture.
        threads: as for ``EngineOptions``, on a CPU.
        rows_per_batch: as for ``EngineOptions``, on a CPU.
        context_cache_bytes: as for ``EngineOptions``.
        device: cpu or cuda; cuda:1 is the second GPU.
        context_cache_bits: as for ``EngineOptions``, on a CPU.

    Raises:
        ExecutorError: ONNX Runtime has no kernels for the device.
    """
    from tritonrank_runtime.sessions import open_session

    paths = model_files(folder) or [folder / MODEL_FILE]
    graphs = {path.name: open_session(path, device) for path in paths}
    if device != "cpu":
        return engine_of(graphs, EngineOptions.on_gpu(context_cache_bytes))
    options = EngineOptions(
        threads,
        rows_per_batch,
        context_cache_bytes,
        context_cache_bits=context_cache_bits,
        images=ImageTable.beside(folder),
    )
    return engine_of(graphs, options)


def open_executor(executor: str, folder: Path, device: str = "cpu", threads: int = 0, **options: int) -> Engine:
    """The engine that a recipe's ``serve.executor`` names; options are those of ``open_engine``.

    Where the native engine does not run, and graphs lie beside its weights, ONNX Runtime takes its place, and one line
    of the log says so.

    Raises:
        ExecutorError: what it needs is not installed, or there is no such device.
    """
    if executor == NATIVE:
        try:
            return _fast_native_engine(folder, threads, **options)
        except (ExecutorError, OSError) as error:
            if not model_files(folder):
                raise
            # Another processor than the one that chose it, say: the graphs beside it compute the same, more slowly.
            logger.warning("the native engine does not run here, ONNX Runtime computes instead: %s", error)
            executor = ONNXRUNTIME
    if executor == ONNXRUNTIME:
        return open_engine(folder, threads, device=device, **options)
    try:
        from tritonrank_runtime.torch_engine import open_torch_engine
    except ImportError as error:
        raise ExecutorError(
            f"serve.executor is {executor}, but {error.name} is not installed in {sys.prefix}: "
            "pip install torch safetensors"
        ) from None
    return open_torch_engine(folder, device, threads, **options)


def _fast_native_engine(folder: Path, threads: int, **options: int) -> Engine:
    """The native engine where it is faster than what takes its place.

    Raises:
        ExecutorError: as ``open_native_engine``; or the processor has only the kernels of any machine, which are slow.
    """
    from tritonrank_runtime.native.library import kernels_here

    if kernels_here() == "plain":
        raise ExecutorError("this processor has neither AVX2 nor AVX-512, without which it is slow")
    return open_native_engine(folder, threads, **options)


def open_native_engine(
    folder: Path,
    threads: int = 0,
    rows_per_batch: int = ROWS_PER_BATCH,
    context_cache_bytes: int = 0,
    context_cache_bits: int = EXACT_BITS,
) -> Engine:
    """The native engine of a folder that holds native.safetensors; the other arguments are those of ``open_engine``.

    Raises:
        ExecutorError: there is no such file, or it is damaged; no library and no compiler; another processor.
    """
    from tritonrank_runtime.native.graphs import open_native_graphs

    options = EngineOptions(
        threads, rows_per_batch, context_cache_bytes, is_packed=True, context_cache_bits=context_cache_bits
    )
    return engine_of(open_native_graphs(folder), options)


def engine_of(graphs: Mapping[str, Graph], options: EngineOptions | None = None) -> Engine:
    """The engine around graphs that are open already, by file name."""
    return architecture_of_graphs(graph_inputs(graphs)).engine(graphs, options or EngineOptions())
