"""The shared-context ranker: an encoder's weights under a mask that hides each candidate from all but itself."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray
from tritonrank_runtime.engine import Tensors
from tritonrank_runtime.length_groups import candidate_lengths
from tritonrank_runtime.shared_context import SHARED_CONTEXT, SharedContext

from tritonrank.errors import ArtifactError, RecipeError
from tritonrank.rankers.architecture import RequestTensors
from tritonrank.rankers.layer_flop import layer_flop
from tritonrank.rankers.split import SplitRankerArchitecture, packed_request, side_by_side_batch

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel
    from tritonrank_runtime.text import RequestTokenizer

    from tritonrank.rankers.modeling import SharedContextRanker
    from tritonrank.recipe import ModelSettings


class SharedContextArchitecture(SplitRankerArchitecture):
    """Its model is ``modeling.SharedContextRanker``, whichever family the weights come from."""

    served = SharedContext()
    longest_input = "a context and a candidate"
    bucketed = "a candidate"
    shared_axis = "context_tokens"

    def load(self, name: str, revision: str | None = None) -> "PreTrainedModel":
        return load_shared_context_ranker(name, revision)

    def untrained(self, model: "ModelSettings", tokenizer: "RequestTokenizer") -> "PreTrainedModel":
        from tritonrank.rankers.modeling import from_encoder
        from tritonrank.rankers.pretrained import load_encoder

        context = tokenizer.longest_rows["context_ids"]
        if model.checkpoint is None:
            encoder = load_encoder(model.base, model.revision)
            return from_encoder(encoder, model.base, context_positions=context, images=tokenizer.images)
        ranker = self.load(model.checkpoint, model.revision)
        if context > ranker.config.context_positions:
            raise RecipeError(
                f"text: query_tokens + history_tokens make contexts of up to {context} tokens; {model.checkpoint} was "
                f"trained for {ranker.config.context_positions}. Lower text.history_tokens"
            )
        return ranker

    def positions(self, config: Any, tokenizer: "RequestTokenizer") -> int:
        return int(config.context_positions) + tokenizer.longest_rows["candidate_ids"]

    def head_size(self, config: Any) -> int:
        return int(config.head_size)

    def set_heads(self, config: Any, heads: int) -> None:
        config.num_attention_heads = heads  # its head_size is a number of its own

    def layer_list(self, model: "PreTrainedModel") -> tuple["nn.Module", str]:
        return model, "layers"

    def flop(self, config: Any, tensors: Tensors) -> float:
        """Context once, candidates against it; the last layer has keys and values for all, the rest for [CLS] alone."""
        hidden, width = config.hidden_size, config.num_attention_heads * config.head_size
        context = tensors["context_ids"].size
        rows = candidate_lengths(tensors["candidate_ids"])
        tokens = np.array([context, *rows])
        sizes = hidden, width, config.intermediate_size
        inner = (config.num_hidden_layers - 1) * layer_flop(*sizes, tokens, [context, *(context + rows)])
        first_alone = layer_flop(*sizes, np.ones(len(rows)), context + rows)
        keys_and_values_of_the_others = 2 * 2 * hidden * width * float(tokens.sum() - len(rows))
        return float(inner + first_alone + keys_and_values_of_the_others)

    def encode(self, model: Any, shared_ids: "torch.Tensor") -> "tuple[torch.Tensor, torch.Tensor]":
        states: tuple[torch.Tensor, torch.Tensor] = model.encode_context(shared_ids)
        return states

    def score(self, model: Any, keys: "torch.Tensor", values: "torch.Tensor", rows: "torch.Tensor") -> "torch.Tensor":
        logits: torch.Tensor = model.score_candidates(keys, values, rows)
        return logits

    def passes(self, model: Any) -> "tuple[nn.Module, nn.Module, nn.Module]":
        from tritonrank.rankers.modeling import BatchPass, CandidatePass, ContextPass

        return ContextPass(model), CandidatePass(model), BatchPass(model)

    def loaded(self, checkpoint: str) -> Any:
        return load_shared_context_ranker(checkpoint)

    def fits(self, model: Any, shared_tokens: int, tokens: int) -> bool:
        from tritonrank.rankers.pretrained import longest_input

        start: int = model.config.context_positions
        return shared_tokens <= start and start + tokens <= longest_input(model)

    def packed_request(self, model: Any, request: RequestTensors) -> dict[str, NDArray[np.int64]]:
        return _packed(request, model.config.context_positions)


def load_shared_context_ranker(name: str, revision: str | None = None) -> "SharedContextRanker":
    """A checkpoint that was fine-tuned as a shared-context ranker, FP32.

    Raises:
        ArtifactError: not to be found, not safetensors, another kind of model, or weights are missing.
    """
    from tritonrank_runtime.image_tokens import attach_images

    from tritonrank.rankers.checkpoint_source import folder_of
    from tritonrank.rankers.modeling import SharedContextRanker
    from tritonrank.rankers.pretrained import load_config, load_whole

    if load_config(name, revision).model_type != SHARED_CONTEXT:
        raise ArtifactError(
            f"{name}: not a shared-context ranker. Other checkpoints are served as they are with model.architecture: "
            "joint; to train one under the shared-context mask, name it as model.base"
        )
    ranker = cast(SharedContextRanker, load_whole(SharedContextRanker, name, revision))
    attach_images(ranker, folder_of(name, revision))
    return ranker


def packed_batch(requests: Sequence[RequestTensors], context_positions: int) -> dict[str, "torch.Tensor"]:
    """Requests with equally many candidates -> the arguments of ``SharedContextRanker.forward``."""
    return side_by_side_batch([_packed(request, context_positions) for request in requests])


def _packed(request: RequestTensors, context_positions: int) -> dict[str, NDArray[np.int64]]:
    context_ids, candidate_ids = request["context_ids"], request["candidate_ids"]
    packed, ends = packed_request(context_ids, candidate_ids, context_positions)
    return packed | {"first_tokens": ends - candidate_lengths(candidate_ids)}
