"""What a network reads of an image: its vector, projected to a few embeddings that stand where words could.

The vector is centred and scaled by what the images of the training data are like, projected, and normed to the size
that the embeddings of words have; position and segment are added as for words. So an image costs its soft tokens, and
one product of its width with their embeddings per request that shows it.
"""

from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from tritonrank_runtime.images import FIRST_IMAGE_ID, SOFT_TOKENS, WIDTH, ImageTable

LEAST_DEVIATION = 1e-3
"""Numbers of a vector that vary by less over all images say nothing, and are not blown up."""


class ImageTokens(nn.Module):
    """Vectors of images -> embeddings.

    Args:
        width: numbers of a vector.
        soft_tokens: of an image.
        embedding_size: of a word.
    """

    centre: Tensor
    scale: Tensor

    def __init__(self, width: int, soft_tokens: int, embedding_size: int) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self.project = nn.Linear(width, soft_tokens * embedding_size)
        self.norm = nn.LayerNorm(embedding_size)
        self.table: ImageTable | None = None
        """where ids are looked up"""
        self.given: Tensor | None = None
        """(images, width): the vectors that ids count instead, while a graph is traced"""

    @classmethod
    def of(cls, config: Any) -> Self | None:
        """Those of a model with this config; None where it reads texts alone."""
        width, soft_tokens = getattr(config, WIDTH, 0), getattr(config, SOFT_TOKENS, 0)
        return cls(width, soft_tokens, config.embedding_size) if soft_tokens else None

    @torch.no_grad()
    def fit(self, table: ImageTable, words: nn.Embedding) -> None:
        """Start from what the images and the words are like.

        Args:
            table: of the training data.
            words: whose size the soft tokens get.
        """
        vectors = table.vectors.astype(np.float32)
        self.table = table
        self.centre.copy_(torch.from_numpy(vectors.mean(axis=0)))
        self.scale.copy_(torch.from_numpy(1 / np.maximum(vectors.std(axis=0), LEAST_DEVIATION)))
        self.norm.weight.fill_(float(words.weight.std()))

    def forward(self, token_ids: Tensor, words: nn.Embedding) -> Tensor:
        """Embeddings of tokens and images: token_ids (..., tokens) -> (..., tokens, embedding size)."""
        is_image = token_ids >= FIRST_IMAGE_ID
        embedded: Tensor = words(torch.where(is_image, torch.zeros_like(token_ids), token_ids))
        if self.given is None:
            token_ids, vectors = self._looked_up(token_ids)
        else:
            vectors = self.given
        places = (token_ids - FIRST_IMAGE_ID).clamp(min=0)
        projected = self.project((vectors - self.centre) * self.scale)
        tokens: Tensor = self.norm(projected.view(-1, embedded.shape[-1]))[places]
        return torch.where(is_image.unsqueeze(-1), tokens.to(embedded.dtype), embedded)

    def _looked_up(self, token_ids: Tensor) -> tuple[Tensor, Tensor]:
        if self.table is None:
            raise RuntimeError("a ranker of images was not given their table")
        local, vectors = self.table.local(token_ids.cpu().numpy())
        found = torch.from_numpy(vectors).to(token_ids.device, self.centre.dtype)
        return torch.from_numpy(local).to(token_ids.device), found


def image_tokens(network: Any) -> ImageTokens | None:
    """Those of a network; None of one that reads texts alone, of whichever architecture."""
    found: ImageTokens | None = getattr(getattr(network, "embeddings", None), "images", None)
    return found


def attach_images(network: Any, folder: Path) -> None:
    """Give a network that reads images the table that lies beside its weights, if one does."""
    if (images := image_tokens(network)) is not None:
        images.table = ImageTable.beside(folder)
