"""What computes the served ranker on this CPU: every executor opened, measured in turns, judged, and the fastest taken.

ONNX Runtime runs the graphs that the gate passed. The native engine computes from the same numbers
(``graphs/native_weights.py``): INT8 as the graphs have it, or BF16 from the FP32 graphs where the processor multiplies
BF16, which needs no calibration and changes the logits by a fraction of INT8's noise. PyTorch is not tried on a CPU: it
computes the checkpoint in FP32, which ONNX Runtime does faster.

All of them take turns on requests of the recipe's own test users, and what counts is the median of the ratios request
by request. Whatever is faster than ONNX Runtime has to pass the gate, against what ONNX Runtime serves and against the
teacher; where none does, ONNX Runtime stays.
"""

import json
import shutil
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from tritonrank_runtime.cores import available_cores
from tritonrank_runtime.engine import Engine, ExecutorError
from tritonrank_runtime.engines import NATIVE, ONNXRUNTIME, open_engine, open_native_engine
from tritonrank_runtime.native.weights import NATIVE_FILE
from tritonrank_runtime.text import RequestTokenizer, TextRules, copy_text_files

from tritonrank.artifacts import Draft
from tritonrank.artifacts.rungs import gate_metric, quantized_name, served_rung
from tritonrank.artifacts.workspace import Workspace
from tritonrank.data.dataset import Dataset
from tritonrank.data.requests import requests_of
from tritonrank.errors import ArtifactError, GateError
from tritonrank.graphs.native_weights import native_weights
from tritonrank.graphs.product_speed import product_gflops
from tritonrank.judge.budgets import step_budget, total_budget
from tritonrank.judge.engine_words import ENGINE_FILE, engine_in_words
from tritonrank.judge.evaluate import judge_artifact
from tritonrank.judge.gate import Verdict, show_verdict, verdict
from tritonrank.judge.gatekeeper import judge_teacher
from tritonrank.rankers.architectures import architecture_of
from tritonrank.rankers.pretrained import load_config
from tritonrank.rankers.scorers import Request, RequestTensors, tensors_of
from tritonrank.recipe import Recipe
from tritonrank.system.machine import cpu_flags, has_bf16_products, processor_name
from tritonrank.system.progress import track

TIMED_REQUESTS = 12
TIMED_CANDIDATES = 100
MOST_SECONDS = 8.0
"""Of measuring; a slow machine measures fewer requests, at least ``FEWEST_REQUESTS``."""
FEWEST_REQUESTS = 3
WORTH = 0.95
"""Of ONNX Runtime's time: what takes longer is not worth files of its own."""
TOLD_FLAGS = ("avx2", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
"""Flags of the processor that decide how fast an executor is."""

console = Console()


@dataclass
class Candidate:
    """An executor with what it loads."""

    name: str
    executor: str
    precision: str
    folder: Path
    engine: Engine
    seconds: list[float] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)

    @property
    def milliseconds(self) -> float:
        return 1_000 * statistics.median(self.seconds)

    def ratios(self, other: "Candidate") -> list[float]:
        """Median and quartiles of its time over another's, request by request."""
        found: list[float] = np.quantile(np.divide(self.seconds, other.seconds), [0.5, 0.25, 0.75]).tolist()
        return found


def choose_engine(recipe: Recipe, workspace: Workspace, draft: Draft) -> None:
    """Measure, judge, choose, and write engine.json, with the weights of the native engine where it was chosen.

    Args:
        recipe: serve.executor auto or native, and its gate section.
        workspace: with the served graphs, the FP32 ones, the checkpoint, the dataset and the teacher.
        draft: gets the choice.

    Raises:
        ArtifactError: serve.executor is native, and the native engine does not run here or does not know the ranker.
        GateError: serve.executor is native, and the gate closed on it.
    """
    graphs, config = workspace.served_model(recipe), load_config(str(workspace.ranker(recipe)))
    served = served_rung(recipe, workspace)
    scratch = draft.folder / "candidates"
    baseline = Candidate(f"ONNX Runtime, {served}", ONNXRUNTIME, _precision(recipe), graphs, open_engine(graphs))
    natives, notes = _native_candidates(recipe, workspace, config, scratch)
    candidates = [baseline, *natives]
    requests = _timed_requests(workspace, recipe)
    if natives:
        _measure(candidates, requests)
    is_told = recipe.serve.executor == NATIVE
    chosen = baseline
    for one in sorted(natives, key=lambda candidate: candidate.milliseconds):
        if not is_told and one.ratios(baseline)[0] > WORTH:
            notes.append(f"{one.name}: takes {one.ratios(baseline)[0]:.2f} of ONNX Runtime's time, so it is not judged")
            continue
        if _stands(one, recipe, workspace, served):
            chosen = one
            break
        notes.append(f"{one.name}: the gate closed, {'; '.join(v.reason for v in one.verdicts if not v.passed)}")
    if is_told and chosen is baseline:
        error = GateError if natives else ArtifactError
        raise error("serve.executor is native:\n  " + "\n  ".join([*notes, "Set serve.executor to auto"]))
    if chosen.executor == NATIVE:
        copy_text_files(chosen.folder, draft.folder)
        shutil.copyfile(chosen.folder / NATIVE_FILE, draft.folder / NATIVE_FILE)
    if scratch.is_dir():
        shutil.rmtree(scratch)
    told = _as_json(chosen, candidates, notes, requests, config)
    (draft.folder / ENGINE_FILE).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    draft.metrics |= {"engine": told} | {gate_metric(found.parent): found.as_metrics() for found in chosen.verdicts}
    for line in engine_in_words(told):
        console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)


def _precision(recipe: Recipe) -> str:
    return "FP32" if recipe.quantize.method == "none" else quantized_name(recipe)


def _native_candidates(
    recipe: Recipe, workspace: Workspace, config: Any, scratch: Path
) -> tuple[list[Candidate], list[str]]:
    """The native engine in each precision that makes sense here, and why one is missing."""
    wanted = {_precision(recipe): workspace.served_model(recipe)}
    wanted = {precision: folder for precision, folder in wanted.items() if precision in ("FP32", "INT8")}
    if has_bf16_products():
        wanted["BF16"] = workspace.onnx
        wanted.pop("FP32", None)
    found, notes = [], []
    for precision, graphs in wanted.items():
        folder, name = scratch / precision, f"native {precision}"
        folder.mkdir(parents=True)
        try:
            floats = "bfloat16" if has_bf16_products() else "float32"
            native_weights(graphs, config, floats).write(folder / NATIVE_FILE)
            copy_text_files(graphs, folder)
            found.append(Candidate(name, NATIVE, precision, folder, open_native_engine(folder)))
        except (ArtifactError, ExecutorError) as error:
            notes.append(f"{name}: {error}")
    return found, notes


def _timed_requests(workspace: Workspace, recipe: Recipe) -> list[RequestTensors]:
    dataset, rules = Dataset.read(workspace.dataset), TextRules.load(workspace.onnx)
    tokenizer = RequestTokenizer.from_folder(workspace.onnx, 100_000)
    count = min(TIMED_CANDIDATES, recipe.serve.max_candidates)
    # Texts of other requests fill a list up: the same ones again would be scored once.
    requests = requests_of(dataset, dataset.test[:TIMED_REQUESTS], rules)
    texts = list(dict.fromkeys(item for request in requests for item in request.items))
    filled = [Request(r.query, r.history, list(dict.fromkeys([*r.items, *texts]))[:count]) for r in requests]
    return [tensors_of(request, tokenizer) for request in filled]


def _measure(candidates: Sequence[Candidate], requests: Sequence[RequestTensors]) -> None:
    """Seconds of each request, the executors in turns."""
    for one in candidates:
        one.engine.run([requests[0]])
    ends_at = time.monotonic() + MOST_SECONDS
    for number, request in enumerate(track(requests, "measuring executors")):
        if number >= FEWEST_REQUESTS and time.monotonic() > ends_at:
            break
        for one in candidates:
            started = time.perf_counter()
            one.engine.run([request])
            one.seconds.append(time.perf_counter() - started)


def _stands(one: Candidate, recipe: Recipe, workspace: Workspace, served: str) -> bool:
    """Whether the gate lets it stand; what it found stays with the candidate."""
    dataset, judgements = workspace.dataset, workspace.judgements
    judged = judge_artifact(one.name, one.folder, dataset, judgements)
    others = [
        (judge_artifact(served, workspace.served_model(recipe), dataset, judgements), step_budget(recipe, "quantize")),
        (judge_teacher(recipe, workspace.teacher, dataset, judgements), total_budget(recipe, "quantize")),
    ]
    for other, budget in others:
        one.verdicts.append(verdict(judged, other, budget, seed=recipe.seed))
        show_verdict(one.verdicts[-1])
    return all(found.passed for found in one.verdicts)


def _as_json(
    chosen: Candidate, candidates: Sequence[Candidate], notes: Sequence[str], requests: Sequence[Any], config: Any
) -> dict[str, Any]:
    architecture, timed = architecture_of(config), len(candidates[0].seconds)
    gflop = float(np.mean([architecture.flop(config, one) for one in requests[: timed or None]])) / 1e9
    speeds = {precision: product_gflops(precision) for precision in {one.precision for one in candidates if timed}}
    return {
        "chosen": chosen.name,
        "executor": chosen.executor,
        "precision": chosen.precision,
        "processor": processor_name(),
        "cores": available_cores(),
        "flags": [flag for flag in TOLD_FLAGS if flag in cpu_flags()],
        "timed_requests": timed,
        "candidates": TIMED_CANDIDATES,
        "gflop_per_request": gflop,
        "product_gflops": speeds,
        "rows": [_row(one, candidates[0], gflop, speeds) for one in candidates if one.seconds],
        "notes": list(notes),
    }


def _row(one: Candidate, baseline: Candidate, gflop: float, speeds: dict[str, float]) -> dict[str, Any]:
    median, low, high = one.ratios(baseline)
    roof, ndcg = speeds.get(one.precision), [found.child_ndcg for found in one.verdicts[:1]]
    return {
        "name": one.name,
        "executor": one.executor,
        "precision": one.precision,
        "milliseconds": one.milliseconds,
        "ratio": {"median": median, "low": low, "high": high},
        "gflops": 1_000 * gflop / one.milliseconds,
        "roof_share": 1_000 * gflop / one.milliseconds / roof if roof else None,
        "ndcg@10": ndcg[0] if ndcg else None,
        "passed": all(found.passed for found in one.verdicts) if one.verdicts else None,
    }
