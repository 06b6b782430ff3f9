"""Checkpoints as graphs that PyTorch runs: to an engine they look like sessions of the exported graphs, except that
the keys and values of a context are tensors that stay on the device.
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

from tritonrank_runtime.engine import ExecutorError, RowsError
from tritonrank_runtime.network import SharedContextNetwork
from tritonrank_runtime.padding import PADDING

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"


def row_positions(config: Any) -> tuple[int, int]:
    """Tokens of a context and of a candidate, at the most, for which a shared-context ranker has positions."""
    positions = config.max_position_embeddings - config.first_position
    return positions, positions - config.context_positions


def load_network(folder: Path) -> SharedContextNetwork:
    """A shared-context ranker in FP32 on the CPU, ready to score; the file may hold FP16."""
    from safetensors.torch import load_file

    network = SharedContextNetwork(SimpleNamespace(**read_config(folder)))
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


def read_config(folder: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    return loaded
