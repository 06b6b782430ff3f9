"""The decoder: a causal language model's weights, a request's prefix once, and its candidates as branches of it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray
from tritonrank_runtime.decoder import DECODER, Decoder
from tritonrank_runtime.engine import Tensors
from tritonrank_runtime.length_groups import candidate_lengths

from tritonrank.errors import ArtifactError
from tritonrank.rankers.architecture import RequestTensors
from tritonrank.rankers.split import SplitRankerArchitecture, packed_request

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel
    from tritonrank_runtime.text import RequestTokenizer

    from tritonrank.rankers.decoder_modeling import DecoderRanker
    from tritonrank.recipe import ModelSettings


class DecoderArchitecture(SplitRankerArchitecture):
    """Its model is ``decoder_modeling.DecoderRanker``, whichever family the weights come from."""

    served = Decoder()
    has_prompt = True
    shares_positions = True
    longest_input = "a prefix and a candidate"
    bucketed = "a candidate with the template's tail"
    shared_axis = "prefix_tokens"
    norms_first = True

    def load(self, name: str, revision: str | None = None) -> "PreTrainedModel":
        return load_decoder_ranker(name, revision)

    def untrained(self, model: "ModelSettings", tokenizer: "RequestTokenizer") -> "PreTrainedModel":
        from tritonrank.rankers.decoder_source import decoder_of

        return decoder_of(model, tokenizer.rules.frame)

    def positions(self, config: Any, tokenizer: "RequestTokenizer") -> int:
        return sum(tokenizer.longest_rows.values())

    def head_size(self, config: Any) -> int:
        return int(config.head_size)

    def set_heads(self, config: Any, heads: int) -> None:
        """Whole groups: each head of keys and values keeps as many of queries as it had."""
        group = self.head_group(config)
        if heads % group:
            raise ArtifactError(
                f"{heads} heads of queries: {group} share one of keys and values, so it takes a multiple"
            )
        config.num_attention_heads = heads
        config.num_key_value_heads = heads // group

    def head_group(self, config: Any) -> int:
        return int(config.num_attention_heads // config.num_key_value_heads)

    def has_position_table(self, config: Any) -> bool:
        return bool(config.position == "learned")

    def keep_layers(self, config: Any, layers: Sequence[int]) -> None:
        super().keep_layers(config, layers)
        config.layer_types = [config.layer_types[layer] for layer in layers]

    def layer_list(self, model: "PreTrainedModel") -> tuple["nn.Module", str]:
        return model, "layers"

    def flop(self, config: Any, tensors: Tensors) -> float:
        """Prefix once, branches against it; the last layer has keys and values for all, the rest for last tokens.

        A multiply-add is two. Of attention what the mask leaves is counted: a token at place n of its row attends to n
        + 1 of it, and a branch's to the whole prefix besides.
        """
        hidden, size = config.hidden_size, config.head_size
        width, key_width = config.num_attention_heads * size, config.num_key_value_heads * size
        prefix = tensors["prefix_ids"].size
        rows = candidate_lengths(tensors["branch_ids"])
        tokens = float(prefix + rows.sum())
        attended = prefix * (prefix + 1) / 2 + float((rows * prefix + rows * (rows + 1) / 2).sum())
        keys_and_values = 2 * 2 * hidden * key_width
        matrices = 3 if config.ffn == "gated" else 2
        rest = 2 * 2 * hidden * width + matrices * 2 * hidden * config.intermediate_size
        inner = (keys_and_values + rest) * tokens + 4 * width * attended
        last = keys_and_values * tokens + rest * len(rows) + 4 * width * float((prefix + rows).sum())
        return float((config.num_hidden_layers - 1) * inner + last)

    def encode(self, model: Any, shared_ids: "torch.Tensor") -> "tuple[torch.Tensor, torch.Tensor]":
        states: tuple[torch.Tensor, torch.Tensor] = model.encode_prefix(shared_ids)
        return states

    def score(self, model: Any, keys: "torch.Tensor", values: "torch.Tensor", rows: "torch.Tensor") -> "torch.Tensor":
        logits: torch.Tensor = model.score_branches(keys, values, rows)
        return logits

    def passes(self, model: Any) -> "tuple[nn.Module, nn.Module, nn.Module]":
        from tritonrank.rankers.decoder_modeling import BranchPass, DecoderBatchPass, PrefixPass

        return PrefixPass(model), BranchPass(model), DecoderBatchPass(model)

    def loaded(self, checkpoint: str) -> Any:
        return load_decoder_ranker(checkpoint)

    def fits(self, model: Any, shared_tokens: int, tokens: int) -> bool:
        return bool(shared_tokens + tokens <= model.config.max_position_embeddings)

    def packed_request(self, model: Any, request: RequestTensors) -> dict[str, NDArray[np.int64]]:
        prefix_ids, branch_ids = request["prefix_ids"], request["branch_ids"]
        packed, ends = packed_request(prefix_ids, branch_ids, len(prefix_ids))
        return packed | {"last_tokens": ends - 1}


def load_decoder_ranker(name: str, revision: str | None = None) -> "DecoderRanker":
    """A decoder that this project made, FP32.

    Raises:
        ArtifactError: not to be found, not safetensors, another kind of model, or weights are missing.
    """
    from tritonrank.rankers.decoder_modeling import DecoderRanker
    from tritonrank.rankers.pretrained import load_config, load_whole

    if load_config(name, revision).model_type != DECODER:
        raise ArtifactError(
            f"{name}: not a decoder of this project; to make a language model one, name it as model.base"
        )
    return cast(DecoderRanker, load_whole(DecoderRanker, name, revision))
