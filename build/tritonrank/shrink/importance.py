"""What can go: how much layers, heads and neurons matter to the ranking, measured on calibration examples.

Heads and neurons: ``taylor`` is the first-order estimate of how the ranking loss changes when the activation becomes
0, |sum of activation x gradient| over a sequence, added up over sequences (Molchanov et al. 2017, arXiv 1611.06440;
for heads Michel et al. 2019, arXiv 1905.10650); ``magnitude`` is the Euclidean norm of all weights that would leave,
and looks at no data.

Layers: ``ablation`` removes, one after the other, the layer without which the loss stays lowest, measured and not
estimated, which costs a forward pass per layer and step; ``influence`` is 1 - cosine of what goes into a layer and
what comes out (Men et al. 2024, arXiv 2403.03853); ``taylor`` is the estimate above for all that a layer adds.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from tritonrank.rankers.anatomy import head_group_of, head_size_of, heads_of, only_layers, parts_of
from tritonrank.rankers.architectures import architecture_of
from tritonrank.system.progress import track
from tritonrank.train.losses import list_loss

ADDED = (("attention_post_norm", "attention_out"), ("ffn_post_norm", "ffn_out"))
"""What attention and FFN add to the residual: the first of these that a layer has (Gemma norms it)."""
Batch = dict[str, Tensor]
Values = NDArray[np.float64]


@dataclass(frozen=True)
class LayerChoice:
    """Which layers stay, and why."""

    kept: list[int]
    importance: dict[str, list[float]]
    """per criterion's own measure: per layer, higher = more important"""
    steps: list[dict[str, float]]
    """only for ablation: the loss without each layer that was left, by its number, one entry per layer removed"""


@dataclass(frozen=True)
class Importance:
    """Higher = more important; arrays of shape (layers, groups of heads) and (layers, neurons).

    A group is the heads that share one of keys and values.
    """

    heads: Values
    neurons: Values


def choose_layers(model: PreTrainedModel, batches: Sequence[Batch], criterion: str, count: int) -> LayerChoice:
    """The ``count`` layers that matter most, in their order.

    Args:
        model: the whole ranker.
        batches: as the Collator makes them, labels included.
        criterion: ablation, influence or taylor.
        count: layers to keep.
    """
    layers = list(range(model.config.num_hidden_layers))
    if criterion == "ablation":
        return _ablate(model, batches, layers, count)
    measured = (_layer_influence if criterion == "influence" else _layer_taylor)(model, batches)
    best = np.argsort(-measured, kind="stable")[:count]
    return LayerChoice(sorted(int(layer) for layer in best), {criterion: measured.tolist()}, [])


def measure_importance(model: PreTrainedModel, batches: Sequence[Batch], criterion: str) -> Importance:
    """How much every head and neuron of the model matters.

    Args:
        model: a ranker, perhaps with layers already removed.
        batches: as the Collator makes them, labels included; not looked at for magnitude.
        criterion: taylor or magnitude.
    """
    return _magnitude(model) if criterion == "magnitude" else _taylor(model, batches)


def most_important(values: Values, count: int) -> list[list[int]]:
    """Per layer (row) the ``count`` places with the highest values, ascending; the first of equals stays."""
    return [sorted(np.argsort(-row, kind="stable")[:count].tolist()) for row in values]


def ranking_loss(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Listwise loss of a batch."""
    labels = batch["labels"]
    outputs = model(
        **{name: tensor for name, tensor in batch.items() if name not in {"labels", "weights", "teacher_logits"}}
    )
    logits: Tensor = outputs if isinstance(outputs, Tensor) else outputs.logits
    return list_loss(logits.view(labels.shape), labels, "listwise")


def _ablate(model: PreTrainedModel, batches: Sequence[Batch], layers: list[int], count: int) -> LayerChoice:
    kept, steps = layers, []
    with torch.inference_mode():
        while len(kept) > count:
            without = {}
            for layer in track(kept, f"loss without one of {len(kept)} layers"):
                with only_layers(model, [other for other in kept if other != layer]):
                    without[layer] = float(np.mean([ranking_loss(model, batch).item() for batch in batches]))
            steps.append({str(layer): loss for layer, loss in without.items()})
            least = min(without, key=lambda layer: without[layer])
            kept = [layer for layer in kept if layer != least]
    first = steps[0] if steps else {}
    return LayerChoice(kept, {"loss without": list(first.values())}, steps)


def _layer_influence(model: PreTrainedModel, batches: Sequence[Batch]) -> Values:
    architecture, layers = architecture_of(model.config), range(model.config.num_hidden_layers)
    totals, tokens = np.zeros(len(layers)), np.zeros(len(layers))
    with torch.inference_mode():
        for batch in batches:
            before, after = _around_layers(model, batch)
            for layer in layers:
                alike = functional.cosine_similarity(before[layer], after[layer], dim=-1)
                mask = architecture.token_mask(batch)
                if mask.shape != alike.shape:  # a last layer may see nothing but the tokens that scores are read at
                    mask = torch.ones_like(alike, dtype=torch.bool)
                totals[layer] += float(((1 - alike) * mask).sum())
                tokens[layer] += float(mask.sum())
    return totals / tokens


def _around_layers(model: PreTrainedModel, batch: Batch) -> tuple[list[Tensor], list[Tensor]]:
    """What goes into each layer and what comes out, for the rows that it computes."""
    parts = parts_of(model)
    if not architecture_of(model.config).norms_first:
        with _inputs_of(parts, "query") as before, _outputs_of(parts, "ffn_norm") as after:
            ranking_loss(model, batch)
        return before, after
    with _added(parts) as (attended, inner), _inputs_of(parts, "ffn_norm") as between:
        ranking_loss(model, batch)
    pairs = list(zip(between, attended, inner, strict=True))
    return [middle - first for middle, first, _ in pairs], [middle + second for middle, _, second in pairs]


def _layer_taylor(model: PreTrainedModel, batches: Sequence[Batch]) -> Values:
    parts, layers = parts_of(model), range(model.config.num_hidden_layers)
    totals = np.zeros(len(layers))
    for batch in batches:
        with _added(parts) as (attended, inner):
            changes = _estimated_changes(ranking_loss(model, batch), [*attended, *inner])
        sums = [float(change.sum(dim=-1).abs().sum()) for change in changes]
        totals += np.array(sums).reshape(2, len(layers)).sum(axis=0)
    return totals


def _taylor(model: PreTrainedModel, batches: Sequence[Batch]) -> Importance:
    parts, config = parts_of(model), model.config
    size, group = head_size_of(config), head_group_of(config)
    heads: Values = np.zeros((config.num_hidden_layers, heads_of(config) // group))
    neurons: list[Values] = [np.zeros(())] * config.num_hidden_layers
    for batch in track(batches, "importance of heads and neurons"):
        with _inputs_of(parts, "attention_out") as mixed, _inputs_of(parts, "ffn_out") as inner:
            changes = _estimated_changes(ranking_loss(model, batch), [*mixed, *inner])
        for layer in range(config.num_hidden_layers):
            by_head = changes[layer].view(-1, heads.shape[1], group * size).sum(dim=-1)
            heads[layer] += by_head.abs().sum(dim=0).double().numpy()
            by_neuron = changes[config.num_hidden_layers + layer]
            neurons[layer] = neurons[layer] + by_neuron.abs().sum(dim=0).double().numpy()
    return Importance(heads, np.stack(neurons))


def _estimated_changes(loss: Tensor, activations: list[Tensor]) -> list[Tensor]:
    """First-order change of the loss when an activation becomes 0, per sequence and channel: (sequences, channels)."""
    gradients = torch.autograd.grad(loss, activations)
    return [
        (activation.detach() * gradient).sum(dim=1).cpu()
        for activation, gradient in zip(activations, gradients, strict=True)
    ]


@torch.no_grad()
def _magnitude(model: PreTrainedModel) -> Importance:
    parts, config = parts_of(model), model.config
    groups = heads_of(config) // head_group_of(config)
    heads, neurons = [], []
    for layer in range(config.num_hidden_layers):
        weight = {
            name: cast(Tensor, parts[f"layers.{layer}.{name}"].weight)
            for name in ("query", "key", "value", "attention_out", "ffn_gate", "ffn_in", "ffn_out")
            if f"layers.{layer}.{name}" in parts
        }
        # A row of queries, keys and values belongs to a head, and so does a column of the output.
        squares = [weight[name].square().sum(dim=1).view(groups, -1).sum(dim=1) for name in ("query", "key", "value")]
        squares.append(weight["attention_out"].square().sum(dim=0).view(groups, -1).sum(dim=1))
        heads.append(torch.stack(squares).sum(dim=0).sqrt().double().cpu().numpy())
        inner = [weight[name].square().sum(dim=1) for name in ("ffn_gate", "ffn_in") if name in weight]
        inner.append(weight["ffn_out"].square().sum(dim=0))
        neurons.append(torch.stack(inner).sum(dim=0).sqrt().double().cpu().numpy())
    return Importance(np.stack(heads), np.stack(neurons))


@contextmanager
def _added(parts: dict[str, nn.Module]) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """What attention and what the FFN of each layer adds to the residual."""
    attention, ffn = (next(name for name in names if f"layers.0.{name}" in parts) for names in ADDED)
    with _outputs_of(parts, attention) as attended, _outputs_of(parts, ffn) as inner:
        yield attended, inner


def _inputs_of(parts: dict[str, nn.Module], part: str) -> Any:
    return _watched(parts, part, lambda module, keep: module.register_forward_pre_hook(lambda _, given: keep(given[0])))


def _outputs_of(parts: dict[str, nn.Module], part: str) -> Any:
    return _watched(parts, part, lambda module, keep: module.register_forward_hook(lambda _, __, made: keep(made)))


@contextmanager
def _watched(
    parts: dict[str, nn.Module], part: str, watch: Callable[[nn.Module, Callable[[Tensor], None]], Any]
) -> Iterator[list[Tensor]]:
    """What the layers' modules of this name take or give in one forward pass, in the order of the layers."""
    seen: list[Tensor] = []
    handles = [
        watch(module, seen.append)
        for name, module in parts.items()
        if name.startswith("layers.") and name.endswith(f".{part}")
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
