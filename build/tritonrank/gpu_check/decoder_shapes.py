"""Sizes of decoders and of requests to them: what the cost model computes with, and what the benchmark is run on.

Weights are random where these are used: how long a product takes does not depend on what is multiplied.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class DecoderShape:
    """What of a decoder decides about time and memory.

    Args:
        name: the published model of these sizes.
        layers: how many.
        hidden: width of the states between layers.
        heads: of queries.
        kv_heads: of keys and values; each serves ``heads / kv_heads`` heads of queries.
        head_size: numbers in a head.
        inner: width of the gated FFN.
        vocabulary: tokens.
    """

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    inner: int
    vocabulary: int

    @property
    def width(self) -> int:
        """Of all query heads together."""
        return self.heads * self.head_size

    @property
    def kv_width(self) -> int:
        """Of all key heads together."""
        return self.kv_heads * self.head_size

    @property
    def layer_weights(self) -> int:
        """Weights of all layers: query, key, value, attention output; gate, in and out of the FFN."""
        attention = 2 * self.hidden * (self.width + self.kv_width)
        return self.layers * (attention + 3 * self.hidden * self.inner)

    @property
    def weights(self) -> int:
        """All that a ranker holds: the vocabulary's head is one row, so the table of words counts once."""
        return self.layer_weights + self.vocabulary * self.hidden


QWEN3 = {"heads": 16, "kv_heads": 8, "head_size": 128, "vocabulary": 151_936}
SHAPES = {
    "qwen3-0.6b": DecoderShape("Qwen3-0.6B", 28, 1_024, inner=3_072, **QWEN3),
    "qwen3-4b": DecoderShape("Qwen3-4B", 36, 2_560, inner=9_728, **(QWEN3 | {"heads": 32})),
    "qwen3-8b": DecoderShape("Qwen3-8B", 36, 4_096, inner=12_288, **(QWEN3 | {"heads": 32})),
    "tiny": DecoderShape("tiny", 2, 64, heads=4, kv_heads=2, head_size=16, inner=128, vocabulary=512),
}
"""By what the commands call them. Source of the sizes: the config.json of each model on Hugging Face."""


@dataclass(frozen=True)
class Load:
    """One request.

    Args:
        prefix: tokens of what all candidates share.
        candidates: how many.
        candidate_tokens: of each.
    """

    prefix: int
    candidates: int
    candidate_tokens: int

    @property
    def branches(self) -> int:
        """Tokens of all candidates."""
        return self.candidates * self.candidate_tokens

    @property
    def shared(self) -> int:
        """Tokens that are computed where the prefix is computed once."""
        return self.prefix + self.branches

    @property
    def pairs(self) -> int:
        """Tokens that are computed pair by pair."""
        return self.candidates * (self.prefix + self.candidate_tokens)

    def __str__(self) -> str:
        return f"P={self.prefix:,} K={self.candidates:,} C={self.candidate_tokens:,}"


LOADS = (Load(500, 10, 30), Load(500, 100, 30), Load(2_000, 100, 50))
"""A short history with few candidates and with many, and a long one."""
