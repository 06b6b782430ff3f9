"""A model artifact becomes a Triton model repository: what the server loads, whole and with a check of its own.

Each model folder gets its config.pbtxt, its model.py and the files that it needs beside it; nothing is looked up
elsewhere when the server starts. ``golden.json`` holds requests with the scores that this very artifact gave them in
process: a server is ready when it gives the same.
"""

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from tritonclient.grpc import model_config_pb2 as pb
from tritonrank_runtime.architectures import (
    ARCHITECTURES,
    architecture_of_files,
    architecture_of_graphs,
    architecture_of_type,
)
from tritonrank_runtime.candidate_rows import NO_TEXT_SCORE
from tritonrank_runtime.cores import available_cores
from tritonrank_runtime.engines import loaded_files, model_files
from tritonrank_runtime.shard_runner import SHARDS_FILE, read_shards
from tritonrank_runtime.shard_workers import is_sharded
from tritonrank_runtime.text import RequestTokenizer, TextRules, copy_text_files
from tritonrank_runtime.torch_passes import CONFIG_FILE, WEIGHTS_FILE

from tritonrank.artifacts import Draft
from tritonrank.artifacts.workspace import Workspace
from tritonrank.data.prepare import Dataset, Example
from tritonrank.data.requests import requests_of
from tritonrank.errors import ArtifactError
from tritonrank.judge.open_scorer import open_scorer
from tritonrank.rankers.pretrained import load_config
from tritonrank.rankers.score_meaning import score_meaning
from tritonrank.rankers.scorers import Request
from tritonrank.recipe import Recipe
from tritonrank.serve.serving import GOLDEN_FILE, GOLDEN_TOLERANCE
from tritonrank.serve.sources import python_sources
from tritonrank.serve.triton_config import as_text, model_configs

GOLDEN_CANDIDATES = 12
AWKWARD_CANDIDATES = 4
CHECKPOINT_FILES = (CONFIG_FILE, WEIGHTS_FILE)
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
    write_models(recipe, model_folder, draft.folder, available_cores())
    identity = {"artifact": model.artifact[:16], "recipe": recipe.name, "stage": model.stage}
    share = 0.0 if recipe.serve.device == "cpu" else HALF_SHARE
    cases = write_identity_and_golden_cases(identity, workspace.dataset, model_folder, draft.folder, share)
    draft.metrics |= {"artifact": identity["artifact"], "golden_cases": cases}


def write_models(recipe: Recipe, model_folder: Path, repository: Path, cores: int) -> None:
    """All models of the ensemble with the files they need."""
    ranks = int(read_shards(model_folder)["ranks"]) if is_sharded(model_folder) else 1
    inputs = engine_inputs(model_folder)
    tokenizer = RequestTokenizer.from_folder(model_folder)
    longest = longest_rows(inputs, tokenizer)
    scores = score_meaning(model_folder).parameters
    configs = model_configs(recipe.serve, inputs, cores, ranks, longest, known_ids(inputs, tokenizer), scores)
    write_ensemble(configs, python_sources(), model_folder, repository)
    for path in _served_files(model_folder):
        shutil.copyfile(path, repository / "score" / "1" / path.name)
    write_warmup_masks(configs["score"], repository)


def longest_rows(inputs: Sequence[str], tokenizer: RequestTokenizer) -> dict[str, int]:
    """Tokens that a row of each of the engine's inputs can have, by the text rules."""
    architecture = tokenizer.architecture
    return {name: architecture.run_tokens(tokenizer.longest_rows[name]) for name in inputs}


def known_ids(inputs: Sequence[str], tokenizer: RequestTokenizer) -> dict[str, int]:
    """How many different ids the tokenizer has for each of the engine's inputs, from 0 on."""
    return {name: known for name, known in tokenizer.known_ids.items() if name in inputs}


def write_ensemble(
    configs: Mapping[str, pb.ModelConfig], sources: Mapping[str, Path], text_folder: Path, repository: Path
) -> None:
    """The models' folders with configs, Python files and tokenizer; the scorer's model is still missing.

    Args:
        configs: by model.
        sources: Python files by their place in the repository.
        text_folder: where tokenizer and text rules are.
        repository: where the folders go.
    """
    for name, config in configs.items():
        (repository / name / "1").mkdir(parents=True)
        (repository / name / "config.pbtxt").write_text(as_text(config), encoding="utf-8")
    for place, source in sources.items():
        (repository / place).parent.mkdir(exist_ok=True)
        shutil.copyfile(source, repository / place)
    (repository / "rank" / "1" / ".keep").touch()  # an ensemble has no files, but Triton wants its version folder
    copy_text_files(text_folder, repository / "tokenize" / "1")


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


def write_golden_cases(
    identity: Mapping[str, str],
    cases: Sequence[Mapping[str, Any]],
    repository: Path,
    tolerance: float = GOLDEN_TOLERANCE,
) -> None:
    """What ``select`` answers with, and golden.json.

    Args:
        identity: artifact, recipe and stage.
        cases: query, history, items and scores each.
        repository: where they go.
        tolerance: how far a server's scores may be from them.
    """
    (repository / "select" / "1" / "artifact.json").write_text(json.dumps(identity) + "\n", encoding="utf-8")
    golden = {"artifact": identity["artifact"], "tolerance": tolerance, "cases": cases}
    text = json.dumps(golden, indent=1, ensure_ascii=False)
    (repository / GOLDEN_FILE).write_text(text + "\n", encoding="utf-8")


def engine_inputs(model_folder: Path) -> list[str]:
    """What the engine takes; a joint ranker's graph says it: families without segment ids have one tensor less.

    Raises:
        ArtifactError: the folder does not hold the graphs of a ranker.
    """
    if is_checkpoint(model_folder):
        config = load_config(str(model_folder))
        return architecture_of_type(config.model_type).input_names(config)
    if is_sharded(model_folder):
        inputs = {name: graph["inputs"] for name, graph in read_shards(model_folder)["graphs"].items()}
    else:
        graphs = {path.name: onnx.load(path, load_external_data=False).graph for path in model_files(model_folder)}
        inputs = {name: [tensor.name for tensor in graph.input] for name, graph in graphs.items()}
        if architecture_of_files(inputs) is None:
            expected = " or ".join(" and ".join(one.graph_files) for one in ARCHITECTURES)
            raise ArtifactError(
                f"{model_folder}: graphs {[*inputs]}; expected {expected}; "
                "export the checkpoint first: tritonrank build RECIPE"
            )
    taken = {name for names in inputs.values() for name in names}
    return [one.name for one in architecture_of_graphs(inputs).inputs if one.name in taken]


def is_checkpoint(model_folder: Path) -> bool:
    """Whether a folder holds what the executor torch runs."""
    return (model_folder / WEIGHTS_FILE).is_file()


def _served_files(model_folder: Path) -> list[Path]:
    """The graphs of an artifact; of shards what ONNX Runtime executes, without the graphs for TensorRT; a checkpoint's
    config and weights."""
    if is_checkpoint(model_folder):
        return [model_folder / name for name in CHECKPOINT_FILES]
    if not is_sharded(model_folder):
        return loaded_files(model_folder)
    return [model_folder / SHARDS_FILE, *model_folder.glob("*.bin"), *model_folder.glob("rank*.segment*.onnx")]


def write_warmup_masks(score: pb.ModelConfig, repository: Path) -> None:
    """The files that the scorer's warm-up names: a joint ranker's masks, of ones."""
    for warmup in score.model_warmup:
        for tensor in warmup.inputs.values():
            if tensor.input_data_file:
                path = repository / "score" / "warmup" / tensor.input_data_file
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(np.ones(list(tensor.dims), dtype="<i4").tobytes())


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
