"""Adversarial examples in the space of word embeddings: FGM, the fast gradient method.

After a step's ordinary backward pass the gradient g of its loss by the word embeddings of each sequence is known; the
sequence is read a second time with its embeddings moved by r = length * g / |g|, to where the loss rises most, and both
gradients are learnt from (Miyato, Dai & Goodfellow 2017, eq. 3 and 8, without a virtual part). What is moved is what
the table of words gives out and not the table, so it works as well for a table that is frozen, and no weight has to be
restored.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class Adversary:
    """Moves what a table of words gives out.

    Args:
        words: the model's input embeddings; their output is (sequences, tokens, width).
        length: of the move, over all embeddings of one sequence (Euclidean).
    """

    def __init__(self, words: nn.Module, length: float) -> None:
        self._length = length
        self._embedded: Tensor | None = None
        self._move: Tensor | None = None
        self._is_watching = False
        words.register_forward_hook(self._hook)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """While this lasts, the embeddings of what is read are remembered; their gradient is there after a backward
        pass."""
        self._is_watching = True
        try:
            yield
        finally:
            self._is_watching = False

    @contextmanager
    def moved(self) -> Iterator[None]:
        """While this lasts, the same is read with its embeddings moved.

        Raises:
            RuntimeError: nothing was watched, or no gradient reached it.
        """
        if self._embedded is None or self._embedded.grad is None:
            raise RuntimeError("no gradient by the word embeddings is known: run a backward pass while it is watched")
        self._move = adversarial_move(self._embedded.grad, self._length)
        self._embedded = None
        try:
            yield
        finally:
            self._move = None

    def _hook(self, module: nn.Module, inputs: Any, embedded: Tensor) -> Tensor | None:
        if self._move is not None:
            return embedded + self._move.to(embedded.dtype)
        if self._is_watching and torch.is_grad_enabled():
            # Of a frozen table nothing would be remembered.
            embedded = embedded if embedded.requires_grad else embedded.detach().requires_grad_()
            embedded.retain_grad()
            self._embedded = embedded
            return embedded
        return None


def adversarial_move(gradient: Tensor, length: float) -> Tensor:
    """gradient (sequences, tokens, width) -> moves of the same shape, each sequence's of the given length; of a
    sequence without a gradient 0."""
    norms = gradient.float().flatten(1).norm(dim=1).view(-1, 1, 1)
    return torch.where(norms > 0, length * gradient.float() / norms.clamp(min=torch.finfo(torch.float32).tiny), 0.0)
