"""What the build achieved, in one table: every baseline and every rung from the checkpoint to the served model.

Quality is NDCG@10 on the same test users for all; latency is the median of one 100-candidate request in this process,
and its ratio to the fine-tuned ranker the median of the ratios of single requests. The rungs take turns, so that a busy
machine slows all of them alike.
"""

import json
import math
import os
import platform
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from transformers import AutoConfig
from tritonrank_runtime.cores import available_cores
from tritonrank_runtime.engines import loaded_files
from tritonrank_runtime.text import RequestTokenizer, TextRules

from tritonrank.artifacts import Draft, read_manifest
from tritonrank.artifacts.rungs import checkpoint_of, model_rungs, served_rung, teacher_name
from tritonrank.artifacts.workspace import Workspace
from tritonrank.data.dataset import Dataset
from tritonrank.data.requests import requests_of
from tritonrank.judge.evaluate import Judgement, judge_artifact
from tritonrank.judge.gate import paired_difference
from tritonrank.judge.gatekeeper import judge_uncut
from tritonrank.judge.metrics import METRICS
from tritonrank.judge.open_scorer import open_scorer
from tritonrank.judge.segments import segments
from tritonrank.judge.worth import against_all
from tritonrank.rankers.cost import gflop_per_request
from tritonrank.rankers.scorers import EngineScorer, Request
from tritonrank.rankers.text_budgets import TEXT_METRICS
from tritonrank.recipe import Recipe
from tritonrank.report.against_served import against_served
from tritonrank.report.answer import SUMMARY_FILE, this_command
from tritonrank.report.baselines import FREE_BASELINES, baseline_judgements
from tritonrank.report.build_table import RANKED
from tritonrank.report.compare import answer_of
from tritonrank.system.machine import has_int8_dot_product, processor_name
from tritonrank.tensorrt.padding_cost import padding_cost

TIMED_REQUESTS = 9
TIMED_CANDIDATES = 100
COUNTED_REQUESTS = 50


def summarize(recipe: Recipe, workspace: Workspace, draft: Draft) -> None:
    """Judge what was not judged yet, time the rungs, and write summary.json."""
    dataset, counted = Dataset.read(workspace.dataset), read_manifest(workspace.dataset).metrics
    rungs = model_rungs(recipe, workspace)
    baselines = baseline_judgements(recipe, dataset, workspace)
    judged = {n: judge_artifact(n, f, workspace.dataset, workspace.judgements) for n, f in rungs.items()}
    name_of_teacher = teacher_name(recipe)
    teacher = judged[name_of_teacher]
    uncut = judge_uncut(recipe, workspace.teacher, workspace.dataset, workspace.judgements)
    references = {uncut.name: uncut} if uncut else {}
    served = served_rung(recipe, workspace)
    compared = against_all(judged[served], baselines | references)
    rows = [_quality(judgement, teacher) for judgement in (baselines | references | judged).values()]
    for one in compared:
        next(row for row in rows if row["name"] == one.name)["gain"] = vars(one.gain)
    for row in rows:
        row |= _size(rungs[row["name"]]) if row["name"] in rungs else {}
    requests = _timed_requests(dataset, workspace)
    scorers = {name: open_scorer(folder) for name, folder in rungs.items()}
    for name, latency in latencies(scorers, requests, name_of_teacher).items():
        next(row for row in rows if row["name"] == name).update(latency)
    sampled = requests_of(dataset, dataset.test[:COUNTED_REQUESTS], TextRules.load(workspace.teacher))
    for row in rows:
        if row["name"] in rungs:
            checkpoint = checkpoint_of(row["name"], recipe, workspace)
            gflop = gflop_per_request(
                AutoConfig.from_pretrained(checkpoint, trust_remote_code=False), scorers[row["name"]], sampled
            )
            row |= {"gflop_per_request": gflop, "parameters": _parameters(checkpoint)}
    best = max((baselines[name] for name in FREE_BASELINES), key=lambda one: one.interval().mean)
    against = against_served(workspace, judged[served])
    others = judged | baselines | references
    result = {
        "recipe": recipe.name,
        "teacher": name_of_teacher,
        "served": served,
        "verdict": answer_of(recipe, workspace, dataset, served, compared, others, against).as_json(),
        "against_served": against,
        "segments": {
            "baseline": best.name,
            "rows": [one.as_json() for one in segments(dataset, judged[served], best)],
        },
        "trained": recipe.model.checkpoint is None,
        "text": counted.get(TEXT_METRICS),
        "items_without_text": counted.get("items_without_text"),
        "command": this_command(),
        "machine": machine(),
        "examples": len(dataset.test),
        "timed_requests": len(requests),
        "rows": rows,
    }
    if recipe.tensorrt.precisions:
        tokenizer = RequestTokenizer.from_folder(workspace.teacher, cache_entries=100_000)
        result["plan_padding"] = padding_cost(recipe, tokenizer, sampled).as_json()
    (draft.folder / SUMMARY_FILE).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    judged[served].table.select("example_id", *METRICS).write_parquet(draft.folder / RANKED)


def latencies(scorers: dict[str, EngineScorer], requests: Sequence[Request], against: str) -> dict[str, dict[str, Any]]:
    """What one request takes in this process, tokenization included, by scorer.

    Returns:
        milliseconds_per_100: the median. latency_ratio: median and quartiles of the ratios to the scorer ``against``,
        request by request.
    """
    seconds: dict[str, list[float]] = {name: [] for name in scorers}
    for number, request in enumerate([requests[0], *requests]):
        for name, scorer in scorers.items():
            started = time.perf_counter()
            scorer.score(request)
            if number:  # the first request warms up
                seconds[name].append(time.perf_counter() - started)
    found: dict[str, dict[str, Any]] = {}
    for name, values in seconds.items():
        low, median, high = np.quantile(np.divide(values, seconds[against]), [0.25, 0.5, 0.75]).tolist()
        ratio = {"median": median, "low": low, "high": high}
        found[name] = {"milliseconds_per_100": 1_000 * statistics.median(values), "latency_ratio": ratio}
    return found


def machine() -> dict[str, Any]:
    """Where the latencies were measured."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": processor_name(),
        "cores": available_cores(),
        "memory_gb": round(memory / 1e9, 1),
        "system": platform.platform(),
        "int8_dot_product": has_int8_dot_product(),
    }


def _quality(judgement: Judgement, teacher: Judgement) -> dict[str, Any]:
    values = {metric: vars(judgement.interval(metric)) for metric in METRICS}
    return {
        "name": judgement.name,
        **values,
        "examples": len(judgement.table),
        "difference": vars(paired_difference(judgement, teacher.first(len(judgement.table)))),
    }


def _size(folder: Path) -> dict[str, Any]:
    files = loaded_files(folder) or [folder / "model.safetensors"]
    return {"megabytes": sum(path.stat().st_size for path in files) / 1e6}


def _parameters(folder: Path) -> int:
    with safe_open(folder / "model.safetensors", framework="numpy") as weights:
        return sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118 - no mapping


def _timed_requests(dataset: Dataset, workspace: Workspace) -> list[Request]:
    requests = requests_of(dataset, dataset.test[:TIMED_REQUESTS], TextRules.load(workspace.teacher))
    return [Request(r.query, r.history, (r.items * TIMED_CANDIDATES)[:TIMED_CANDIDATES]) for r in requests]
