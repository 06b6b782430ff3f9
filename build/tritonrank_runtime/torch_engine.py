"""Token ids -> logits by PyTorch: a checkpoint as it was trained, without an export, behind the interface of engine.py.

For GPU machines that have PyTorch and neither TensorRT nor onnxruntime-gpu: FP16 there, but for the score head, which
stays FP32. On a CPU it is FP32, and slower than ONNX Runtime: good for checks. To the engines the network looks like
sessions of the exported graphs, except that the keys and values of a context are tensors that stay on the device. On a
CPU runs go side by side, one thread each, as sessions do, and PyTorch's own threads are switched off in this process:
those of two scorers would wait for each other on busy cores. A shared-context ranker needs torch and safetensors
alone; a joint ranker is whatever transformers loads.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tritonrank_runtime.architecture import ROWS_PER_BATCH, EngineOptions
from tritonrank_runtime.architectures import architecture_of_type
from tritonrank_runtime.engine import Engine, ExecutorError, RowsError
from tritonrank_runtime.engines import engine_of
from tritonrank_runtime.network import SharedContextNetwork
from tritonrank_runtime.padding import PADDING

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"


def open_torch_engine(
    folder: Path,
    device: str = "cpu",
    threads: int = 0,
    rows_per_batch: int = ROWS_PER_BATCH,
    context_cache_bytes: int = 0,
) -> Engine:
    """The engine for a checkpoint: FP16 on a GPU, FP32 on the CPU.

    Args:
        folder: holds config.json and model.safetensors, of either architecture and in either precision.
        device: cpu or cuda; cuda:1 is the second GPU.
        threads: runs side by side on the CPU at the most; 0 = all cores this process may use.
        rows_per_batch: rows in one run of a joint ranker on the CPU at the most.
        context_cache_bytes: keys and values of contexts that a shared-context ranker keeps on the device at the most.

    Raises:
        ExecutorError: PyTorch sees no such device, or a joint ranker lacks transformers.
    """
    check_device(device)
    graphs = architecture_of_type(_read_config(folder)["model_type"]).torch_graphs(folder, device)
    if device != "cpu":
        return engine_of(graphs, EngineOptions.on_gpu(context_cache_bytes))
    torch.set_num_threads(1)
    return engine_of(graphs, EngineOptions(threads, rows_per_batch, context_cache_bytes))


def check_device(device: str) -> None:
    """Raise ExecutorError unless PyTorch can compute there."""
    if device == "cpu":
        return
    if not torch.cuda.is_available():
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "a build for CPUs"
        raise ExecutorError(
            f"PyTorch {torch.__version__} ({built}) sees no GPU. Look at nvidia-smi; builds for CUDA: pip install "
            "torch --index-url https://download.pytorch.org/whl/cu130"
        )
    number = int(device.partition(":")[2] or 0)
    if number >= torch.cuda.device_count():
        raise ExecutorError(f"{device}: PyTorch sees {torch.cuda.device_count()} GPU(s), numbered from 0")


def row_positions(config: Any) -> tuple[int, int]:
    """Tokens of a context and of a candidate, at the most, for which a shared-context ranker has positions."""
    positions = config.max_position_embeddings - config.first_position
    return positions, positions - config.context_positions


def load_network(folder: Path) -> SharedContextNetwork:
    """A shared-context ranker in FP32 on the CPU, ready to score; the file may hold FP16."""
    from safetensors.torch import load_file

    network = SharedContextNetwork(SimpleNamespace(**_read_config(folder)))
    network.load_state_dict({name: tensor.float() for name, tensor in load_file(folder / WEIGHTS_FILE).items()})
    return network.eval()


def as_half(network: SharedContextNetwork, device: str) -> SharedContextNetwork:
    """The same network in FP16 on a device, its head in FP32."""
    network.half().head.float()
    return network.to(device)


class ContextPass:
    """What an engine takes for context.onnx."""

    def __init__(self, network: SharedContextNetwork, device: str) -> None:
        self._network, self._device = network, device
        self._longest, _ = row_positions(network.config)

    @torch.inference_mode()
    def run(self, output_names: Sequence[str], input_feed: Mapping[str, Any]) -> Sequence[Tensor]:
        context_ids = input_feed["context_ids"]
        _check_ids("context_ids", context_ids, self._network.config.vocab_size, self._longest)
        return self._network.encode_context(_on_device(context_ids, self._device))

    def get_inputs(self) -> Sequence[Any]:
        return [SimpleNamespace(name="context_ids")]


class CandidatePass:
    """What an engine takes for candidates.onnx."""

    def __init__(self, network: SharedContextNetwork, device: str) -> None:
        self._network, self._device = network, device
        _, self._longest = row_positions(network.config)

    @torch.inference_mode()
    def run(self, output_names: Sequence[str], input_feed: Mapping[str, Any]) -> Sequence[Any]:
        name = "candidate_ids"
        _check_ids(name, input_feed[name], self._network.config.vocab_size, self._longest, least=PADDING)
        candidate_ids = _on_device(input_feed[name], self._device)
        keys, values = input_feed["context_keys"], input_feed["context_values"]
        return [self._network.score_candidates(keys, values, candidate_ids).float().cpu().numpy()]

    def get_inputs(self) -> Sequence[Any]:
        return [SimpleNamespace(name=name) for name in ("context_keys", "context_values", "candidate_ids")]


class JointPass:
    """What an engine takes for a joint model.onnx."""

    def __init__(self, model: Any, device: str, input_names: Callable[[Any], list[str]]) -> None:
        if device != "cpu":
            _keep_head_exact(model.half())
        self._model, self._device = model.to(device), device
        self._inputs = [SimpleNamespace(name=name) for name in input_names(model.config)]
        self._longest = _longest_joint_row(model)

    @torch.inference_mode()
    def run(self, output_names: Sequence[str], input_feed: Mapping[str, Any]) -> Sequence[Any]:
        config = self._model.config
        sizes = {"input_ids": config.vocab_size, "token_type_ids": getattr(config, "type_vocab_size", 0)}
        for name, tensor in input_feed.items():
            _check_ids(name, tensor, sizes.get(name, 2), self._longest)
        inputs = {name: _on_device(tensor, self._device).long() for name, tensor in input_feed.items()}
        return [self._model(**inputs).logits.float().cpu().numpy()]

    def get_inputs(self) -> Sequence[Any]:
        return self._inputs


def _check_ids(name: str, ids: NDArray[np.int32], size: int, longest: int, least: int = 0) -> None:
    """Refuse ids that a table has no row for: on a GPU looking one up would end CUDA for the whole process.

    Raises:
        RowsError: names the tensor and what is wrong.
    """
    if ids.shape[-1] > longest:
        raise RowsError(f"{name}: rows of {ids.shape[-1]} tokens; the ranker has {longest} positions for them")
    if ids.size and (ids.min() < least or ids.max() >= size):
        raise RowsError(f"{name}: ids from {ids.min()} to {ids.max()}; the ranker knows {least} to {size - 1}")


def _longest_joint_row(model: Any) -> int:
    """Tokens of a row that a model of transformers has positions for; without a table of positions any number."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            # RoBERTa's positions begin behind that of padding.
            first = 0 if module.padding_idx is None else module.padding_idx + 1
            return module.num_embeddings - first
    return sys.maxsize


def _keep_head_exact(model: Any) -> None:
    """Put the last linear layer, which makes the logit, back into FP32."""
    linear = [module for module in model.modules() if isinstance(module, nn.Linear) and module.out_features == 1]
    for head in linear:
        head.float().register_forward_pre_hook(lambda _, inputs: tuple(tensor.float() for tensor in inputs))


def _on_device(tensor: Any, device: str) -> Tensor:
    return torch.from_numpy(tensor).to(device)


def load_joint(folder: Path) -> Any:
    try:
        from transformers import AutoModelForSequenceClassification
    except ImportError:
        raise ExecutorError(
            f"{folder}: a joint ranker runs in PyTorch as transformers loads it, and transformers is not installed: "
            "pip install 'transformers>=4.57,<4.58'"
        ) from None
    return AutoModelForSequenceClassification.from_pretrained(
        str(folder), dtype=torch.float32, use_safetensors=True, trust_remote_code=False, local_files_only=True
    ).eval()


def _read_config(folder: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    return loaded
