"""The files of a repository's models: configs, Python sources, tokenizer, the engine's own files.

Apart from the rest of ``assemble.py``, because ``gpu-check`` writes such a repository on a machine that can build
nothing.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import tritonrank_runtime
from tritonclient.grpc import model_config_pb2 as pb
from tritonrank_runtime.architectures import (
    ARCHITECTURES,
    architecture_of_files,
    architecture_of_graphs,
    architecture_of_type,
)
from tritonrank_runtime.engines import NATIVE, loaded_files, model_files
from tritonrank_runtime.images import copy_images
from tritonrank_runtime.item_text import template_fields
from tritonrank_runtime.native.library import SOURCES, cached_library, library_name
from tritonrank_runtime.native.weights import NATIVE_FILE
from tritonrank_runtime.repository import IDENTITY_FILE, model_folders
from tritonrank_runtime.shard_runner import SHARDS_FILE, read_shards
from tritonrank_runtime.shard_workers import is_sharded
from tritonrank_runtime.text import RequestTokenizer, TextRules, copy_text_files

from tritonrank.errors import ArtifactError
from tritonrank.rankers.checkpoint_files import CONFIG, WEIGHTS, read_object
from tritonrank.rankers.score_meaning import ScoreMeaning, score_meaning
from tritonrank.rankers.serving import AnyServing
from tritonrank.serve.serving import GOLDEN_FILE, GOLDEN_TOLERANCE
from tritonrank.serve.sources import MODELS_IN_PYTHON, python_sources
from tritonrank.serve.triton_config import HISTORY_PARAMETER, RANKER, as_text, model_configs

CHECKPOINT_FILES = (CONFIG, WEIGHTS)
"""As ``torch_engine`` opens them, which cannot be asked where PyTorch is not installed."""


def write_models(
    settings: AnyServing,
    model_folder: Path,
    repository: Path,
    cores: int,
    meaning: ScoreMeaning | None = None,
    native: Path | None = None,
    in_one: bool | None = None,
) -> None:
    """All models of the ensemble with the files they need.

    Args:
        settings: how to serve.
        model_folder: the model artifact.
        repository: where the models' folders go.
        cores: what ``instances: auto`` is divided by.
        meaning: of the scores; by default what the model artifact says.
        in_one: as for ``model_configs``.
        native: folder with the weights of the native engine, where that computes; the artifact's graphs lie beside them
            for servers on which it does not run.

    Raises:
        ArtifactError: the artifact holds no ranker.
        ExecutorError: the native engine is not compiled and cannot be here.
    """
    ranks = int(read_shards(model_folder)["ranks"]) if is_sharded(model_folder) else 1
    inputs = engine_inputs(model_folder)
    tokenizer = RequestTokenizer.from_folder(model_folder)
    longest = longest_rows(inputs, tokenizer)
    told = told_parameters(meaning or score_meaning(model_folder), tokenizer.rules)
    configs = model_configs(settings, inputs, cores, ranks, longest, known_ids(inputs, tokenizer), told, in_one)
    scorer = RANKER if RANKER in configs else "score"
    if native is not None:
        configs[scorer].parameters["executor"].string_value = NATIVE
    models = [name for name in MODELS_IN_PYTHON if name in configs]
    write_ensemble(configs, python_sources(models), model_folder, repository)
    folders = model_folders(repository)
    if native is not None:
        shutil.copyfile(native / NATIVE_FILE, folders.scorer / NATIVE_FILE)
        _copy_library(folders.scorer / tritonrank_runtime.__name__ / "native")
    for path in _served_files(model_folder):
        shutil.copyfile(path, folders.scorer / path.name)
    copy_images(model_folder, folders.scorer)
    if "score" in configs:
        write_warmup_masks(configs["score"], repository)


def _copy_library(folder: Path) -> None:
    """The compiled native engine beside its sources: a server needs no compiler."""
    beside = SOURCES / library_name()
    shutil.copyfile(beside if beside.is_file() else cached_library(), folder / beside.name)


def told_parameters(meaning: ScoreMeaning, rules: TextRules) -> dict[str, str]:
    """What clients are told of a model: what its scores mean, and what of items and histories it reads."""
    template = rules.item_template
    return meaning.parameters | {
        "item_template": template,
        "item_fields": ",".join(template_fields(template)),
        HISTORY_PARAMETER: str(rules.history_items),
    }


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
        (repository / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, repository / place)
    (repository / "rank" / "1" / ".keep").touch()  # an ensemble has no files, but Triton wants its version folder
    copy_text_files(text_folder, model_folders(repository).texts)


def write_golden_cases(
    identity: Mapping[str, str],
    cases: Sequence[Mapping[str, Any]],
    repository: Path,
    tolerance: float = GOLDEN_TOLERANCE,
) -> None:
    """What answers name as their artifact, and golden.json.

    Args:
        identity: artifact, recipe and stage.
        cases: query, history, items and scores each.
        repository: where they go.
        tolerance: how far a server's scores may be from them.
    """
    (model_folders(repository).answers / IDENTITY_FILE).write_text(json.dumps(identity) + "\n", encoding="utf-8")
    golden = {"artifact": identity["artifact"], "tolerance": tolerance, "cases": cases}
    text = json.dumps(golden, indent=1, ensure_ascii=False)
    (repository / GOLDEN_FILE).write_text(text + "\n", encoding="utf-8")


def write_warmup_masks(score: pb.ModelConfig, repository: Path) -> None:
    """The files that the scorer's warm-up names: a joint ranker's masks, of ones."""
    for warmup in score.model_warmup:
        for tensor in warmup.inputs.values():
            if tensor.input_data_file:
                path = repository / "score" / "warmup" / tensor.input_data_file
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(np.ones(list(tensor.dims), dtype="<i4").tobytes())


def engine_inputs(model_folder: Path) -> list[str]:
    """What the engine takes; a joint ranker's graph says it: families without segment ids have one tensor less.

    Raises:
        ArtifactError: the folder does not hold the graphs of a ranker.
    """
    if is_checkpoint(model_folder):
        # Read as it lies there: a machine that serves need not have transformers.
        config = SimpleNamespace(**read_object(model_folder / CONFIG))
        return architecture_of_type(config.model_type).input_names(config)
    if is_sharded(model_folder):
        inputs = {name: graph["inputs"] for name, graph in read_shards(model_folder)["graphs"].items()}
    else:
        import onnx  # only who builds has graphs

        graphs = {path.name: onnx.load(path, load_external_data=False).graph for path in model_files(model_folder)}
        inputs = {name: [tensor.name for tensor in graph.input] for name, graph in graphs.items()}
        if architecture_of_files(inputs) is None:
            expected = ", or ".join(" and ".join(one.graph_files) for one in ARCHITECTURES)
            raise ArtifactError(
                f"{model_folder}: graphs {[*inputs]}; expected {expected}; "
                "export the checkpoint first: tritonrank build RECIPE"
            )
    taken = {name for names in inputs.values() for name in names}
    return [one.name for one in architecture_of_graphs(inputs).inputs if one.name in taken]


def longest_rows(inputs: Sequence[str], tokenizer: RequestTokenizer) -> dict[str, int]:
    """Tokens that a row of each of the engine's inputs can have, by the text rules."""
    architecture = tokenizer.architecture
    return {name: architecture.run_tokens(tokenizer.longest_rows[name]) for name in inputs}


def known_ids(inputs: Sequence[str], tokenizer: RequestTokenizer) -> dict[str, int]:
    """How many different ids the tokenizer has for each of the engine's inputs, from 0 on."""
    return {name: known for name, known in tokenizer.known_ids.items() if name in inputs}


def is_checkpoint(model_folder: Path) -> bool:
    """Whether a folder holds what the executor torch runs."""
    return (model_folder / WEIGHTS).is_file()


def _served_files(model_folder: Path) -> list[Path]:
    """The graphs of an artifact; of shards what ONNX Runtime executes, without the graphs for TensorRT, or what PyTorch
    does; a checkpoint's config and weights."""
    if is_checkpoint(model_folder):
        return [model_folder / name for name in CHECKPOINT_FILES]
    if not is_sharded(model_folder):
        return loaded_files(model_folder)
    if torch_ranks := sorted(model_folder.glob("*.safetensors")):
        return [model_folder / SHARDS_FILE, model_folder / CONFIG, *torch_ranks]
    return [model_folder / SHARDS_FILE, *model_folder.glob("*.bin"), *model_folder.glob("rank*.segment*.onnx")]
