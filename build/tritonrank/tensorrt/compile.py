"""ONNX -> TensorRT plan: strongly typed, so every tensor has the type that the graph gives it.

The same code drives ``tensorrt`` (10.13 or later), which builds for the GPU it runs on, and ``tensorrt_rtx``, which
compiles ahead of time on a machine without one. Nothing about precision is decided here: that is in the graph, where it
was judged. What is decided here comes from the recipe's ``tensorrt`` section: shapes (``profiles.py``), memory, effort,
compatibility. Timings of kernels are kept beside the plans, so the next build of a like graph is quick; TensorRT-RTX
has none. ``plan.json`` says where a plan may run (``plans.py``).
"""

import importlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx
from rich.console import Console
from tritonrank_runtime.engine import MODEL_FILE
from tritonrank_runtime.text import RequestTokenizer, copy_text_files

from tritonrank.artifacts import Draft, sha256_file, whole_file
from tritonrank.artifacts.workspace import Workspace
from tritonrank.errors import ArtifactError, RecipeError
from tritonrank.quantize.qdq_rules import asked_of, check_graph
from tritonrank.recipe import Recipe, TensorRTSettings
from tritonrank.system.progress import Step, step
from tritonrank.tensorrt.plans import (
    BUILDER_IMAGE,
    PLAN_FILE,
    TENSORRT,
    TENSORRT_RTX,
    Gpu,
    PlanIdentity,
    find_gpu,
    rebuild_command,
    version_numbers,
    write_identity,
)
from tritonrank.tensorrt.profiles import Profile, profiles_of

OLDEST_TENSORRT = (10, 13)
WORKSPACE_BYTES = 4 * 2**30
"""What a kernel may use while it is chosen and run; TensorRT takes no more than it needs."""
OPTIMIZATION_LEVEL = 3
"""Builder effort: TensorRT's own default."""
RTX_TARGETS = ("8.0", "8.9")
"""Compute capabilities that TensorRT-RTX compiles for ahead of time, to see that a graph compiles; TensorRT itself
takes that of the GPU that is there."""
ENGINE_FILE = "engine.json"
"""What TensorRT's inspector says of the plan's layers; needs a GPU."""

console = Console()


@dataclass(frozen=True)
class Builder:
    """A TensorRT that builds, and what it builds for."""

    trt: ModuleType
    gpu: Gpu | None

    @property
    def name(self) -> str:
        return self.trt.__name__

    @property
    def version(self) -> str:
        return str(self.trt.__version__)


def require_precisions(recipe: Recipe) -> None:
    """Raise RecipeError if the recipe asks for no precision."""
    if not recipe.tensorrt.precisions:
        raise RecipeError(
            f"{recipe.name}: tensorrt.precisions is empty, so there is nothing to compile; "
            "try --set 'tensorrt.precisions=[fp16]'"
        )


def compile_precision(recipe: Recipe, workspace: Workspace, precision: str, builder: Builder, draft: Draft) -> None:
    """Write model.plan and plan.json, with tokenizer and text rules beside them.

    Args:
        recipe: its tensorrt section.
        workspace: with the graph of that precision; timings of kernels are kept beside the plans.
        precision: one of tensorrt.precisions.
        builder: what compiles.
        draft: gets the plan.

    Raises:
        ArtifactError: TensorRT refuses the graph, or the graph breaks one of its rules.
    """
    source = workspace.tensorrt_graph(recipe, precision)
    copy_text_files(source, draft.folder)
    graph = source / MODEL_FILE
    report = check_graph(graph, asked_of(graph))
    report.require()
    inputs = [tensor.name for tensor in onnx.load(graph).graph.input]
    profiles = profiles_of(recipe, RequestTokenizer.from_folder(source), inputs)
    plan = build_plan(graph, profiles, recipe.tensorrt, builder, workspace.plans)
    (draft.folder / PLAN_FILE).write_bytes(plan)
    identity = identify(draft.folder, recipe, precision, builder, profiles, graph)
    draft.metrics |= {"plan": asdict(identity), "int8_nodes": report.int8}
    console.print(
        f"  {precision} by {builder.name} {builder.version}: {len(plan) / 1e6:.0f} MB, {len(profiles)} profiles, "
        f"compute capability {', '.join(identity.compute_capabilities)}",
        highlight=False,
    )
    if builder.gpu is not None and builder.name == TENSORRT:
        layers = inspect(plan, builder)
        (draft.folder / ENGINE_FILE).write_text(json.dumps(layers, indent=1) + "\n", encoding="utf-8")
        draft.metrics["layers"] = found = layer_types(layers)
        counted = ", ".join(f"{count} {kind}" for kind, count in sorted(found.items()))
        console.print(f"  layers of the engine by input type: {counted}", highlight=False)
        if report.int8 and not found.get("Int8"):
            console.print(
                f"  [yellow]{len(report.int8)} products are INT8 in the graph, no layer of the engine is[/]: "
                "it fused them in another precision; compare its speed with fp16's"
            )


def identify(
    folder: Path, recipe: Recipe, precision: str, builder: Builder, profiles: Sequence[Profile], graph: Path
) -> PlanIdentity:
    """Write plan.json beside the model.plan in a folder; gives what it says."""
    identity = PlanIdentity(
        module=builder.name,
        version=builder.version,
        compute_capabilities=targets(builder),
        gpu=builder.gpu.name if builder.gpu else "",
        driver=builder.gpu.driver if builder.gpu else "",
        precision=precision,
        version_compatible=recipe.tensorrt.version_compatible,
        hardware_compatibility=recipe.tensorrt.hardware_compatibility,
        profiles=[{name: asdict(one) for name, one in profile.items()} for profile in profiles],
        graph=sha256_file(graph),
        sha256=sha256_file(folder / PLAN_FILE),
    )
    write_identity(folder, identity)
    return identity


def find_builder(precision: str | None = None, ranks: int = 1) -> Builder:
    """``tensorrt`` if it is installed, else ``tensorrt_rtx``.

    Args:
        precision: of what is to be compiled, for the commands that messages name.
        ranks: as precision.

    Raises:
        ArtifactError: neither is, or TensorRT is too old or has no GPU; says what to install or to run.
    """
    again = rebuild_command(precision, ranks)
    for name in (TENSORRT, TENSORRT_RTX):
        try:
            trt = importlib.import_module(name)
        except ImportError:
            continue
        gpu = find_gpu()
        if name == TENSORRT and version_numbers(trt.__version__) < OLDEST_TENSORRT:
            oldest = ".".join(map(str, OLDEST_TENSORRT))
            raise ArtifactError(f"TensorRT {trt.__version__} is too old; {oldest} or later: {again}")
        if name == TENSORRT and gpu is None:
            raise ArtifactError(
                f"TensorRT {trt.__version__} builds for the GPU it runs on, and nvidia-smi finds none here. On a GPU "
                f"machine: {again}"
            )
        return Builder(trt, gpu)
    raise ArtifactError(
        "no TensorRT is installed: pip install 'tritonrank[tensorrt]' (wheels come from NVIDIA), or in a container "
        f"(docker build --target builder --tag {BUILDER_IMAGE} .): {again}. To see without a GPU whether a graph "
        "compiles: pip install 'tritonrank[tensorrt-rtx]'"
    )


def targets(builder: Builder) -> list[str]:
    """Compute capabilities that a plan is built for: that of the GPU, or those of RTX_TARGETS."""
    if builder.name == TENSORRT:
        return [builder.gpu.compute_capability] if builder.gpu else []
    return list(RTX_TARGETS)


def build_plan(
    graph: Path, profiles: list[Profile], settings: TensorRTSettings, builder: Builder, cache_folder: Path
) -> bytes:
    """Parse and build one graph.

    Raises:
        ArtifactError: the parser or the builder refuses it; says why, and where in the graph.
    """
    trt = builder.trt
    logger = _logger(trt)
    trt_builder = trt.Builder(logger)
    # TensorRT 11 has no other networks and ignores the flag.
    network = trt_builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(graph)):
        faults = [parser.get_error(place) for place in range(parser.num_errors)]
        lines = "\n".join(f"  {fault.node_name() or fault.node_operator()}: {fault.desc()}" for fault in faults)
        raise ArtifactError(f"{graph}: {builder.name} {builder.version} cannot parse it:\n{lines}")
    config = trt_builder.create_builder_config()
    _configure(config, settings, builder)
    for profile in profiles:
        added = trt_builder.create_optimization_profile()
        for name, one in profile.items():
            added.set_shape(name, one.smallest, one.best, one.largest)
        if config.add_optimization_profile(added) < 0:
            raise ArtifactError(f"{graph}: {builder.name} refuses the optimization profile {profile}:\n{logger.tail()}")
    with timing_cache(config, builder, cache_folder), _progress(trt) as monitor:
        config.progress_monitor = monitor
        plan = trt_builder.build_serialized_network(network, config)
        if monitor.is_interrupted:
            raise KeyboardInterrupt
    if plan is None:
        raise ArtifactError(f"{graph}: {builder.name} {builder.version} cannot build it:\n{logger.tail()}")
    return bytes(plan)


def inspect(plan: bytes, builder: Builder) -> dict[str, Any]:
    """TensorRT's own account of an engine's layers; needs the GPU that it was built for."""
    trt = builder.trt
    runtime = trt.Runtime(_logger(trt))
    runtime.engine_host_code_allowed = True  # version-compatible plans carry code; this one was built just now
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise ArtifactError(f"{builder.name} {builder.version} cannot read the plan that it has just built")
    text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def layer_types(engine: dict[str, Any]) -> dict[str, int]:
    """How many layers of an inspected engine read which type first: Int8, Half, Float ...

    A region that TensorRT has fused is one layer, and counts by what goes into it.
    """
    counts: Counter[str] = Counter()
    for layer in engine.get("Layers", []):
        if not isinstance(layer, dict) or not layer.get("Inputs"):
            continue
        described = layer["Inputs"][0].get("Format/Datatype") or layer["Inputs"][0].get("Datatype", "unknown")
        counts[str(described).split()[-1].title()] += 1
    return dict(counts)


def _configure(config: Any, settings: TensorRTSettings, builder: Builder) -> None:
    trt = builder.trt
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES)
    config.builder_optimization_level = OPTIMIZATION_LEVEL
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # or the inspector has no layers to tell
    if settings.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if settings.hardware_compatibility != "none":
        name = settings.hardware_compatibility.replace("-", "_").upper()
        config.hardware_compatibility_level = getattr(trt.HardwareCompatibilityLevel, name)
    if builder.name == TENSORRT_RTX:
        wanted = targets(builder)
        config.num_compute_capabilities = len(wanted)
        for place, capability in enumerate(wanted):
            config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{capability.replace('.', '')}"), place)


@contextmanager
def timing_cache(config: Any, builder: Builder, folder: Path) -> Iterator[None]:
    """Reuse the kernels' timings of earlier builds by the same TensorRT on the same GPU, and keep this one's."""
    if builder.name == TENSORRT_RTX:  # it times nothing ahead of time
        yield
        return
    gpu = builder.gpu.name.replace(" ", "-") if builder.gpu else "none"
    path = folder / f"timing-{builder.version}-{gpu}.cache"
    kept = path.read_bytes() if path.is_file() else b""
    if not config.set_timing_cache(config.create_timing_cache(kept), ignore_mismatch=False):
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)  # damaged: start anew
    yield
    with whole_file(path) as draft:
        draft.write_bytes(bytes(config.get_timing_cache().serialize()))


def _logger(trt: Any) -> Any:
    """A logger that keeps what TensorRT complains about, for the error message."""

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            super().__init__()
            self._lines: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                self._lines.append(message)

        def tail(self) -> str:
            return "\n".join(f"  {line}" for line in self._lines[-5:]) or "  (it does not say why)"

    return Logger()


@contextmanager
def _progress(trt: Any) -> Iterator[Any]:
    """Bars of the builder's phases; Ctrl-C ends the build at its next step."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            super().__init__()
            self.is_interrupted = False
            self.phases = ExitStack()
            self._bars: dict[str, tuple[Step, ExitStack]] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            opened = ExitStack()
            bar = opened.enter_context(step(phase_name if parent_phase is None else f"  {phase_name}", num_steps))
            self._bars[phase_name] = (bar, opened)
            self.phases.callback(opened.close)

        def step_complete(self, phase_name: str, step: int) -> bool:  # TensorRT's names
            try:
                self._bars[phase_name][0].update(completed=step + 1)
            except KeyboardInterrupt:
                self.is_interrupted = True
            return not self.is_interrupted

        def phase_finish(self, phase_name: str) -> None:
            self._bars.pop(phase_name)[1].close()

    monitor = Monitor()
    with monitor.phases:
        yield monitor
