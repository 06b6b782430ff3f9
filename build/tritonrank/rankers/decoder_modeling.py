"""The decoder as a Hugging Face model: its config, in which families of language models differ, and its graphs' passes.

The network itself is in ``decoder_network.py``; how the weights of a family become its weights, in
``decoder_weights.py``.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from tritonrank_runtime.decoder import DECODER
from tritonrank_runtime.decoder_layer import RootMeanSquareNorm
from tritonrank_runtime.decoder_network import DecoderPasses


class DecoderConfig(PretrainedConfig):
    """What a language model's layers are, in the words of transformers' configs where they have one for it.

    Args:
        head_size: width of one attention head; heads times head size need not be ``hidden_size``.
        num_key_value_heads: heads of keys and values, each of which serves equally many heads of queries.
        ffn: "gated": out(act(gate(x)) * in(x)), or "plain": out(act(in(x))).
        norm: "rms" or "layer"; ``norm_offset``: a norm multiplies by 1 + weight (Gemma).
        position: "rotary", or "learned": a table of ``max_position_embeddings`` rows.
        rope_scaling: None, or ``rope_type`` linear or llama3 with its settings.
        rope_local_theta: base of the rotary frequencies in sliding layers, which nothing scales; None: as elsewhere.
        sliding_window: positions that a token of a sliding layer looks back on, itself included.
        layer_types: of each layer, full_attention or sliding_attention; None: all are full.
        attention_bias, attention_out_bias, ffn_bias: whether queries, keys and values, the output projection, and the
            FFN add one.
        query_key_norm: whether each head's queries and keys are normalized.
        attention_softcap: attention scores stay between its negative and itself; None: no cap.
        logit_softcap: likewise the vocabulary's logits.
        query_scale: what attention scores are multiplied by; None: head_size ** -0.5.
        embedding_scale: what words' embeddings are multiplied by.
        post_norms: whether what attention and FFN give is normalized as well (Gemma 2 and 3).
        head_rows: 1; 2 where a cap lies between the vocabulary's logits and their difference, the score.
    """

    model_type = DECODER

    def __init__(
        self,
        vocab_size: int = 49_152,
        hidden_size: int = 576,
        num_hidden_layers: int = 30,
        num_attention_heads: int = 9,
        num_key_value_heads: int = 3,
        head_size: int = 64,
        intermediate_size: int = 1_536,
        hidden_act: str = "silu",
        ffn: str = "gated",
        norm: str = "rms",
        norm_eps: float = 1e-5,
        norm_offset: bool = False,
        position: str = "rotary",
        max_position_embeddings: int = 2_048,
        rope_theta: float = 10_000.0,
        rope_scaling: Mapping[str, Any] | None = None,
        rope_local_theta: float | None = None,
        sliding_window: int | None = None,
        layer_types: Sequence[str] | None = None,
        attention_bias: bool = False,
        attention_out_bias: bool = False,
        ffn_bias: bool = False,
        query_key_norm: bool = False,
        attention_softcap: float | None = None,
        logit_softcap: float | None = None,
        query_scale: float | None = None,
        embedding_scale: float = 1.0,
        post_norms: bool = False,
        head_rows: int = 1,
        hidden_dropout_prob: float = 0.0,
        attention_probs_dropout_prob: float = 0.0,
        initializer_range: float = 0.02,
        **further: Any,
    ) -> None:
        super().__init__(**{"num_labels": 1, "tie_word_embeddings": False} | further)
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_key_value_heads
        self.head_size = head_size
        self.intermediate_size = intermediate_size
        self.hidden_act = hidden_act
        self.ffn = ffn
        self.norm = norm
        self.norm_eps = norm_eps
        self.norm_offset = norm_offset
        self.position = position
        self.max_position_embeddings = max_position_embeddings
        self.rope_theta = rope_theta
        self.rope_scaling = None if rope_scaling is None else dict(rope_scaling)
        self.rope_local_theta = rope_local_theta
        self.sliding_window = sliding_window
        self.layer_types = [*layer_types] if layer_types else ["full_attention"] * num_hidden_layers
        self.attention_bias = attention_bias
        self.attention_out_bias = attention_out_bias
        self.ffn_bias = ffn_bias
        self.query_key_norm = query_key_norm
        self.attention_softcap = attention_softcap
        self.logit_softcap = logit_softcap
        self.query_scale = query_scale
        self.embedding_scale = embedding_scale
        self.post_norms = post_norms
        self.head_rows = head_rows
        self.hidden_dropout_prob = hidden_dropout_prob
        self.attention_probs_dropout_prob = attention_probs_dropout_prob
        self.initializer_range = initializer_range


AutoConfig.register(DECODER, DecoderConfig)


class DecoderRanker(DecoderPasses, PreTrainedModel):
    """The network as a Hugging Face model: trained, saved and loaded as any other."""

    config_class = DecoderConfig
    base_model_prefix = "ranker"
    main_input_name = "token_ids"
    supports_gradient_checkpointing = True
    device: torch.device
    """where its weights are"""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        self.add_modules(config)
        PreTrainedModel.post_init(self)

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.words

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            module.weight.data.normal_(mean=0.0, std=self.config.initializer_range)
        if isinstance(module, nn.Linear) and module.bias is not None:
            module.bias.data.zero_()
        if isinstance(module, RootMeanSquareNorm):
            module.weight.data.fill_(0.0 if module.offset else 1.0)
        if isinstance(module, nn.LayerNorm):
            module.weight.data.fill_(1.0)
            module.bias.data.zero_()


class PrefixPass(nn.Module):
    """``encode_prefix`` as a module of its own, which is what an exporter takes."""

    def __init__(self, ranker: DecoderRanker) -> None:
        super().__init__()
        self.ranker = ranker

    def forward(self, prefix_ids: Tensor) -> tuple[Tensor, Tensor]:
        return self.ranker.encode_prefix(prefix_ids)


class BranchPass(nn.Module):
    """``score_branches``, likewise."""

    def __init__(self, ranker: DecoderRanker) -> None:
        super().__init__()
        self.ranker = ranker

    def forward(self, prefix_keys: Tensor, prefix_values: Tensor, branch_ids: Tensor) -> Tensor:
        return self.ranker.score_branches(prefix_keys, prefix_values, branch_ids)


class DecoderBatchPass(nn.Module):
    """``score_batch``, likewise."""

    def __init__(self, ranker: DecoderRanker) -> None:
        super().__init__()
        self.ranker = ranker

    def forward(self, prefix_ids: Tensor, branch_ids: Tensor) -> Tensor:
        return self.ranker.score_batch(prefix_ids, branch_ids)
