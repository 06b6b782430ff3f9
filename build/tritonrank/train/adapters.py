"""LoRA: a ranker learns through thin matrices beside its linear layers, and its own weights stay as they were.

Each adapted layer computes W x + 2 B A x with A (rank, inputs) and B (outputs, rank); B starts at 0, so training starts
from the base itself (Hu et al. 2022). What is trained is small, and so are the checkpoints on the way. At the end the
products are added to the weights: what is exported, pruned and served is an ordinary checkpoint, and the adapter lies
beside it in a folder of its own. peft does the work.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from tritonrank.errors import RecipeError
from tritonrank.rankers.anatomy import part_name
from tritonrank.rankers.architectures import architecture_of
from tritonrank.rankers.checkpoint_source import identity
from tritonrank.recipe import FinetuneSettings, ModelSettings

ADAPTER_FOLDER = "adapter"
"""Beside the merged weights and not among them: transformers would take an adapter_config.json there for one that is
still to be applied."""
BASE_FILE = "base.json"
SCALE = 2
"""What an adapter adds is multiplied by; peft calls scale times rank alpha."""
DROPOUT = 0.05
"""Of what goes into an adapter. Decoders have no other dropout, without which R-Drop would compare equals."""
POOLER = "pooler"
"""What some encoders have between their last layer and the head; their checkpoints often lack it, so it is trained."""


@dataclass(frozen=True)
class AdapterKept:
    """Where a trained adapter goes, and what it belongs to."""

    folder: Path
    base: ModelSettings


def adapted(model: PreTrainedModel, settings: FinetuneSettings) -> Any:
    """The model with its adapters, ready to train; the model itself where the settings ask for none.

    The layers are replaced inside the model, so that what holds it sees the adapters, too.

    Raises:
        RecipeError: finetune.adapter_targets names layers that the model does not have.
    """
    if settings.adapter == "none":
        return model
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=settings.adapter_rank,
        lora_alpha=SCALE * settings.adapter_rank,
        lora_dropout=DROPOUT,
        target_modules=target_names(model, settings.adapter_targets),
        modules_to_save=sorted(_head_names(model)),
    )
    return get_peft_model(model, config)


def ranker_in(model: Any) -> Any:
    """The ranker of a model that may have adapters."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def merge(model: Any, kept: AdapterKept | None = None) -> None:
    """Add the adapters to the weights that they are beside, in place; a model without any stays as it is.

    Args:
        model: as ``adapted`` gave it.
        kept: where the adapters are saved before.
    """
    if ranker_in(model) is model:
        return
    if kept:
        _save(model, kept)
    ranker = model.merge_and_unload()
    if hasattr(ranker, "peft_config"):
        del ranker.peft_config
    ranker.requires_grad_(True)


def target_names(model: PreTrainedModel, targets: list[str] | None) -> list[str]:
    """The linear layers to adapt: those of all layers' attention and FFN, or of these the ones that targets name.

    Args:
        model: a ranker of whichever architecture.
        targets: ends of names such as ``query``, in the words of the model's family or of the shared-context ranker.

    Raises:
        RecipeError: one of them names nothing; says which there are.
    """
    linear = dict(_linear_layers(model))
    if targets is None:
        return list(linear)
    ours = {name: part_name(model, name) for name in linear}
    named = {
        target: [name for name in linear if _ends_with(name, target) or _ends_with(ours[name], target)]
        for target in targets
    }
    if unknown := [target for target, names in named.items() if not names]:
        there = sorted({_kind(name) for name in (*linear, *ours.values())})
        raise RecipeError(
            f"finetune.adapter_targets: {', '.join(unknown)}: no linear layer of this {model.config.model_type} model "
            f"ends in that; there are {', '.join(there)}"
        )
    return list(dict.fromkeys(name for names in named.values() for name in names))


def _linear_layers(model: PreTrainedModel) -> Iterator[tuple[str, nn.Module]]:
    owner, attribute = architecture_of(model.config).layer_list(model)
    layers = getattr(owner, attribute)
    prefix = next(name for name, module in model.named_modules() if module is layers)
    for name, module in layers.named_modules():
        if isinstance(module, nn.Linear):
            yield f"{prefix}.{name}", module


def _head_names(model: PreTrainedModel) -> Iterator[str]:
    """What has weights outside the encoder, and its pooler: as their ends of names, which is how peft looks for them.

    A ranker that is not an encoder with a head on it has its head by that name.
    """
    encoder: nn.Module | None = getattr(model, model.base_model_prefix, None)
    if encoder is None:
        yield "head"
        return
    for name, module in model.named_children():
        if module is not encoder and any(True for _ in module.parameters()):
            yield name
    if getattr(encoder, POOLER, None) is not None:
        yield POOLER


def _ends_with(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _kind(name: str) -> str:
    """A layer's name without what comes before its number in the list."""
    parts = name.split(".")
    number = next((place for place, part in enumerate(parts) if part.isdigit()), -1)
    return ".".join(parts[number + 1 :])


def _save(model: Any, kept: AdapterKept) -> None:
    config = model.peft_config[model.active_adapter]
    config.base_model_name_or_path = kept.base.source
    model.save_pretrained(kept.folder)
    (kept.folder / "README.md").unlink(missing_ok=True)  # a model card of blanks
    base = {"base": kept.base.source, "revision": kept.base.revision, "architecture": kept.base.architecture}
    # Of a folder the identity lists all of its files; one hash says the same.
    told = hashlib.sha256(identity(kept.base.source, kept.base.revision).encode()).hexdigest()
    (kept.folder / BASE_FILE).write_text(json.dumps(base | {"identity_sha256": told}, indent=2) + "\n", "utf-8")
