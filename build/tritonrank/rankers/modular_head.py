"""The modules of sentence-transformers that come after the backbone: pooling, then dense layers, down to one score.

Their settings and weights are read from their files; nothing of sentence-transformers runs, so nothing of it has to be
installed. Since version 5.4 cross-encoders come in this form (``modules.json``).

Source: sentence_transformers/base/modules/dense.py and sentence_transformer/modules/pooling.py of 5.7.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tritonrank.errors import ArtifactError
from tritonrank.rankers.checkpoint_files import CONFIG, WEIGHTS, modules_of, read_object

POOLING, DENSE, LAYER_NORM = "Pooling", "Dense", "LayerNorm"
IGNORED = {"Dropout"}
"""Modules that do nothing when a model is used."""
HEAD_MODULES = {POOLING, DENSE, LAYER_NORM} | IGNORED
LEGACY_POOLING = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "lasttoken",
}
POOLINGS = tuple(LEGACY_POOLING.values())


def kinds_of(modules: list[dict[str, Any]]) -> list[str]:
    """The class names of modules, without the packages that moved between versions."""
    return [str(module.get("type", "")).rpartition(".")[2] for module in modules]


class ModularHead(nn.Module):
    """(rows, tokens, width) states and (rows, tokens) mask -> (rows, 1) scores.

    Args:
        pooling: how the states of a row become one.
        layers: what follows, in order.
    """

    def __init__(self, pooling: str, layers: list[nn.Module]) -> None:
        super().__init__()
        self.pooling = pooling
        self.layers = nn.Sequential(*layers)

    @classmethod
    def load(cls, name: str, folder: Path) -> "ModularHead":
        """Read the modules' folders.

        Raises:
            ArtifactError: a module is of another kind, its files are damaged, or the last one gives no single score.
        """
        pooling, layers = "cls", list[nn.Module]()
        modules = modules_of(folder)[1:]
        for kind, module in zip(kinds_of(modules), modules, strict=True):
            place = folder / str(module.get("path") or "")
            if kind == POOLING:
                pooling = pooling_mode(name, place)
            elif kind == DENSE:
                layers += _dense(name, place)
            elif kind == LAYER_NORM:
                layers.append(_layer_norm(name, place))
            elif kind not in IGNORED:
                raise ArtifactError(f"{name}: a module {kind}, which is not served; known: {', '.join(HEAD_MODULES)}")
        last = next((layer for layer in reversed(layers) if isinstance(layer, nn.Linear)), None)
        if last is None or last.out_features != 1:
            raise ArtifactError(
                f"{name}: its modules end in {last.out_features if last else 'no'} numbers; a ranker gives one score"
            )
        return cls(pooling, layers)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        scores: Tensor = self.layers(self._pooled(states, mask.to(states.dtype).unsqueeze(-1)))
        return scores

    def _pooled(self, states: Tensor, mask: Tensor) -> Tensor:
        if self.pooling == "cls":
            return states[:, 0]
        if self.pooling == "mean":
            return (states * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
        if self.pooling == "max":
            return (states + (1.0 - mask) * torch.finfo(states.dtype).min).amax(1)
        last = mask.sum(1).long() - 1  # rows are padded at their end
        return torch.gather(states, 1, last.unsqueeze(-1).expand(-1, 1, states.shape[-1])).squeeze(1)


def pooling_mode(name: str, folder: Path) -> str:
    """How a Pooling module pools.

    Raises:
        ArtifactError: in a way that is not served, or in several at once.
    """
    settings = read_object(folder / CONFIG)
    told = settings.get("pooling_mode") or [mode for key, mode in LEGACY_POOLING.items() if settings.get(key)]
    modes = [told] if isinstance(told, str) else list(told) or ["mean"]
    others = [key for key, value in settings.items() if key.startswith("pooling_mode_") and value is True]
    if len(modes) != 1 or modes[0] not in POOLINGS or set(others) - set(LEGACY_POOLING):
        raise ArtifactError(
            f"{name}: {folder.name}/{CONFIG} pools by {', '.join([*modes, *others])}; one of {', '.join(POOLINGS)} is "
            "served"
        )
    return modes[0]


def _dense(name: str, folder: Path) -> Iterator[nn.Module]:
    settings = read_object(folder / CONFIG)
    linear = nn.Linear(settings["in_features"], settings["out_features"], bias=bool(settings.get("bias", True)))
    _fill(name, folder, linear, "linear.")
    yield linear
    activation = str(settings.get("activation_function") or "torch.nn.modules.linear.Identity")
    package, _, kind = activation.rpartition(".")
    found = getattr(nn, kind, None)
    if not package.startswith("torch.nn") or not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise ArtifactError(
            f"{name}: {folder.name}/{CONFIG} names the activation {activation}, which is code of its own and never "
            "runs; those of torch.nn are served"
        )
    yield found()


def _layer_norm(name: str, folder: Path) -> nn.Module:
    norm = nn.LayerNorm(int(read_object(folder / CONFIG)["dimension"]))
    _fill(name, folder, norm, "norm.")
    return norm


def _fill(name: str, folder: Path, layer: nn.Module, prefix: str) -> None:
    path = folder / WEIGHTS
    if not path.is_file():
        raise ArtifactError(
            f"{name}: no {WEIGHTS} in {folder.name}; a pickle there is never read. Convert it: tritonrank "
            f"convert-weights {folder}"
        )
    weights: Mapping[str, Tensor] = load_file(path)
    try:
        layer.load_state_dict({key.removeprefix(prefix): value.float() for key, value in weights.items()})
    except (RuntimeError, KeyError) as error:
        raise ArtifactError(f"{name}: {folder.name}/{WEIGHTS} does not fit its {CONFIG}: {error}") from None
