"""A model artifact becomes a Triton model repository: what the server loads, whole and with a check of its own.

Each model folder gets its config.pbtxt, its model.py and the files that it needs beside it (``models.py``); nothing is
looked up elsewhere when the server starts. ``golden.json`` holds requests with the scores that this very artifact gave
them in process: a server is ready when it gives the same.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tritonrank_runtime.candidate_rows import NO_TEXT_SCORE
from tritonrank_runtime.cores import available_cores
from tritonrank_runtime.text import TextRules

from tritonrank.artifacts import Draft
from tritonrank.artifacts.workspace import Workspace
from tritonrank.data.dataset import Dataset, Example
from tritonrank.data.requests import requests_of
from tritonrank.judge.open_scorer import open_scorer
from tritonrank.rankers.score_meaning import score_meaning
from tritonrank.rankers.scorers import Request
from tritonrank.recipe import Recipe
from tritonrank.serve.models import write_golden_cases, write_models
from tritonrank.serve.recommend_model import write_recommend
from tritonrank.serve.serving import GOLDEN_TOLERANCE

GOLDEN_CANDIDATES = 12
AWKWARD_CANDIDATES = 4
HALF_SHARE = 0.02
"""Of the golden scores' spread: what FP16 may change, or TF32, which ONNX Runtime takes for FP32 products on GPUs."""


def assemble(recipe: Recipe, workspace: Workspace, draft: Draft) -> None:
    """Write the complete repository for the target ``cpu``.

    Args:
        recipe: its serve section says how to serve.
        workspace: with an ONNX artifact, the shards of one or a checkpoint, as the recipe serves it, and the dataset,
            where golden requests come from.
        draft: gets the repository.

    Raises:
        ArtifactError: the model artifact is incomplete.
    """
    model_folder, model = workspace.loaded_model(recipe), draft.parents["model"]
    calibration = draft.parents.get("calibration")
    fits = calibration is not None and calibration.parents.get("model") == model.artifact
    meaning = score_meaning(workspace.calibration if fits else model_folder)
    write_models(recipe.serve, model_folder, draft.folder, available_cores(), meaning)
    write_recommend(recipe, workspace, draft.folder)
    identity = {"artifact": model.artifact[:16], "recipe": recipe.name, "stage": model.stage}
    share = 0.0 if recipe.serve.device == "cpu" else HALF_SHARE
    cases = write_identity_and_golden_cases(identity, workspace.dataset, model_folder, draft.folder, share)
    draft.metrics |= {"artifact": identity["artifact"], "golden_cases": cases}


def write_identity_and_golden_cases(
    identity: Mapping[str, str],
    dataset_folder: Path,
    model_folder: Path,
    repository: Path,
    share_of_spread: float = 0.0,
) -> int:
    """What ``select`` answers with, and requests with the scores that the model's graphs give in process; how many.

    Args:
        identity: what ``select`` answers with.
        dataset_folder: where the requests come from.
        model_folder: whose graphs score them.
        repository: where both go.
        share_of_spread: how far a server's scores may be from these, in standard deviations of all of them; 0 where the
            same code computes both.
    """
    cases = golden_cases(Dataset.read(dataset_folder), model_folder)
    spread = float(np.std([score for case in cases for score in case["scores"] if score != NO_TEXT_SCORE]))
    write_golden_cases(identity, cases, repository, max(GOLDEN_TOLERANCE, share_of_spread * spread))
    return len(cases)


def golden_cases(dataset: Dataset, model_folder: Path) -> list[dict[str, Any]]:
    """Requests with the scores of this artifact in process: real ones, one that knows nothing of the user, and one of
    awkward texts, which a server and the judge could take for different things."""
    scorer, rules = open_scorer(model_folder), TextRules.load(model_folder)
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
