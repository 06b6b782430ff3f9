"""Several processes that share one model: FSDP, for what does not fit one GPU.

Under DDP every process holds weights, gradients and optimizer state, 16 bytes per trained parameter with AdamW. Here
each holds its part of every layer, and a layer's weights are whole only while it computes (Rajbhandari et al. 2020,
stage 3; torch's ``fully_shard``). transformers and accelerate do it on GPUs alone; torch by itself does it over gloo on
CPUs as well, which is how it is tested, so it is done here.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from tritonrank.errors import RecipeError
from tritonrank.rankers.architectures import architecture_of
from tritonrank.recipe import FinetuneSettings

STATE_BYTES = 16
"""Per trained parameter: weight, gradient and two moments of AdamW in FP32."""
FROZEN_BYTES = 4
FITS = 0.6
"""Share of a GPU's memory that weights, gradients and optimizer state may take; activations need the rest."""
LAYER_METHODS = ("packed", "forward")
"""What a packed batch goes through in a layer: our own networks' first, that of transformers' families second."""


def is_sharded(settings: FinetuneSettings, model: nn.Module) -> bool:
    """Whether this training splits the model among its processes.

    Args:
        settings: their ``sharding``.
        model: with its adapters, if it has any.

    Raises:
        RecipeError: it is asked for, and this is one process.
    """
    world = dist.get_world_size() if dist.is_initialized() else 1
    if settings.sharding == "fsdp" and world == 1:
        raise RecipeError(
            "finetune.sharding is fsdp, and this is one process, which has nobody to share with. Start several: "
            "torchrun --nproc-per-node GPUS -m tritonrank finetune RECIPE"
        )
    if settings.sharding != "auto":
        return settings.sharding == "fsdp"
    if world == 1 or not torch.cuda.is_available() or settings.mixed_precision == "fp16":
        return False
    return state_bytes(model) > FITS * torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory


def state_bytes(model: nn.Module) -> int:
    """Memory of weights, gradients and AdamW's state in FP32."""
    return sum(
        weight.numel() * (STATE_BYTES if weight.requires_grad else FROZEN_BYTES) for weight in model.parameters()
    )


def shard(model: nn.Module, ranker: PreTrainedModel, precision: torch.dtype | None) -> None:
    """Split a model among all processes, in place, layer by layer.

    Args:
        model: with its adapters, if it has any; the same in every process.
        ranker: the ranker in it.
        precision: dtype in which layers compute; gradients are summed in FP32.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh("cuda" if torch.cuda.is_available() else "cpu", (dist.get_world_size(),))
    # Inputs stay as they are: ids are no numbers to round.
    policy = MixedPrecisionPolicy(precision, torch.float32 if precision else None, cast_forward_inputs=False)
    for layer in layers_of(ranker):
        fully_shard(layer, mesh=mesh, mp_policy=policy)
        if (method := layer_method(layer)) != "forward":
            register_fsdp_forward_method(layer, method)
    fully_shard(model, mesh=mesh, mp_policy=policy)


def layers_of(ranker: PreTrainedModel) -> Iterator[nn.Module]:
    """The layers of a ranker of whichever architecture."""
    owner, attribute = architecture_of(ranker.config).layer_list(ranker)
    yield from getattr(owner, attribute)


def layer_method(layer: nn.Module) -> str:
    """What a training batch goes through in a layer."""
    return next(name for name in LAYER_METHODS if hasattr(layer, name))


class Sharded(nn.Module):
    """Stands where DDP would: the Trainer leaves what is wrapped already as it is."""

    def __init__(self, model: nn.Module, precision: torch.dtype | None) -> None:
        super().__init__()
        self.module = model
        self._precision = precision

    def forward(self, *arguments: Any, **named: Any) -> Any:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        with torch.autocast(device, dtype=self._precision, enabled=self._precision is not None):
            return self.module(*arguments, **named)


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """The weights that are trained, as they are in this process."""
    return {name: weight.detach() for name, weight in model.named_parameters() if weight.requires_grad}


def gathered(tensors: Mapping[str, Tensor], *, keeps: bool = True) -> dict[str, Tensor]:
    """Whole tensors on the CPU, or nothing where this process does not keep them. Every process has to call it."""
    kept = {}
    for name, tensor in tensors.items():
        whole = _whole(tensor)
        if keeps:
            kept[name] = whole.cpu().contiguous()
    return kept


@torch.no_grad()
def put(places: Mapping[str, Tensor], whole: Mapping[str, Tensor]) -> None:
    """Fill tensors, of which this process may hold a part, from whole ones. Every process has to call it."""
    for name, place in places.items():
        value = whole[name].to(place.device)
        if isinstance(place, DTensor):
            value = distribute_tensor(value, place.device_mesh, place.placements)
        place.copy_(value)


def whole_norm(clip: Callable[..., Any]) -> Callable[..., Any]:
    """``clip_grad_norm_`` whose result is a plain number's tensor though every process holds a part."""
    return lambda *arguments, **named: _whole(clip(*arguments, **named))


def _whole(tensor: Any) -> Any:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
