"""One pre-norm decoder layer: attention with grouped queries, then a gated or a plain FFN; and its norms.

Queries of the heads that share one key head are folded into the rows of one matrix product, so keys and values are
never repeated. Sources: grouped queries, Ainslie et al., arXiv:2305.13245; gated FFN, Shazeer, arXiv:2002.05202;
root-mean-square norm, Zhang and Sennrich, arXiv:1910.07467; norms behind both parts, and caps, Gemma 2,
arXiv:2408.00118.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from tritonrank_runtime.network import make_activation
from tritonrank_runtime.rotary import Turns, turned


class Sight(NamedTuple):
    """What is added to the attention scores of branches' rows."""

    own_mask: Tensor
    """of their own tokens: (1 or requests, 1 or candidates, rows, tokens)"""
    prefix_mask: Tensor | None
    """of the prefix's: (1 or requests, 1 or candidates, rows, prefix tokens); None: all is seen"""


class RootMeanSquareNorm(nn.Module):
    """hidden / sqrt(mean of its squares + epsilon), times a weight, or times 1 + weight (Gemma)."""

    def __init__(self, size: int, epsilon: float, offset: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size) if offset else torch.ones(size))
        self.epsilon = epsilon
        self.offset = offset

    def forward(self, hidden: Tensor) -> Tensor:
        # These operations in this order are what ONNX Runtime makes one of. Squares would overflow in FP16.
        exact = _in_type(hidden, torch.float32)
        normed = exact / torch.sqrt(exact.pow(2).mean(dim=-1, keepdim=True) + self.epsilon)
        weight = 1.0 + self.weight.float() if self.offset else self.weight
        return _in_type(_in_type(normed, weight.dtype) * weight, hidden.dtype)

    @torch.no_grad()
    def fold(self) -> None:
        """Make 1 + weight the weight."""
        if self.offset:
            self.weight.add_(1.0)
            self.offset = False


class PlainNorm(nn.LayerNorm):
    """The norm of GPT-2."""

    def fold(self) -> None:
        """Nothing of it can be folded."""


def make_norm(config: Any, size: int) -> "RootMeanSquareNorm | PlainNorm":
    """The kind of norm that a config names."""
    if config.norm == "layer":
        return PlainNorm(size, eps=config.norm_eps)
    return RootMeanSquareNorm(size, config.norm_eps, config.norm_offset)


def softcapped(scores: Tensor, cap: float | None) -> Tensor:
    """Scores between -cap and cap; None leaves them as they are."""
    return scores if cap is None else torch.tanh(scores / cap) * cap


class Layer(nn.Module):
    """What it consists of, and in how many heads, is in the config."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        hidden, size = config.hidden_size, config.head_size
        self.key_heads, self.head_size = config.num_key_value_heads, size
        self.heads = config.num_attention_heads
        self.scale = size**-0.5 if config.query_scale is None else config.query_scale
        self.softcap = config.attention_softcap
        width, key_width = self.heads * size, self.key_heads * size
        self.attention_norm = make_norm(config, hidden)
        self.query = nn.Linear(hidden, width, bias=config.attention_bias)
        self.key = nn.Linear(hidden, key_width, bias=config.attention_bias)
        self.value = nn.Linear(hidden, key_width, bias=config.attention_bias)
        self.query_norm = make_norm(config, size) if config.query_key_norm else None
        self.key_norm = make_norm(config, size) if config.query_key_norm else None
        self.attention_out = nn.Linear(width, hidden, bias=config.attention_out_bias)
        self.attention_post_norm = make_norm(config, hidden) if config.post_norms else None
        self.ffn_norm = make_norm(config, hidden)
        is_gated = config.ffn == "gated"
        self.ffn_gate = nn.Linear(hidden, config.intermediate_size, bias=config.ffn_bias) if is_gated else None
        self.ffn_in = nn.Linear(hidden, config.intermediate_size, bias=config.ffn_bias)
        self.ffn_out = nn.Linear(config.intermediate_size, hidden, bias=config.ffn_bias)
        self.ffn_post_norm = make_norm(config, hidden) if config.post_norms else None
        self.activation = make_activation(config.hidden_act)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.attention_dropout = config.attention_probs_dropout_prob

    @torch.no_grad()
    def fold(self) -> None:
        """See ``DecoderPasses.folded``."""
        for module in self.children():
            if isinstance(module, RootMeanSquareNorm):
                module.fold()
        if self.query_norm is not None:
            self.query_norm.weight.mul_(self.scale)
        else:
            self.query.weight.mul_(self.scale)
            if self.query.bias is not None:
                self.query.bias.mul_(self.scale)
        self.scale = 1.0

    def packed(
        self, rows: Tensor, hidden: Tensor, visible: Tensor, row_turns: Turns | None, own_turns: Turns | None
    ) -> Tensor:
        """rows (examples, rows, hidden) attend to what ``visible`` (examples, rows, tokens) allows of ``hidden``.

        Args:
            rows: of all tokens, or of those whose output is wanted.
            hidden: (examples, tokens, hidden).
            visible: true where a row sees a token.
            row_turns, own_turns: of the rows and of the tokens.
        """
        normed = self.attention_norm(hidden)
        queries = normed if rows is hidden else self.attention_norm(rows)
        query = self._query(queries, row_turns).transpose(1, 2)
        key, value = self.keys_and_values(normed, own_turns)
        dropout = self.attention_dropout if self.training else 0.0
        if self.softcap is None:
            mixed = functional.scaled_dot_product_attention(
                query, key, value, visible[:, None], dropout, scale=1.0, enable_gqa=True
            )
        else:
            key, value = (one.repeat_interleave(self.heads // self.key_heads, dim=1) for one in (key, value))
            scores = softcapped(query @ key.transpose(2, 3), self.softcap)
            weights = scores.masked_fill(~visible[:, None], torch.finfo(scores.dtype).min).softmax(dim=-1)
            mixed = functional.dropout(weights, dropout) @ value
        return self._finish(rows, mixed.transpose(1, 2).flatten(2))

    def keys_and_values(self, normed: Tensor, own_turns: Turns | None) -> tuple[Tensor, Tensor]:
        """normed (sequences, tokens, hidden) -> two of (sequences, key heads, tokens, head_size)."""
        key, value = (self._split(project(normed), self.key_heads) for project in (self.key, self.value))
        if self.key_norm is not None:
            key = self.key_norm(key)
        key = key if own_turns is None else turned(key, own_turns)
        return key.transpose(1, 2), value.transpose(1, 2)

    def prefix(
        self, hidden: Tensor, normed: Tensor, key: Tensor, value: Tensor, mask: Tensor, own_turns: Turns | None
    ) -> Tensor:
        """The prefix's own attention.

        Args:
            hidden: (requests, tokens, hidden).
            normed: the same behind ``attention_norm``.
            key, value: (requests, key heads, tokens, head_size), as ``keys_and_values`` gives them.
            mask: (tokens, tokens), added to scores.
            own_turns: of the tokens.
        """
        requests, tokens = hidden.shape[:2]
        group = self.heads // self.key_heads
        query = self._query(normed, own_turns).transpose(1, 2)
        folded = query.reshape(requests, self.key_heads, group * tokens, self.head_size)
        scores = softcapped(folded @ key.transpose(2, 3), self.softcap)
        scores = scores.view(requests, self.heads, tokens, tokens) + mask
        weights = scores.softmax(dim=-1).view(requests, self.key_heads, group * tokens, tokens)
        mixed = (weights @ value).view(requests, self.heads, tokens, self.head_size)
        return self._finish(hidden, mixed.transpose(1, 2).flatten(2))

    def branches(
        self,
        rows: Tensor,
        hidden: Tensor,
        prefix_key: Tensor,
        prefix_value: Tensor,
        shape: tuple[int, int, int],
        sight: Sight,
        row_turns: Turns | None,
        own_turns: Turns | None,
    ) -> Tensor:
        """Rows of branches attend to the prefix of their request and to their own branch.

        All rows of a request meet its prefix in one matrix product per key head: candidates, and the queries that share
        the key head, are folded into the rows.

        Args:
            rows: (requests, candidates * rows of each, hidden).
            hidden: (requests, candidates * tokens of each, hidden).
            prefix_key, prefix_value: (requests, key heads, prefix tokens, head_size).
            shape: requests, candidates, tokens.
            sight: what the rows see.
            row_turns, own_turns: of the rows and of the tokens.
        """
        requests, candidates, tokens = shape
        heads, size, group = self.key_heads, self.head_size, self.heads // self.key_heads
        prefix_tokens, length = prefix_key.shape[2], sight.own_mask.shape[2]
        normed = self.attention_norm(hidden)
        query = self._query(normed if rows is hidden else self.attention_norm(rows), row_turns)
        # (requests, key heads, candidates, queries of a key head, rows, size)
        query = query.view(requests, candidates, length, heads, group, size).permute(0, 3, 1, 4, 2, 5)
        own_key, own_value = (
            one.reshape(requests, heads, candidates, tokens, size) for one in self.keys_and_values(normed, own_turns)
        )
        folded = query.reshape(requests, heads, candidates * group * length, size)
        prefix_scores = softcapped(folded @ prefix_key.transpose(2, 3), self.softcap)
        prefix_scores = prefix_scores.view(requests, heads, candidates, group, length, prefix_tokens)
        if sight.prefix_mask is not None:
            prefix_scores = prefix_scores + sight.prefix_mask[:, None, :, None]
        by_branch = query.reshape(requests, heads, candidates, group * length, size)
        own_scores = softcapped(by_branch @ own_key.transpose(3, 4), self.softcap)
        own_scores = own_scores.view(requests, heads, candidates, group, length, tokens)
        own_scores = own_scores + sight.own_mask[:, None, :, None]
        weights = torch.cat([prefix_scores, own_scores], dim=-1).softmax(dim=-1)
        prefix_weights, own_weights = torch.split(weights, [prefix_tokens, tokens], dim=-1)
        prefix_part = prefix_weights.reshape(requests, heads, candidates * group * length, prefix_tokens) @ prefix_value
        own_part = own_weights.reshape(requests, heads, candidates, group * length, tokens) @ own_value
        mixed = prefix_part.view(requests, heads, candidates, group, length, size)
        mixed = mixed + own_part.view(requests, heads, candidates, group, length, size)
        return self._finish(rows, mixed.permute(0, 2, 4, 1, 3, 5).reshape(requests, -1, self.heads * size))

    def _query(self, normed: Tensor, row_turns: Turns | None) -> Tensor:
        """(sequences, rows, heads, head_size), scaled."""
        query = self._split(self.query(normed), self.heads)
        if self.query_norm is not None:
            query = self.query_norm(query)
        query = query if self.scale == 1.0 else query * self.scale
        return query if row_turns is None else turned(query, row_turns)

    def _split(self, projected: Tensor, heads: int) -> Tensor:
        return projected.view(*projected.shape[:-1], heads, self.head_size)

    def _finish(self, rows: Tensor, mixed: Tensor) -> Tensor:
        attended = rows + self.dropout(_behind(self.attention_post_norm, self.attention_out(mixed)))
        normed = self.ffn_norm(attended)
        inner = self.activation(self.ffn_in(normed) if self.ffn_gate is None else self.ffn_gate(normed))
        inner = inner if self.ffn_gate is None else inner * self.ffn_in(normed)
        finished: Tensor = attended + self.dropout(_behind(self.ffn_post_norm, self.ffn_out(inner)))
        return finished


def _in_type(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """In this type; exporters write a Cast even to the type that a tensor has, which hides a norm's product."""
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def _behind(norm: nn.Module | None, hidden: Tensor) -> Tensor:
    normed: Tensor = hidden if norm is None else norm(hidden)
    return normed
