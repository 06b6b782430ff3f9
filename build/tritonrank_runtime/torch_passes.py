"""Checkpoints as graphs that PyTorch runs: to an engine they look like sessions of the exported graphs, except that
the keys and values of what candidates share are tensors that stay on the device.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tritonrank_runtime.decoder_network import DecoderNetwork
from tritonrank_runtime.engine import ExecutorError, RowsError
from tritonrank_runtime.image_tokens import attach_images
from tritonrank_runtime.network import SharedContextNetwork
from tritonrank_runtime.padding import PADDING
from tritonrank_runtime.split_engine import SplitNames

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"

_Network = TypeVar("_Network", SharedContextNetwork, DecoderNetwork)


def row_positions(config: Any) -> tuple[int, int]:
    """Tokens of a context and of a candidate, at the most, for which a shared-context ranker has positions."""
    positions = config.max_position_embeddings - config.first_position
    return positions, positions - config.context_positions


def load_network(folder: Path) -> SharedContextNetwork:
    """A shared-context ranker in FP32 on the CPU, ready to score; the file may hold FP16."""
    from safetensors.torch import load_file

    network = SharedContextNetwork(SimpleNamespace(**read_config(folder)))
    network.load_state_dict({name: tensor.float() for name, tensor in load_file(folder / WEIGHTS_FILE).items()})
    attach_images(network, folder)
    return network.eval()


def load_decoder(folder: Path) -> DecoderNetwork:
    """A decoder, likewise."""
    from safetensors.torch import load_file

    network = DecoderNetwork(SimpleNamespace(**read_config(folder)))
    network.load_state_dict({name: tensor.float() for name, tensor in load_file(folder / WEIGHTS_FILE).items()})
    return network.eval()


def as_half(network: _Network, device: str) -> _Network:
    """The same network in FP16 on a device, its head in FP32."""
    network.half().head.float()
    return network.to(device)


class SharedPass:
    """What an engine takes for the graph of the shared row.

    Args:
        names: of the tensors.
        network: on the device.
        encode: its method, from token ids to keys and values.
        longest: tokens of a row at the most.
        device: cpu or cuda.
    """

    def __init__(
        self,
        names: SplitNames,
        network: SharedContextNetwork | DecoderNetwork,
        encode: Callable[[Tensor], tuple[Tensor, Tensor]],
        longest: int,
        device: str,
    ) -> None:
        self._name, self._encode, self._device = names.shared, encode, device
        self._vocabulary, self._longest = network.config.vocab_size, longest

    @torch.inference_mode()
    def run(self, output_names: Sequence[str], input_feed: Mapping[str, Any]) -> Sequence[Tensor]:
        ids = input_feed[self._name]
        _check_ids(self._name, ids, self._vocabulary, self._longest)
        return self._encode(_on_device(ids, self._device))

    def get_inputs(self) -> Sequence[Any]:
        return [SimpleNamespace(name=self._name)]


class RowsPass:
    """What an engine takes for the graph of the candidates' rows.

    Args:
        names: of the tensors.
        network: on the device.
        score: its method, from keys, values and token ids to logits.
        longest: tokens of a row at the most, with those of the shared row where ``counts_on`` says so.
        device: cpu or cuda.
        counts_on: whether positions of a row go on where the shared row ends.
    """

    def __init__(
        self,
        names: SplitNames,
        network: SharedContextNetwork | DecoderNetwork,
        score: Callable[[Tensor, Tensor, Tensor], Tensor],
        longest: int,
        device: str,
        counts_on: bool = False,
    ) -> None:
        self._names, self._score, self._device = names, score, device
        self._vocabulary, self._longest, self._counts_on = network.config.vocab_size, longest, counts_on

    @torch.inference_mode()
    def run(self, output_names: Sequence[str], input_feed: Mapping[str, Any]) -> Sequence[Any]:
        keys, values = (input_feed[name] for name in self._names.states)
        ids = input_feed[self._names.rows]
        longest = self._longest - (keys.shape[2] if self._counts_on else 0)
        _check_ids(self._names.rows, ids, self._vocabulary, longest, least=PADDING)
        return [self._score(keys, values, _on_device(ids, self._device)).float().cpu().numpy()]

    def get_inputs(self) -> Sequence[Any]:
        return [SimpleNamespace(name=name) for name in (*self._names.states, self._names.rows)]


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
