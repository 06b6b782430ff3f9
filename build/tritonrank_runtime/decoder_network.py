"""The decoder's network, in plain PyTorch: a causal language model's layers that read a request as a tree.

The prefix (instruction, query, history) comes first, so none of its tokens ever sees a candidate: its keys and values
are the same for all candidates of a request, exactly, and without any training for it. Each candidate is a branch: its
tokens see the prefix and their own branch up to themselves, and their positions go on where the prefix ends. So a
branch has the score that prefix and branch have alone, as one row of the ordinary model.

There are three ways through the same weights:

- ``forward`` is packed, for training: the prefix and all branches of an example in one sequence under a mask;
- ``encode_prefix`` and ``score_branches`` are split, for serving: the first gives each layer's keys (turned by their
  positions already) and values of the prefix, the second uses them for any number of branches;
- ``score_batch`` is padded, for engines that take one graph with requests as its batch dimension (TensorRT).

The score is read at a branch's last token, so the last layer computes queries, output and FFN for these tokens alone.
One class serves every family: what they differ in is in the config (``DecoderConfig`` tells of each).
"""

from copy import deepcopy
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tritonrank_runtime.decoder_layer import Layer, Sight, make_norm, softcapped
from tritonrank_runtime.network import MASKED_SCORE
from tritonrank_runtime.padding import PADDING
from tritonrank_runtime.rotary import Turns, turns

PREFIX_SEGMENT = 0
SLIDING = "sliding_attention"
"""The kind of layer whose tokens see no further back than ``sliding_window``; others are ``full_attention``."""


class DecoderPasses(nn.Module):
    """The three ways through; whoever inherits calls ``add_modules`` once."""

    config: Any
    """a DecoderConfig, or anything with its settings as attributes"""
    gradient_checkpointing = False
    """whether training computes layers a second time in place of keeping what they computed"""

    def add_modules(self, config: Any) -> None:
        """Make the modules that the passes use."""
        self.embeddings = _Embeddings(config)
        layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.layers = cast(list[Layer], layers)  # a ModuleList does not say what it holds
        self.norm = make_norm(config, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        # Two rows where a cap lies between the vocabulary's logits and their difference.
        self.head = nn.Linear(config.hidden_size, config.head_rows)

    def forward(self, token_ids: Tensor, position_ids: Tensor, segments: Tensor, last_tokens: Tensor) -> Tensor:
        """Packed, for training: one sequence per example.

        Args:
            token_ids, position_ids: (examples, tokens); a branch's positions go on where its prefix ends.
            segments: (examples, tokens); 0 = prefix, n = the n-th branch, -1 = padding.
            last_tokens: (examples, branches), places of the branches' last tokens in their sequence.

        Returns:
            logits (examples, branches).
        """
        hidden = self.embeddings(token_ids, position_ids)
        is_related = (segments[:, None, :] == PREFIX_SEGMENT) | (segments[:, None, :] == segments[:, :, None])
        distances = position_ids[:, :, None] - position_ids[:, None, :]
        seen = {kind: is_related & self._seen(distances, kind) for kind in self._kinds()}
        by = self._turns(position_ids, hidden.dtype)
        for number, layer in enumerate(self.layers[:-1]):
            kind = self._kind(number)
            arguments = hidden, hidden, seen[kind], by.get(kind), by.get(kind)
            if self.gradient_checkpointing and self.training:
                hidden = checkpoint(layer.packed, *arguments, use_reentrant=False)
            else:
                hidden = layer.packed(*arguments)
        kind = self._kind(len(self.layers) - 1)
        places = last_tokens[:, :, None]
        lasts = hidden.gather(1, places.expand(-1, -1, hidden.shape[2]))
        seen_by_lasts = seen[kind].gather(1, places.expand(-1, -1, hidden.shape[1]))
        by_lasts = self._turns(position_ids.gather(1, last_tokens), hidden.dtype)
        return self._logits(self.layers[-1].packed(lasts, hidden, seen_by_lasts, by_lasts.get(kind), by.get(kind)))

    def encode_prefix(self, prefix_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Split, first part: prefix_ids (tokens,) -> keys and values, each (layers, kv_heads, tokens, head_size)."""
        # A batch of one: for a plain matrix the exporter writes Gemm, which quantization leaves alone.
        keys, values = self._encode(prefix_ids.unsqueeze(0), torch.finfo(self.norm.weight.dtype).min)
        return keys.squeeze(1), values.squeeze(1)

    def score_branches(self, prefix_keys: Tensor, prefix_values: Tensor, branch_ids: Tensor) -> Tensor:
        """Split, second part.

        Args:
            prefix_keys, prefix_values: (layers, kv_heads, prefix tokens, head_size).
            branch_ids: (candidates, tokens), padded on the right with -1.

        Returns:
            logits (candidates,).
        """
        masked = torch.finfo(prefix_keys.dtype).min
        logits = self._score(
            prefix_keys.unsqueeze(1), prefix_values.unsqueeze(1), branch_ids.unsqueeze(0), None, masked
        )
        return logits.squeeze(0)

    def score_batch(self, prefix_ids: Tensor, branch_ids: Tensor) -> Tensor:
        """Padded: whole requests side by side.

        Args:
            prefix_ids: (requests, prefix tokens), padded on the right with -1.
            branch_ids: (requests, candidates, tokens), padded on the right with -1; rows of padding alone fill up
                requests with fewer candidates, and their logits mean nothing.

        Returns:
            logits (requests, candidates).
        """
        keys, values = self._encode(prefix_ids, MASKED_SCORE)
        lengths = (prefix_ids > PADDING).sum(dim=1, keepdim=True)
        return self._score(keys, values, branch_ids, lengths, MASKED_SCORE)

    def folded(self) -> Self:
        """A copy for serving that computes the same with fewer operations; ``forward`` does not work on it.

        The scale of the attention scores belongs into what makes the queries, that of the embeddings into their table,
        and 1 + weight of a norm is a weight.
        """
        copy = deepcopy(self).eval()
        copy.embeddings.fold()
        for module in [*copy.layers, copy.norm]:
            module.fold()
        return copy

    def _encode(self, prefix_ids: Tensor, masked: float) -> tuple[Tensor, Tensor]:
        """prefix_ids (requests, tokens) -> keys and values, each (layers, requests, kv_heads, tokens, head_size)."""
        positions = torch.arange(prefix_ids.shape[1], device=prefix_ids.device).unsqueeze(0)
        hidden = self.embeddings(prefix_ids.clamp(min=0), positions)
        distances = positions[0, :, None] - positions[0, None, :]
        # Padding is on the right, where causal attention does not look.
        masks = {kind: _mask(self._seen(distances, kind), hidden, masked) for kind in self._kinds()}
        by = self._turns(positions, hidden.dtype)
        keys, values = [], []
        for number, layer in enumerate(self.layers):
            kind = self._kind(number)
            normed = layer.attention_norm(hidden)
            key, value = layer.keys_and_values(normed, by.get(kind))
            keys.append(key)
            values.append(value)
            if number < len(self.layers) - 1:
                hidden = layer.prefix(hidden, normed, key, value, masks[kind], by.get(kind))
        return torch.stack(keys), torch.stack(values)

    def _score(self, keys: Tensor, values: Tensor, branch_ids: Tensor, lengths: Tensor | None, masked: float) -> Tensor:
        """Logits (requests, candidates) of branch_ids (requests, candidates, tokens).

        Args:
            keys, values: as ``_encode`` gives them.
            branch_ids: padded on the right.
            lengths: (requests, 1), tokens of each prefix; None: as many as there are keys.
            masked: what is added to the scores of what is not seen.
        """
        requests, candidates, tokens = branch_ids.shape
        places = torch.arange(tokens, device=branch_ids.device)
        prefix_places = torch.arange(keys.shape[3], device=branch_ids.device)
        starts = keys.shape[3] + torch.zeros_like(places[:1, None]) if lengths is None else lengths
        positions = (starts + places).unsqueeze(1)  # (requests, 1, tokens)
        rows_shape = (branch_ids.shape[0], -1)
        token_ids = branch_ids.clamp(min=0).reshape(rows_shape)
        all_positions = positions.expand_as(branch_ids).reshape(rows_shape)
        hidden = self.embeddings(token_ids, all_positions)
        by = self._turns(all_positions, hidden.dtype)

        def sight(kind: str, row_places: Tensor) -> Sight:
            """What rows at these places of their branch, (1 or requests, 1 or candidates, rows), see."""
            own = self._seen(row_places[..., None] - places, kind)
            prefix_mask = None
            if lengths is not None or kind == SLIDING:
                seen = self._seen((row_places + starts[:, :, None])[..., None] - prefix_places, kind)
                seen = seen if lengths is None else seen & (prefix_places < lengths[:, None, :, None])
                prefix_mask = _mask(seen, hidden, masked)
            return Sight(_mask(own, hidden, masked), prefix_mask)

        sights = {kind: sight(kind, places.reshape(1, 1, -1)) for kind in self._kinds()}
        shape = (requests, candidates, tokens)
        for number, layer in enumerate(self.layers[:-1]):
            kind = self._kind(number)
            turn = by.get(kind)
            hidden = layer.branches(hidden, hidden, keys[number], values[number], shape, sights[kind], turn, turn)
        # Padding alone has no last token: such a row reads its first, and means nothing.
        last_places = ((branch_ids > PADDING).sum(dim=2, keepdim=True) - 1).clamp(min=0)  # (requests, candidates, 1)
        kind = self._kind(len(self.layers) - 1)
        by_branch = hidden.reshape(requests, candidates, tokens, -1)
        lasts = by_branch.gather(2, last_places[..., None].expand(-1, -1, -1, by_branch.shape[3]))[:, :, 0]
        by_lasts = self._turns((last_places + starts[:, :, None])[:, :, 0], hidden.dtype)
        lasts = self.layers[-1].branches(
            lasts, hidden, keys[-1], values[-1], shape, sight(kind, last_places), by_lasts.get(kind), by.get(kind)
        )
        return self._logits(lasts)

    def _logits(self, lasts: Tensor) -> Tensor:
        # The head may be FP32 where the rest is FP16: it costs nothing, and logits in FP16 would tie with each other.
        rows = self.head(self.dropout(self.norm(lasts).to(self.head.weight.dtype)))
        rows = softcapped(rows, self.config.logit_softcap)
        return rows[..., 0] - rows[..., 1] if self.config.head_rows == 2 else rows.squeeze(-1)

    def _kind(self, number: int) -> str:
        kind: str = self.config.layer_types[number]
        return kind

    def _kinds(self) -> list[str]:
        """Kinds of layers that there are."""
        return list(dict.fromkeys(self.config.layer_types))

    def _seen(self, distances: Tensor, kind: str) -> Tensor:
        """Where a token sees one that is so many positions back, in a layer of this kind."""
        seen = distances >= 0
        return seen & (distances < self.config.sliding_window) if kind == SLIDING else seen

    def _turns(self, positions: Tensor, dtype: Any) -> dict[str, Turns]:
        """By kind of layer, for positions (sequences, tokens); none of a model with a table of positions."""
        config = self.config
        if config.position != "rotary":
            return {}
        rules = dict.fromkeys(self._kinds(), (config.rope_theta, config.rope_scaling))
        if config.rope_local_theta is not None and SLIDING in rules:
            rules[SLIDING] = (config.rope_local_theta, None)
        return {kind: turns(positions, config.head_size, *rule, dtype) for kind, rule in rules.items()}


class DecoderNetwork(DecoderPasses):
    """The network without Hugging Face around it: for whoever only scores.

    Args:
        config: the settings of a DecoderConfig as attributes.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.add_modules(config)


class _Embeddings(nn.Module):
    """Words, and their positions where a table holds them."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.words = nn.Embedding(config.vocab_size, config.hidden_size)
        is_learned = config.position == "learned"
        self.positions = nn.Embedding(config.max_position_embeddings, config.hidden_size) if is_learned else None
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.scale = config.embedding_scale

    def forward(self, token_ids: Tensor, position_ids: Tensor) -> Tensor:
        hidden: Tensor = self.words(token_ids)
        if self.scale != 1.0:
            hidden = hidden * self.scale
        if self.positions is not None:
            hidden = hidden + self.positions(position_ids)
        dropped: Tensor = self.dropout(hidden)
        return dropped

    @torch.no_grad()
    def fold(self) -> None:
        """See ``DecoderPasses.folded``."""
        self.words.weight.mul_(self.scale)
        self.scale = 1.0


def _mask(seen: Tensor, hidden: Tensor, masked: float) -> Tensor:
    """What is added to attention scores: 0 where something is seen."""
    return (1.0 - seen.to(hidden.dtype)) * masked
