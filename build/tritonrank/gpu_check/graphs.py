"""Graphs and plans of a pack's checkpoint, made where they are run: a pack holds the weights once, and no graph.

The same exporter, FP16 writer, INT8 writer and compiler as in a build, without its gates: they judge rankings on
held-out users, and a pack has none. Which kinds of operators stay in FP32 the pack says: those of the judged graph.
INT8 is calibrated on the pack's own requests: good for speed and for a check that plans work, no statement about
quality.
"""

from functools import cached_property
from pathlib import Path

import onnx
from tritonrank_runtime.architectures import architecture_named
from tritonrank_runtime.engine import MODEL_FILE
from tritonrank_runtime.text import RequestTokenizer, copy_text_files

from tritonrank.errors import RecipeError
from tritonrank.gpu_check.packed import Pack
from tritonrank.graphs.batched import export_batched_graph
from tritonrank.graphs.export import export_graphs
from tritonrank.quantize.half import to_half
from tritonrank.quantize.int8_tensorrt import quantize_graph
from tritonrank.rankers.pretrained import load_any_ranker
from tritonrank.rankers.scorers import Request
from tritonrank.recipe import Recipe, SampleData, ServeSettings
from tritonrank.tensorrt.compile import Builder, build_plan
from tritonrank.tensorrt.plan_engine import PlanEngine
from tritonrank.tensorrt.plans import PLAN_FILE
from tritonrank.tensorrt.profiles import profiles_of

OPSET = 18
CALIBRATION_REQUESTS = 96
CALIBRATION_CANDIDATES = 8


class Graphs:
    """Folders with model.onnx, each made when it is first asked for.

    Args:
        pack: an open pack.
        scratch: a folder that is thrown away later.
    """

    def __init__(self, pack: Pack, scratch: Path) -> None:
        self._pack, self._scratch = pack, scratch

    @cached_property
    def fp32(self) -> Path:
        folder = self._folder("fp32")
        if architecture_named(self._pack.manifest["architecture"]).has_score_batch:
            export_batched_graph(load_any_ranker(self._pack.folder), folder, OPSET)
        else:
            export_graphs(self._pack.folder, folder, OPSET)
        return folder

    @cached_property
    def fp16(self) -> Path:
        return self._halved(self.fp32, "fp16")

    @cached_property
    def int8_fp16(self) -> Path:
        folder, source = self._folder("int8"), self.fp32
        timed = [one for one in self._pack.requests if one.scores is None][:CALIBRATION_REQUESTS]
        requests = [Request(one.query, one.history, one.items[:CALIBRATION_CANDIDATES]) for one in timed]
        quantize_graph(source, folder, requests, recipe_of(self._pack))
        return self._halved(folder, "int8-fp16")

    def plan_engine(self, precision: str, builder: Builder) -> PlanEngine:
        """A plan of FP16 or "INT8 + FP16", compiled for this machine's GPU.

        Raises:
            ArtifactError: TensorRT refuses the graph or the plan.
            GateError: no layer can be quantized.
        """
        source = self.fp16 if precision == "FP16" else self.int8_fp16
        recipe = recipe_of(self._pack)
        inputs = [tensor.name for tensor in onnx.load(source / MODEL_FILE).graph.input]
        profiles = profiles_of(recipe, RequestTokenizer.from_folder(source), inputs)
        plan = build_plan(source / MODEL_FILE, profiles, recipe.tensorrt, builder, self._scratch)
        (source / PLAN_FILE).write_bytes(plan)
        return PlanEngine(source / PLAN_FILE, profiles, builder.trt)

    def _halved(self, source: Path, name: str) -> Path:
        folder = self._folder(name)
        onnx.save(to_half(onnx.load(source / MODEL_FILE), self._pack.manifest["fp32_kinds"]), folder / MODEL_FILE)
        return folder

    def _folder(self, name: str) -> Path:
        folder = self._scratch / name
        folder.mkdir(exist_ok=True)  # it is, where an export failed: whoever asks again shall hear why, too
        copy_text_files(self._pack.folder, folder)
        return folder


def recipe_of(pack: Pack) -> Recipe:
    """A recipe with the pack's serving settings, and defaults for what a pack does not know.

    A pack may come from another version: settings that this one does not have are left out.

    Args:
        pack: an open pack.

    Raises:
        RecipeError: this version does not take a setting's value.
    """
    known = {name: value for name, value in pack.manifest["serve"].items() if name in ServeSettings.model_fields}
    try:
        settings = ServeSettings(**known)
    except ValueError as error:
        raise RecipeError(f"{pack.name}: its serving settings are not this version's; pack it again: {error}") from None
    return Recipe(name=pack.manifest["recipe"], data=SampleData(), serve=settings)
