"""The shared-context ranker's network, in plain PyTorch: what training, export and the torch executor compute with.

Context tokens never see a candidate, so their keys and values are the same for all candidates of a request; a
candidate's tokens see the context and their own row, so its score does not depend on which others are present.

There are three ways through the same weights:

- ``forward`` is packed, for training: context and candidates of an example in one sequence under a block mask;
- ``encode_context`` and ``score_candidates`` are split, for serving: the first gives each layer's keys and values of
  the context, the second uses them for any number of candidates;
- ``score_batch`` is padded, for engines that take one graph with requests as its batch dimension (TensorRT): every
  linear layer sees the tokens of contexts and candidates in one product, and only attention tells them apart.

Context positions count from 0; candidates all start at ``context_positions``, the longest context that the token
budgets allow, however long the context at hand is. The score is a linear function of the last hidden state of a
candidate's first token ([CLS]), so the last layer computes queries, output and FFN for these tokens alone, and nothing
but keys and values for the others.
"""

from collections.abc import Callable
from copy import deepcopy
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from tritonrank_runtime.image_tokens import ImageTokens
from tritonrank_runtime.padding import PADDING

CONTEXT_SEGMENT = 0
MASKED_SCORE = -10_000.0
"""Added to the scores of padding in ``score_batch``: its exponential is 0 in FP32 and FP16, and FP16 can hold it."""

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "gelu_new": lambda: nn.GELU(approximate="tanh"),
    "gelu_pytorch_tanh": lambda: nn.GELU(approximate="tanh"),
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "swish": nn.SiLU,
    "tanh": nn.Tanh,
}
"""By the name that a config gives them; the rarer ones are transformers'."""


class SharedContextPasses(nn.Module):
    """The three ways through; whoever inherits calls ``add_modules`` once."""

    config: Any
    """a SharedContextConfig, or anything with its sizes as attributes"""

    def add_modules(self, config: Any) -> None:
        """Make the modules that the passes use."""
        self.embeddings = _Embeddings(config)
        layers = nn.ModuleList(_Layer(config) for _ in range(config.num_hidden_layers))
        self.layers = cast(list[_Layer], layers)  # a ModuleList does not say what it holds
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.head = nn.Linear(config.hidden_size, 1)

    def forward(self, token_ids: Tensor, position_ids: Tensor, segments: Tensor, first_tokens: Tensor) -> Tensor:
        """Packed, for training: one sequence per example.

        Args:
            token_ids, position_ids: (examples, tokens).
            segments: (examples, tokens); 0 = context, n = the n-th candidate, -1 = padding.
            first_tokens: (examples, candidates), places of the candidates' first tokens in their sequence.

        Returns:
            logits (examples, candidates).
        """
        visible = (segments[:, None, :] == CONTEXT_SEGMENT) | (segments[:, None, :] == segments[:, :, None])
        hidden = self.embeddings(token_ids, position_ids, segments > CONTEXT_SEGMENT)
        for layer in self.layers[:-1]:
            hidden = layer.packed(hidden, hidden, visible)
        firsts = hidden.gather(1, first_tokens[:, :, None].expand(-1, -1, hidden.shape[2]))
        visible = visible.gather(1, first_tokens[:, :, None].expand(-1, -1, visible.shape[2]))
        firsts = self.layers[-1].packed(firsts, hidden, visible)
        return self._logits(firsts)

    def encode_context(self, context_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Split, first part: context_ids (tokens,) -> keys and values, each (layers, heads, tokens, head_size)."""
        positions = torch.arange(context_ids.shape[0], device=context_ids.device)
        # A batch of one: for a plain matrix the exporter writes Gemm, which quantization leaves alone.
        batch = context_ids.unsqueeze(0)
        hidden = self.embeddings(batch, positions, torch.zeros_like(batch, dtype=torch.bool))
        keys, values = [], []
        for layer in self.layers[:-1]:
            key, value = layer.keys_and_values(hidden)
            hidden = layer.context(hidden, key, value)
            keys.append(key)
            values.append(value)
        key, value = self.layers[-1].keys_and_values(hidden)
        return torch.stack([*keys, key]), torch.stack([*values, value])

    def score_candidates(self, context_keys: Tensor, context_values: Tensor, candidate_ids: Tensor) -> Tensor:
        """Split, second part.

        Args:
            context_keys, context_values: (layers, heads, context tokens, head_size).
            candidate_ids: (candidates, tokens), padded on the right with -1.

        Returns:
            logits (candidates,).
        """
        is_token = candidate_ids > PADDING
        positions = torch.arange(candidate_ids.shape[1], device=candidate_ids.device) + self.config.context_positions
        hidden = self.embeddings(candidate_ids.clamp(min=0), positions, torch.ones_like(is_token))
        # Added to the scores of a row's own tokens: padding is never attended to.
        own_mask = (1.0 - is_token.to(hidden.dtype)) * torch.finfo(hidden.dtype).min
        for layer, key, value in zip(self.layers[:-1], context_keys[:-1], context_values[:-1], strict=True):
            hidden = layer.candidates(hidden, hidden, key, value, own_mask)
        firsts = self.layers[-1].candidates(hidden[:, :1], hidden, context_keys[-1], context_values[-1], own_mask)
        return self._logits(firsts[:, 0])

    def score_batch(self, context_ids: Tensor, candidate_ids: Tensor) -> Tensor:
        """Padded: whole requests side by side.

        Args:
            context_ids: (requests, context tokens), padded on the right with -1.
            candidate_ids: (requests, candidates, tokens), padded on the right with -1; rows of padding alone fill up
                requests with fewer candidates, and their logits mean nothing.

        Returns:
            logits (requests, candidates).
        """
        context_tokens, (candidates, tokens) = context_ids.shape[1], candidate_ids.shape[1:]
        token_ids = torch.cat([context_ids, candidate_ids.flatten(1)], dim=1)
        starts = torch.arange(tokens, device=token_ids.device) + self.config.context_positions
        positions = torch.cat(
            [torch.arange(context_tokens, device=token_ids.device), starts.expand(candidates, tokens).reshape(-1)]
        )
        is_candidate = positions >= self.config.context_positions
        hidden = self.embeddings(token_ids.clamp(min=0), positions, is_candidate.expand_as(token_ids))
        context_mask, own_mask = (
            (1.0 - (ids > PADDING).to(hidden.dtype)) * MASKED_SCORE for ids in (context_ids, candidate_ids)
        )
        for layer in self.layers[:-1]:
            hidden = layer.batched(hidden, context_mask, own_mask)
        return self._logits(self.layers[-1].batched_firsts(hidden, context_mask, own_mask))

    def folded(self) -> Self:
        """A copy for serving that computes the same with fewer operations; ``forward`` does not work on it.

        Softmax does not see what is added to all scores of a query, so keys need no bias; weights of one query sum to
        1, so the bias of the values passes through to the output projection's; and the scale of the scores belongs
        into the query projection.
        """
        copy = deepcopy(self).eval()
        for layer in copy.layers:
            layer.fold()
        return copy

    def _logits(self, firsts: Tensor) -> Tensor:
        # The head may be FP32 where the rest is FP16: it costs nothing, and logits in FP16 would tie with each other.
        logits: Tensor = self.head(self.dropout(firsts.to(self.head.weight.dtype)))
        return logits.squeeze(-1)


class SharedContextNetwork(SharedContextPasses):
    """The network without Hugging Face around it: for whoever only scores.

    Args:
        config: the sizes of a SharedContextConfig as attributes.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.add_modules(config)


class _Embeddings(nn.Module):
    """Word + position + segment, normalized; projected where they are narrower than the encoder."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.words = nn.Embedding(config.vocab_size, config.embedding_size)
        self.positions = nn.Embedding(config.max_position_embeddings, config.embedding_size)
        self.segments = nn.Embedding(config.type_vocab_size, config.embedding_size) if config.type_vocab_size else None
        self.norm = nn.LayerNorm(config.embedding_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        is_narrower = config.embedding_size != config.hidden_size
        self.project = nn.Linear(config.embedding_size, config.hidden_size) if is_narrower else None
        self.images = ImageTokens.of(config)
        self._first_position = config.first_position

    def forward(self, token_ids: Tensor, position_ids: Tensor, is_candidate: Tensor) -> Tensor:
        words = self.words(token_ids) if self.images is None else self.images(token_ids, self.words)
        summed = words + self.positions(position_ids + self._first_position)
        if self.segments is not None:  # RoBERTa has one segment for everything
            last = self.segments.num_embeddings - 1
            summed = summed + self.segments(is_candidate.to(token_ids.dtype).clamp(max=last))
        embedded: Tensor = self.dropout(self.norm(summed))
        return embedded if self.project is None else self.project(embedded)


class _Layer(nn.Module):
    """One post-norm encoder layer; every family here has this one."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        width = config.num_attention_heads * config.head_size
        self.heads, self.head_size = config.num_attention_heads, config.head_size
        self.scale = config.head_size**-0.5
        self.query = nn.Linear(config.hidden_size, width)
        self.key = nn.Linear(config.hidden_size, width)
        self.value = nn.Linear(config.hidden_size, width)
        self.attention_out = nn.Linear(width, config.hidden_size)
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.ffn_in = nn.Linear(config.hidden_size, config.intermediate_size)
        self.ffn_out = nn.Linear(config.intermediate_size, config.hidden_size)
        self.ffn_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.activation = make_activation(config.hidden_act)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.attention_dropout = config.attention_probs_dropout_prob

    @torch.no_grad()
    def fold(self) -> None:
        """See ``SharedContextPasses.folded``."""
        self.attention_out.bias.add_(self.attention_out.weight @ self.value.bias)
        self.key.register_parameter("bias", None)
        self.value.register_parameter("bias", None)
        self.query.weight.mul_(self.scale)
        self.query.bias.mul_(self.scale)
        self.scale = 1.0

    def packed(self, rows: Tensor, hidden: Tensor, visible: Tensor) -> Tensor:
        """rows (examples, rows, hidden) attend to what ``visible`` (examples, rows, tokens) allows of ``hidden``."""
        query, key, value = (
            self._split(project(source)).transpose(1, 2)
            for project, source in ((self.query, rows), (self.key, hidden), (self.value, hidden))
        )
        dropout = self.attention_dropout if self.training else 0.0
        mixed = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=visible[:, None], dropout_p=dropout
        )
        return self._finish(rows, mixed.transpose(1, 2).flatten(2))

    def keys_and_values(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """hidden (1, tokens, hidden) -> two of (heads, tokens, head_size)."""
        key, value = (self._split(project(hidden)).squeeze(0).transpose(0, 1) for project in (self.key, self.value))
        return key, value

    def context(self, hidden: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The context's own attention: hidden (1, tokens, hidden)."""
        query = self._split(self._scaled_query(hidden)).squeeze(0).transpose(0, 1)
        mixed = (query @ key.transpose(1, 2)).softmax(dim=-1) @ value
        return self._finish(hidden, mixed.transpose(0, 1).flatten(1).unsqueeze(0))

    def candidates(
        self, rows: Tensor, hidden: Tensor, context_key: Tensor, context_value: Tensor, own_mask: Tensor
    ) -> Tensor:
        """rows (candidates, rows, hidden) attend to the context and to ``hidden`` (candidates, tokens, hidden).

        All candidates' rows meet the context in one matrix product per head: their number is folded into the rows.
        """
        candidates, length = rows.shape[0], rows.shape[1]
        tokens, context_tokens = hidden.shape[1], context_key.shape[1]
        heads, size = self.heads, self.head_size
        query = self._split(self._scaled_query(rows)).permute(2, 0, 1, 3)  # (heads, candidates, rows, size)
        own_key = self._split(self.key(hidden)).permute(2, 0, 3, 1)
        own_value = self._split(self.value(hidden)).permute(2, 0, 1, 3)
        folded = query.reshape(heads, candidates * length, size)
        context_scores = (folded @ context_key.transpose(1, 2)).view(heads, candidates, length, context_tokens)
        own_scores = query @ own_key + own_mask[None, :, None, :]
        weights = torch.cat([context_scores, own_scores], dim=-1).softmax(dim=-1)
        context_weights, own_weights = torch.split(weights, [context_tokens, tokens], dim=-1)
        context_part = context_weights.reshape(heads, candidates * length, context_tokens) @ context_value
        mixed = context_part.view(heads, candidates, length, size) + own_weights @ own_value
        return self._finish(rows, mixed.permute(1, 2, 0, 3).flatten(2))

    def batched(self, hidden: Tensor, context_mask: Tensor, own_mask: Tensor) -> Tensor:
        """All tokens of padded requests attend: contexts to themselves, candidates to their context and themselves.

        Args:
            hidden: (requests, context tokens + candidates * tokens, hidden).
            context_mask: (requests, context tokens), added to scores.
            own_mask: (requests, candidates, tokens), added to scores.
        """
        query, key, value = self._scaled_query(hidden), self.key(hidden), self.value(hidden)
        context_query, queries = self._parts(query, context_mask, own_mask)
        context_key, keys = self._parts(key, context_mask, own_mask)
        context_value, values = self._parts(value, context_mask, own_mask)
        scores = context_query @ context_key.transpose(2, 3) + context_mask[:, None, None, :]
        context_mixed = (scores.softmax(dim=-1) @ context_value).transpose(1, 2).flatten(2)
        mixed = self._batched_attention(queries, context_key, context_value, keys, values, context_mask, own_mask)
        return self._finish(hidden, torch.cat([context_mixed, mixed.flatten(1, 2)], dim=1))

    def batched_firsts(self, hidden: Tensor, context_mask: Tensor, own_mask: Tensor) -> Tensor:
        """Like ``batched``, for each candidate's first token alone: (requests, candidates, hidden)."""
        requests, candidates, tokens = own_mask.shape
        context_key, keys = self._parts(self.key(hidden), context_mask, own_mask)
        context_value, values = self._parts(self.value(hidden), context_mask, own_mask)
        rows = hidden[:, context_mask.shape[1] :].reshape(requests, candidates, tokens, hidden.shape[2])[:, :, 0]
        queries = self._split(self._scaled_query(rows)).transpose(1, 2).unsqueeze(3)
        mixed = self._batched_attention(queries, context_key, context_value, keys, values, context_mask, own_mask)
        return self._finish(rows, mixed.flatten(2))

    def _batched_attention(
        self,
        queries: Tensor,
        context_key: Tensor,
        context_value: Tensor,
        keys: Tensor,
        values: Tensor,
        context_mask: Tensor,
        own_mask: Tensor,
    ) -> Tensor:
        """queries (requests, heads, candidates, rows, head_size) -> (requests, candidates, rows, heads * head_size).

        All candidates' rows of a request meet its context in one matrix product per head.
        """
        requests, heads, candidates, rows, size = queries.shape
        context_tokens, tokens = context_mask.shape[1], own_mask.shape[2]
        folded = queries.reshape(requests, heads, candidates * rows, size)
        context_scores = folded @ context_key.transpose(2, 3) + context_mask[:, None, None, :]
        context_scores = context_scores.reshape(requests, heads, candidates, rows, context_tokens)
        own_scores = queries @ keys.transpose(3, 4) + own_mask[:, None, :, None, :]
        weights = torch.cat([context_scores, own_scores], dim=-1).softmax(dim=-1)
        context_weights, own_weights = torch.split(weights, [context_tokens, tokens], dim=-1)
        context_part = context_weights.reshape(requests, heads, candidates * rows, context_tokens) @ context_value
        mixed = context_part.reshape(requests, heads, candidates, rows, size) + own_weights @ values
        return mixed.permute(0, 2, 3, 1, 4).flatten(3)

    def _parts(self, projected: Tensor, context_mask: Tensor, own_mask: Tensor) -> tuple[Tensor, Tensor]:
        """(requests, heads, tokens, head_size) of the contexts; (requests, heads, candidates, tokens, head_size)."""
        context_tokens = context_mask.shape[1]
        by_head = self._split(projected)
        candidates = by_head[:, context_tokens:].reshape(*own_mask.shape, self.heads, self.head_size)
        return by_head[:, :context_tokens].transpose(1, 2), candidates.permute(0, 3, 1, 2, 4)

    def _scaled_query(self, rows: Tensor) -> Tensor:
        query: Tensor = self.query(rows)
        return query if self.scale == 1.0 else query * self.scale

    def _split(self, projected: Tensor) -> Tensor:
        return projected.view(*projected.shape[:-1], self.heads, self.head_size)

    def _finish(self, rows: Tensor, mixed: Tensor) -> Tensor:
        attended = self.attention_norm(rows + self.dropout(self.attention_out(mixed)))
        inner = self.ffn_out(self.activation(self.ffn_in(attended)))
        finished: Tensor = self.ffn_norm(attended + self.dropout(inner))
        return finished


def make_activation(name: str) -> nn.Module:
    """By the name in a config."""
    if name in ACTIVATIONS:
        return ACTIVATIONS[name]()
    from transformers.activations import ACT2FN

    made: nn.Module = ACT2FN[name]
    return made
