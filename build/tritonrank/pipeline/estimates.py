"""How long each stage of a build takes on this machine, before it runs.

An estimate counts the tokens that are trained on and judged, and the size of the model that reads them: the seconds per
token below were measured with the packaged MiniLM on CPU cores, and other encoders take as much longer as their layers
hold more weights. What this machine has built before corrects that: ``seconds.json`` beside the artifacts of a recipe
has what each stage took, and what had been estimated. On a GPU only what was measured counts.
"""

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from tritonrank_runtime.cores import available_cores

from tritonrank.artifacts import read_manifest, write_whole
from tritonrank.artifacts.workspace import Workspace
from tritonrank.errors import TritonRankError
from tritonrank.rankers.architectures import architecture_named
from tritonrank.rankers.checkpoint_source import folder_of, is_hub_id
from tritonrank.rankers.text_budgets import TEXT_METRICS, budgets_without_data
from tritonrank.recipe import PACKAGED_MINILM, ModelSettings, Recipe
from tritonrank.system.machine import processor_name

SECONDS_FILE = "seconds.json"
TRAINED, JUDGED, JUDGED_ONNX, JUDGED_INT8 = 0.9e-3, 0.33e-3, 0.21e-3, 0.13e-3
"""Seconds of one core per token of the packaged MiniLM: a step of training, PyTorch, ONNX Runtime."""
MINILM_WEIGHTS = 6 * (4 * 384**2 + 2 * 384 * 1536)
"""Of its layers, which every token meets; embeddings are looked up."""
EXPORT, QUANTIZE, ENGINE, ASSEMBLE, COSINE = 20.0, 12.0, 20.0, 5.0, 10.0
"""Seconds of one core: an export, a quantization, executors compiled and measured, a repository, the
texts of the zero-shot baseline embedded."""
TOWERS, TOWERS_EXAMPLE, CATALOGUE, CATALOGUE_ITEM = 14.0, 1.3e-3, 5.0, 1e-3
"""Seconds of one core: towers exported and quantized, an example in one pass over what is learnt on top of the encoder
(about four passes), a catalogue, and each item of one."""
BLEND_CANDIDATES = 200
"""Users that a blend learns from at the most, and what is ranked for each of them."""
TOWERS_PASSES, TEXTS_PER_EXAMPLE = 4, 2
"""Over the examples; texts that the encoder is trained on per example."""
PREPARE, PREPARE_MEGABYTE = 4.0, 0.3
"""Seconds of one core: any data, and each megabyte of them."""
CALIBRATED = 0.4 / 120
"""Seconds of one core per token of a request that quantization is calibrated with."""
TIMED_REQUESTS, TIMED_CANDIDATES, UNTRAINED_EXAMPLES = 10, 100, 50
"""What the summary times and judges beside the rungs."""
LEARNING_CORES = 16
"""More cores than this make no training of a small encoder faster."""
FILLED = 0.75
"""Share of a token budget that texts fill; as long as the data are not prepared nobody knows."""
FRAME_TOKENS = 2
"""Special tokens of a candidate, and of a context."""


def about_seconds(recipe: Recipe, workspace: Workspace | None = None, *, slower: float = 1.0) -> dict[str, float]:
    """How long each stage of a recipe takes on this machine, by verb; a stage of which that is not known is left out.

    Args:
        recipe: what is built.
        workspace: where, if it may have been built before, or its data were prepared.
        slower: how many times as long as the table says this machine takes, where that was just measured.
    """
    estimated = _estimated(recipe, workspace)
    measured = _measured(workspace) if workspace else {}
    known = {verb: seconds * slower for verb, seconds in estimated.items()}
    for verb, one in measured.items():
        scale = estimated[verb] / one["estimated"] if verb in estimated and one.get("estimated") else 1.0
        known[verb] = one["seconds"] * scale
    return known


def remember(recipe: Recipe, workspace: Workspace, verb: str, seconds: float) -> None:
    """Keep what a stage took on this machine, beside what had been estimated for it."""
    stages = _measured(workspace) | {verb: {"seconds": round(seconds, 2), "estimated": None}}
    if estimate := _estimated(recipe, workspace).get(verb):
        stages[verb]["estimated"] = round(estimate, 2)
    record = {"machine": _machine(), "stages": stages}
    write_whole(workspace.root / SECONDS_FILE, json.dumps(record, indent=1) + "\n")


def seconds_per_judged_list(recipe: Recipe, workspace: Workspace) -> float | None:
    """What the table says of one test example in PyTorch on this machine; None where it says nothing."""
    size = _relative_size(recipe.model)
    if size is None or has_gpu():
        return None
    return size * tokens_per_list(recipe, workspace, recipe.examples.judged_negatives + 1) * JUDGED / _cores()


def tokens_per_list(recipe: Recipe, workspace: Workspace | None, candidates: int) -> float:
    """Tokens that the ranker reads of one context with so many candidates."""
    context, candidate = _lengths(recipe, workspace)
    return architecture_named(recipe.model.architecture).list_tokens(context, candidate, candidates)


def has_gpu() -> bool:
    """Whether training and PyTorch run on one; torch knows better, and takes seconds to ask."""
    return Path("/dev/nvidiactl").exists()


def _estimated(recipe: Recipe, workspace: Workspace | None) -> dict[str, float]:
    """Seconds by verb, from the table alone; nothing for a GPU, or a model whose size is not known."""
    size = _relative_size(recipe.model)
    if size is None or has_gpu():
        return {}
    examples, training = recipe.examples, recipe.finetune

    def tokens(candidates: int) -> float:
        return size * tokens_per_list(recipe, workspace, candidates)

    counted = _dataset_metrics(workspace).get("examples", {})
    test_users = min(examples.test_users, counted.get("test", examples.test_users))
    training_examples = min(examples.training_examples, counted.get("train", examples.training_examples))
    judged_list = tokens(examples.judged_negatives + 1)
    rungs = (JUDGED, JUDGED_ONNX) if recipe.quantize.method == "none" else (JUDGED, JUDGED_ONNX, JUDGED_INT8)
    judged = test_users * judged_list
    judged_graphs = judged * sum(rungs[1:])
    trained = training_examples * training.epochs * tokens(examples.training_negatives + 1)
    validated = training.evaluations * examples.validation_users * judged_list
    timed = TIMED_REQUESTS * tokens(TIMED_CANDIDATES) * sum(rungs)
    ranks_untrained = architecture_named(recipe.model.architecture).has_prompt  # which asks for an answer
    untrained = (test_users if ranks_untrained else UNTRAINED_EXAMPLES) * judged_list * JUDGED
    core_seconds = {
        "prepare": PREPARE + PREPARE_MEGABYTE * _source_bytes(recipe) / 1e6,
        "finetune": 0.0 if recipe.model.checkpoint else trained * TRAINED + validated * JUDGED,
        "compare": COSINE + judged * JUDGED,
        "export": EXPORT * size,
        "quantize": QUANTIZE * size + recipe.quantize.calibration_examples * CALIBRATED * tokens(1) + judged_graphs,
        "engine": ENGINE + 2 * judged * JUDGED_INT8,
        "assemble": ASSEMBLE,
        "summarize": untrained + timed + (judged_graphs if recipe.quantize.method == "none" else 0.0),
    }
    if recipe.distill:
        core_seconds["distill"] = _distilled(recipe, tokens)
    if recipe.retrieval:
        items = _dataset_metrics(workspace).get("items", getattr(recipe.data, "items", 0))
        items = items if isinstance(items, int) else 0  # of tables it is a path; nobody counted them yet
        text = size * _lengths(recipe, workspace)[1]
        learnt = TOWERS_PASSES * TOWERS_EXAMPLE + TEXTS_PER_EXAMPLE * recipe.retrieval.epochs * text * TRAINED
        core_seconds["retriever"] = TOWERS * size + items * text * sum(rungs[1:]) + training_examples * learnt
        core_seconds["catalogue"] = CATALOGUE + items * (CATALOGUE_ITEM + text * rungs[-1])
        users = min(_dataset_metrics(workspace).get("users", test_users), recipe.blend.lists)
        core_seconds["blend"] = (users + test_users) * tokens(BLEND_CANDIDATES) * rungs[-1]
    return {verb: seconds / _cores() for verb, seconds in core_seconds.items()}


def _cores() -> int:
    return min(available_cores(), LEARNING_CORES)


def _distilled(recipe: Recipe, tokens: Any) -> float:
    distill = recipe.distill
    assert distill is not None
    learnt = tokens(distill.hard_negatives + distill.random_negatives + 1)
    return float(distill.examples * (distill.epochs * learnt * TRAINED + tokens(distill.pool) * JUDGED))


def _lengths(recipe: Recipe, workspace: Workspace | None) -> tuple[float, float]:
    """Tokens of a context and of a candidate: those of the prepared data, else what the budgets let expect."""
    if counted := _dataset_metrics(workspace).get(TEXT_METRICS):
        item = float(min(counted["items"]["tokens_50"], counted["items"]["budget"]))
        history = min(counted["history"]["read"] * (item + 1), counted["history"]["tokens"])
        query = float(min(counted["queries"]["tokens_50"], counted["queries"]["budget"]))
        return query + history + FRAME_TOKENS, item + FRAME_TOKENS
    budgets = budgets_without_data(recipe)
    context = FILLED * (budgets["query_tokens"] + budgets["history_tokens"])
    return context + FRAME_TOKENS, FILLED * budgets["candidate_tokens"] + FRAME_TOKENS


def _dataset_metrics(workspace: Workspace | None) -> Mapping[str, Any]:
    """What ``prepare`` counted, whatever for; nothing where it did not run."""
    try:
        return read_manifest(workspace.dataset).metrics if workspace else {}
    except TritonRankError:
        return {}


def _source_bytes(recipe: Recipe) -> int:
    """Of files and folders; of a database nothing is known."""
    places = [getattr(recipe.data, name) for name in recipe.data.LOCATIONS]
    folders = [place for place in places if isinstance(place, Path)]
    try:
        files = [file for place in folders for file in ([place] if place.is_file() else place.rglob("*"))]
        return sum(file.stat().st_size for file in files if file.is_file())
    except OSError:
        return 0


def _relative_size(model: ModelSettings) -> float | None:
    """Weights of the layers, in packaged MiniLMs; None where the model is not on this machine or says no sizes."""
    return 1.0 if model.source == PACKAGED_MINILM else _size_of(model.source, model.revision)


@lru_cache(maxsize=16)
def _size_of(name: str, revision: str | None) -> float | None:
    try:
        if is_hub_id(name):
            from huggingface_hub import try_to_load_from_cache  # asks nobody

            found = try_to_load_from_cache(name, "config.json", revision=revision)
            config = Path(found) if isinstance(found, str) else None
        else:
            config = folder_of(name) / "config.json"
        settings = json.loads(config.read_text(encoding="utf-8")) if config else {}
    except (TritonRankError, OSError, ValueError):
        return None
    layers, hidden, inner = (
        next((settings[key] for key in keys if isinstance(settings.get(key), int)), None)
        for keys in (
            ("num_hidden_layers", "n_layers", "n_layer"),
            ("hidden_size", "dim", "d_model"),
            ("intermediate_size", "hidden_dim", "d_inner"),
        )
    )
    if not (layers and hidden and inner):
        return None
    return float(layers * (4 * hidden**2 + 2 * hidden * inner) / MINILM_WEIGHTS)


def _measured(workspace: Workspace) -> dict[str, dict[str, Any]]:
    """By verb what stages took, if this machine ran them; elsewhere nothing is known."""
    try:
        record = json.loads((workspace.root / SECONDS_FILE).read_text(encoding="utf-8"))
        return dict(record["stages"]) if record["machine"] == _machine() else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _machine() -> str:
    return f"{processor_name()}, {available_cores()} cores" + (", GPU" if has_gpu() else "")
