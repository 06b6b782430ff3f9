"""A moving average of the weights while they are trained: what it holds is judged and kept in place of the last ones.

After step t each weight's average a becomes d a + (1 - d) w, with d the smaller of the decay and (1 + t) / (10 + t): at
first the average follows closely, or it would remember the beginning for longer than short trainings last (the ramp of
TensorFlow's ExponentialMovingAverage). Averages of the last steps lie in flatter places than the weights themselves
(Izmailov et al. 2018 for their plain mean).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tritonrank.train.sharding import gathered, put

AVERAGED_FILE = "averaged.safetensors"
"""In a checkpoint of an interrupted run, beside the weights themselves."""


class AveragedWeights:
    """The average of the weights that are trained.

    Args:
        model: whose; it starts as they are.
        decay: at most.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        self._weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self._averages = {name: weight.detach().clone() for name, weight in self._weights.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After optimizer step number ``step``, counted from 1."""
        share = 1 - min(self._decay, (1 + step) / (10 + step))
        for name, weight in self._weights.items():
            self._averages[name].lerp_(weight, share)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """While this lasts the model has the averages; afterwards it has its own weights, bit for bit."""
        own = {name: weight.detach().clone() for name, weight in self._weights.items()}
        self.apply()
        try:
            yield
        finally:
            self._copy(own)

    def apply(self) -> None:
        """Give the model the averages."""
        self._copy(self._averages)

    def save(self, folder: Path, *, writes: bool) -> None:
        """Write them into a checkpoint. Every process has to call it, as each may hold a part."""
        whole = gathered(self._averages, keeps=writes)
        if writes:
            save_file(whole, folder / AVERAGED_FILE)

    def load(self, folder: Path) -> None:
        """Read them from a checkpoint; the model's weights stay."""
        put(self._averages, load_file(folder / AVERAGED_FILE))

    @torch.no_grad()
    def _copy(self, values: Mapping[str, Tensor]) -> None:
        for name, weight in self._weights.items():
            weight.copy_(values[name])
