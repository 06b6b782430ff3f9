"""A model artifact becomes a Triton model repository: what the server loads, whole and with a check of its own.

Each model folder gets its config.pbtxt, its model.py and the files that it needs beside it (``models.py``); nothing is
looked up elsewhere when the server starts. ``golden.json`` holds requests with the scores that this very artifact gave
them in process: a server is ready when it gives the same. ``reference.json`` holds what requests and scores look like,
so that whoever watches the server sees when they no longer do (``reference.py``).
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tritonrank_runtime.candidate_rows import NO_TEXT_SCORE
from tritonrank_runtime.cores import available_cores
from tritonrank_runtime.engines import NATIVE, ONNXRUNTIME, TORCH
from tritonrank_runtime.kept_states import EXACT_BITS
from tritonrank_runtime.text import TextRules

from tritonrank.artifacts import Draft
from tritonrank.artifacts.workspace import Workspace
from tritonrank.data.dataset import Dataset, Example
from tritonrank.data.requests import requests_of
from tritonrank.judge.engine_words import read_choice
from tritonrank.judge.open_scorer import open_scorer
from tritonrank.rankers.score_meaning import score_meaning
from tritonrank.rankers.scorers import Request
from tritonrank.rankers.serving import kept_bits
from tritonrank.recipe import Recipe
from tritonrank.serve.models import write_golden_cases, write_models
from tritonrank.serve.recommend_model import write_recommend
from tritonrank.serve.reference import write_reference
from tritonrank.serve.serving import GOLDEN_TOLERANCE

GOLDEN_CANDIDATES = 12
AWKWARD_CANDIDATES = 4
TAKEN_PLACE = 1.5
"""Of the largest difference between two executors here: what it may be on another processor."""
HALF_SHARE = 0.02
"""Of the golden scores' spread: what FP16 may change, or TF32, which ONNX Runtime takes for FP32 products on GPUs."""


def assemble(recipe: Recipe, workspace: Workspace, draft: Draft) -> None:
    """Write the complete repository for the target ``cpu``.

    Args:
        recipe: its serve section says how to serve.
        workspace: with an ONNX artifact, the shards of one or a checkpoint, as the recipe serves it, and the dataset,
            where golden requests come from.
        draft: gets the repository, with golden.json and reference.json.

    Raises:
        ArtifactError: the model artifact is incomplete.
    """
    model_folder, model = workspace.loaded_model(recipe), draft.parents["model"]
    calibration = draft.parents.get("calibration")
    fits = calibration is not None and calibration.parents.get("model") == model.artifact
    meaning = score_meaning(workspace.calibration if fits else model_folder)
    native = native_folder(recipe, workspace)
    write_models(recipe.serve, model_folder, draft.folder, available_cores(), meaning, native)
    write_recommend(recipe, workspace, draft.folder)
    identity = {"artifact": model.artifact[:16], "recipe": recipe.name, "stage": model.stage}
    share = 0.0 if recipe.serve.device == "cpu" else HALF_SHARE
    scorers = [model_folder] if native is None else [native, model_folder]
    bits = kept_bits(recipe.serve)
    cases = write_identity_and_golden_cases(identity, workspace.dataset, scorers, draft.folder, share, bits)
    rankings = write_reference(recipe, workspace, identity["artifact"], scorers[0], draft.folder)
    draft.metrics |= {"artifact": identity["artifact"], "golden_cases": cases, "reference_rankings": rankings}
    draft.metrics |= {"executor": ONNXRUNTIME if native is None else NATIVE} if recipe.serve.executor != TORCH else {}


def native_folder(recipe: Recipe, workspace: Workspace) -> Path | None:
    """The folder with the weights of the native engine, where the choice fell on it."""
    folder = workspace.chosen_engine(recipe)
    return folder if folder and read_choice(folder)["executor"] == NATIVE else None


def write_identity_and_golden_cases(
    identity: Mapping[str, str],
    dataset_folder: Path,
    model_folders: Sequence[Path],
    repository: Path,
    share_of_spread: float = 0.0,
    context_cache_bits: int = EXACT_BITS,
) -> int:
    """What ``select`` answers with, and requests with the scores that the model's graphs give in process; how many.

    Args:
        identity: what ``select`` answers with.
        dataset_folder: where the requests come from.
        model_folders: the first is what scores them; others are what takes its place on servers where it does not run,
            so that their scores are right, too.
        repository: where both go.
        share_of_spread: how far a server's scores may be from these, in standard deviations of all of them; 0 where the
            same code computes both.
        context_cache_bits: in which the server keeps keys and values of contexts.
    """
    dataset = Dataset.read(dataset_folder)
    cases, *others = (golden_cases(dataset, folder, context_cache_bits) for folder in model_folders)
    scores = _golden_scores(cases)
    further = [float(np.abs(_golden_scores(other) - scores).max()) for other in others]
    spread = float(np.std(scores[scores != NO_TEXT_SCORE]))
    tolerance = max(GOLDEN_TOLERANCE, share_of_spread * spread, *(TAKEN_PLACE * one for one in further))
    write_golden_cases(identity, cases, repository, tolerance)
    return len(cases)


def _golden_scores(cases: Sequence[Mapping[str, Any]]) -> NDArray[np.float64]:
    return np.array([score for case in cases for score in case["scores"]])


def golden_cases(dataset: Dataset, model_folder: Path, context_cache_bits: int = EXACT_BITS) -> list[dict[str, Any]]:
    """Requests with the scores of this artifact in process: real ones, one that knows nothing of the user, and one of
    awkward texts, which a server and the judge could take for different things."""
    scorer, rules = open_scorer(model_folder, context_cache_bits), TextRules.load(model_folder)
    examples = [_shortened(example) for example in dataset.validation[:3]]
    requests = requests_of(dataset, examples, rules)
    requests += [Request("", [], requests[0].items), _awkward(requests[0], rules)]
    return [vars(request) | {"scores": scorer.score(request).tolist()} for request in requests]


def _awkward(request: Request, rules: TextRules) -> Request:
    """With items that have no text, and texts that are themselves the JSON of an item's fields."""
    as_json = json.dumps(dict.fromkeys(re.findall(r"\{(\w+)\}", rules.item_template), request.items[0]))
    items = [request.items[0], "", as_json, *request.items[1:AWKWARD_CANDIDATES], " \t"]
    return Request(request.query, [*request.history, as_json, ""], items)


def _shortened(example: Example) -> Example:
    """The first few candidates, and what the user went on to like among them: the demo shows these requests."""
    by_label = sorted(range(len(example.labels)), key=lambda place: -example.labels[place])
    kept = sorted(by_label[:GOLDEN_CANDIDATES])
    return replace(example, candidates=[example.candidates[i] for i in kept], labels=[example.labels[i] for i in kept])
