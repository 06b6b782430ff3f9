"""From a model artifact to what scores requests with it, in this process."""

from pathlib import Path

import torch
from tritonrank_runtime.engines import model_files, open_native_engine
from tritonrank_runtime.kept_states import EXACT_BITS
from tritonrank_runtime.native.weights import NATIVE_FILE
from tritonrank_runtime.shard_runner import read_shards
from tritonrank_runtime.shard_workers import ShardWorkers, is_sharded, sharded_engine
from tritonrank_runtime.text import RequestTokenizer

from tritonrank.errors import ArtifactError
from tritonrank.graphs.rounding_twin import open_rounding_engine
from tritonrank.rankers.pretrained import load_any_ranker
from tritonrank.rankers.scorers import EngineScorer, torch_scorer


def open_scorer(folder: Path, context_cache_bits: int = EXACT_BITS) -> EngineScorer:
    """The scorer of a model artifact: the native engine if its weights are there, its ONNX file if it has one (FP16
    with every rounding), its shards in processes of their own if it has those, else its checkpoint.

    Args:
        folder: of the artifact.
        context_cache_bits: in which a server keeps keys and values of contexts; its scores follow from it.

    Raises:
        ArtifactError: the folder holds neither.
        ExecutorError: the native engine does not run here.
    """
    if (folder / NATIVE_FILE).is_file():
        native = open_native_engine(folder, context_cache_bits=context_cache_bits)
        return EngineScorer(RequestTokenizer.from_folder(folder, 100_000), native.run)
    if is_sharded(folder):
        ranks = int(read_shards(folder)["ranks"])
        workers = ShardWorkers(folder, device="" if torch.cuda.device_count() >= ranks else "cpu")
        return EngineScorer(
            RequestTokenizer.from_folder(folder, 100_000),
            sharded_engine(workers, context_cache_bits=context_cache_bits).run,
        )
    if model_files(folder):
        engine = open_rounding_engine(folder, context_cache_bits)
        return EngineScorer(RequestTokenizer.from_folder(folder, 100_000), engine.run)
    if (folder / "model.safetensors").is_file():
        model = load_any_ranker(folder).eval()
        model.to("cuda" if torch.cuda.is_available() else "cpu")
        return torch_scorer(model, RequestTokenizer.from_folder(folder, 100_000))
    raise ArtifactError(
        f"{folder}: neither an ONNX graph nor model.safetensors is here; build one: tritonrank build RECIPE"
    )
