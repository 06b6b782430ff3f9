"""Everything on this machine that can run a pack's ranker: PyTorch in several ways, ONNX Runtime, TensorRT.

Each is found or it is missing for a reason that says what would bring it; nothing stands in for something else. All
imports that a bare machine may lack are made where they are used: PyTorch alone is enough for half of the table.

The baseline is PyTorch in eager mode, FP16 on a GPU. Beside it stands what sharing the context saves (the same network,
pair by pair, which gives the same scores) and what launching hundreds of kernels one by one costs (the same kernels
captured once as CUDA graphs, and fused by torch.compile).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from tritonrank_runtime.architecture import EngineOptions
from tritonrank_runtime.architectures import architecture_named
from tritonrank_runtime.engine import Engine, ExecutorError, Logits, Tensors
from tritonrank_runtime.engines import engine_of, open_engine

from tritonrank.errors import TritonRankError
from tritonrank.gpu_check.network_runs import CudaGraphRunner, PaddedRunner, PairByPair, runs_here, smallest_request
from tritonrank.gpu_check.packed import Pack
from tritonrank.gpu_check.report import Missing
from tritonrank.gpu_check.time_budget import TimeBudget, TimeUpError
from tritonrank.tensorrt.plans import TENSORRT

if TYPE_CHECKING:
    from tritonrank_runtime.network import SharedContextNetwork
    from tritonrank_runtime.packed.engine import PackedEngine

    from tritonrank.gpu_check.graphs import Graphs
    from tritonrank.tensorrt.compile import Builder

EXACT_TOLERANCE = 1e-4
OPENING_SECONDS, OPENED_SHARE = 100.0, 0.45
"""For one executor, most of which torch.compile takes; and share of the whole after which no other is opened."""
BFLOAT_FACTOR = 8
"""BF16 has three bits less than FP16."""
HALF_TOLERANCE = 1e-2
INT8_TOLERANCE = 0.25
"""INT8 may change logits by 3% of their spread (root mean square): the largest of thousands is several times that. Its
gate is NDCG, on the CPU; this finds plans that are broken."""


@dataclass(frozen=True)
class Executor:
    """A way to run the ranker."""

    name: str
    precision: str
    tolerance: float
    """of ``relative_difference`` to the CPU's scores"""
    run: Callable[[Tensors], Logits]
    is_baseline: bool = False
    packed: "PackedEngine | None" = None
    """the engine, where it is one that packs several requests into a launch"""


Found = Executor | Missing
Outcome = TypeVar("Outcome")


def attempt(what: str, call: Callable[[], Outcome], where: str = "") -> Outcome | Missing:
    """What a call gives, or why it gives nothing; whatever fails must not take the others along.

    Args:
        what: the executor that is made, asked or timed.
        call: does so.
        where: added to the reason, with a space before it.
    """
    try:
        return call()
    except (TritonRankError, ExecutorError) as error:
        return Missing(what, str(error))
    except Exception as error:  # noqa: BLE001 - exporters, drivers and compilers have no error in common
        return Missing(what, f"it failed{where}: {first_line(error)}")


def find_executors(pack: Pack, device: str, scratch: Path) -> Iterator[Found]:
    """All ways to run a pack's ranker on this machine, the baseline first; each is opened when it is asked for.

    Args:
        pack: an open pack.
        device: cuda, or cpu for a rehearsal.
        scratch: an empty folder for graphs and plans.
    """
    yield from _torch_executors(pack, device)
    yield from _graph_executors(pack, device, scratch)


def opened_within(executors: Iterator[Outcome], budget: TimeBudget) -> Iterator[Outcome | Missing]:
    """Each as it is opened, as long as there is time for it."""
    while True:
        try:
            with budget.part(OPENING_SECONDS, OPENED_SHARE):
                found = next(executors)
        except StopIteration:
            return
        except TimeUpError as error:
            yield Missing("the executors that are left", str(error))
            return
        yield found


def _torch_executors(pack: Pack, device: str) -> Iterator[Found]:
    precision = "FP32" if device == "cpu" else "FP16"
    tolerance = EXACT_TOLERANCE if device == "cpu" else HALF_TOLERANCE

    def found(name: str, run: Callable[[Tensors], Logits], *, is_baseline: bool = False) -> Executor:
        return Executor(f"PyTorch {precision}, {name}", precision, tolerance, run, is_baseline)

    try:
        from tritonrank_runtime import torch_engine, torch_passes

        torch_engine.check_device(device)
        eager = _eager_engine(pack, device)
    except ImportError as error:
        yield Missing("PyTorch", f"{error.name} is not installed: pip install torch safetensors tokenizers")
        return
    except ExecutorError as error:
        yield Missing("PyTorch", str(error))
        return
    yield found("eager", _one_by_one(eager), is_baseline=True)
    yield from _packed_executors(pack, device, tolerance)
    if not runs_here(architecture_named(pack.manifest["architecture"]).inputs):
        return
    network = torch_passes.load_network(pack.folder)
    pairs = network if device == "cpu" else torch_passes.as_half(network, device)
    yield found("eager, pair by pair", PairByPair(pairs, device).run)
    folded = torch_passes.load_network(pack.folder).folded()
    longest = torch_passes.row_positions(folded.config)
    if device == "cpu":
        yield found("padded", PaddedRunner(folded.score_batch, longest).run)
        yield Missing("CUDA graphs and torch.compile", "left out of a rehearsal; the padded way runs the same code")
        return
    half = torch_passes.as_half(folded, device)
    yield found("CUDA graphs", CudaGraphRunner(half.score_batch, longest).run)
    yield from _compiled(half, longest, found)


def _eager_engine(pack: Pack, device: str) -> Engine:
    """The checkpoint padded and kernel by kernel: what every other way is held against."""
    graphs = architecture_named(pack.manifest["architecture"]).torch_graphs(pack.folder, device)
    return engine_of(graphs, None if device == "cpu" else EngineOptions.on_gpu())


def _packed_executors(pack: Pack, device: str, tolerance: float) -> Iterator[Found]:
    """The engine that serves on a GPU, and what is left of it without fused kernels, and in BF16."""
    ways: tuple[tuple[str, str, bool], ...] = (("packed", "", False),)
    if device != "cpu":
        ways = ("packed, fused", "float16", True), ("packed", "float16", False), ("packed, fused", "bfloat16", True)
    for what, precision, is_compiled in ways:
        short = {"": "FP32", "float16": "FP16", "bfloat16": "BF16"}[precision]
        name = f"PyTorch {short}, {what}"
        slack = BFLOAT_FACTOR if precision == "bfloat16" else 1

        def make(
            name: str = name,
            short: str = short,
            slack: int = slack,
            precision: str = precision,
            is_compiled: bool = is_compiled,
        ) -> Found:
            from tritonrank_runtime.packed.opening import open_packed_engine

            packed = architecture_named(pack.manifest["architecture"]).packed(pack.folder)
            if packed is None:
                return Missing(name, "the packed engine does not compute this family")
            if is_compiled and not packed[1].network_type.gains_by_compiling:
                if precision == "float16":  # the way that follows
                    return Missing(name, "its kernels are fused already: torch.compile would find nothing")
                name, is_compiled = name.replace(", fused", ""), False
            engine = open_packed_engine(*packed, device, precision=precision, is_compiled=is_compiled)
            if is_compiled and not engine.launcher.is_compiled:
                return Missing(name, "torch.compile failed here; the log says why")
            return Executor(name, short, slack * tolerance, _one_by_one(engine), packed=engine)

        yield attempt(name, make)


def _compiled(
    network: "SharedContextNetwork", longest: tuple[int, int], found: Callable[..., Executor]
) -> Iterator[Found]:
    import torch

    def make() -> Executor:
        runner = CudaGraphRunner(torch.compile(network.score_batch, dynamic=True), longest)
        runner.run(smallest_request())  # what the compiler lacks (Triton, a C compiler) shows now
        return found("torch.compile, CUDA graphs", runner.run)

    yield attempt("torch.compile", make)


def _graph_executors(pack: Pack, device: str, scratch: Path) -> Iterator[Found]:
    """Those that need graphs, which are made of the pack's checkpoint."""
    providers = _onnxruntime_faults(device)
    builder, no_tensorrt = (None, "left out of a rehearsal") if device == "cpu" else _tensorrt_builder()
    if providers:
        yield Missing("ONNX Runtime", providers)
    if builder is None:
        yield Missing("TensorRT", no_tensorrt)
    if providers and builder is None:
        return
    try:
        from tritonrank.gpu_check import graphs as gpu_graphs
    except ImportError as error:
        yield Missing(
            "graphs",
            f"{error.name} is not installed, which makes them of the checkpoint: pip install 'tritonrank[build]'",
        )
        return
    graphs = gpu_graphs.Graphs(pack, scratch)
    if not providers:
        yield attempt("ONNX Runtime", partial(_onnxruntime, graphs, device))
    if builder is not None:
        for precision, tolerance in (("FP16", HALF_TOLERANCE), ("INT8 + FP16", INT8_TOLERANCE)):
            yield attempt(f"TensorRT {precision}", partial(_tensorrt, graphs, builder, precision, tolerance))


def _tensorrt(graphs: "Graphs", builder: "Builder", precision: str, tolerance: float) -> Executor:
    return Executor(f"TensorRT {precision}", precision, tolerance, graphs.plan_engine(precision, builder).run)


def _onnxruntime(graphs: "Graphs", device: str) -> Executor:
    if device == "cpu":
        engine = open_engine(graphs.fp32)
        return Executor("ONNX Runtime FP32", "FP32", EXACT_TOLERANCE, _one_by_one(engine))
    return Executor("ONNX Runtime FP16", "FP16", HALF_TOLERANCE, _one_by_one(open_engine(graphs.fp16, device=device)))


def _onnxruntime_faults(device: str) -> str:
    """Why ONNX Runtime cannot run graphs on the device; empty if it can."""
    import onnxruntime
    from tritonrank_runtime.sessions import CUDA_PROVIDER

    if device == "cpu" or CUDA_PROVIDER in onnxruntime.get_available_providers():
        return ""
    return (
        f"ONNX Runtime {onnxruntime.__version__} here is the build for CPUs: "
        "pip uninstall onnxruntime && pip install onnxruntime-gpu"
    )


def _tensorrt_builder() -> tuple["Builder | None", str]:
    """compile.Builder, or None and why there is none."""
    try:
        from tritonrank.tensorrt.compile import find_builder

        builder = find_builder()
    except ImportError as error:
        return None, f"{error.name} is not installed: pip install 'tritonrank[build,tensorrt]'"
    except TritonRankError as error:
        return None, str(error)
    if builder.name != TENSORRT:
        return None, "only TensorRT for RTX is installed, which Triton does not use: pip install 'tritonrank[tensorrt]'"
    return builder, ""


def _one_by_one(engine: Engine) -> Callable[[Tensors], Logits]:
    return lambda tensors: engine.run([tensors])[0]


def first_line(error: Exception) -> str:
    """An error in a few words."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]
