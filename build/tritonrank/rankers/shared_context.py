"""The shared-context ranker: an encoder's weights under a mask that hides each candidate from all but itself."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
from numpy.typing import NDArray
from tritonrank_runtime.engine import Logits, Tensors
from tritonrank_runtime.length_groups import candidate_lengths, length_groups
from tritonrank_runtime.padding import PADDING, side_by_side
from tritonrank_runtime.shared_context import CANDIDATES_FILE, CONTEXT_FILE, INPUT_NAMES, SHARED_CONTEXT, SharedContext

from tritonrank.errors import ArtifactError, RecipeError
from tritonrank.rankers.architecture import (
    Axes,
    GridCase,
    Range,
    RankerArchitecture,
    RequestTensors,
    Warmup,
)
from tritonrank.rankers.layer_flop import layer_flop
from tritonrank.rankers.serving import AnyServing

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel
    from tritonrank_runtime.text import RequestTokenizer

    from tritonrank.rankers.modeling import SharedContextRanker
    from tritonrank.recipe import ModelSettings

GRID = ((2, 1, 2), (7, 3, 5), (33, 5, 16), (60, 13, 31), (1, 2, 3))
"""(context tokens, candidates, tokens) on which ONNX is compared with PyTorch."""
WARMUP = ((16, 1, 8), (64, 10, 16), (96, 100, 16))
"""(context tokens, candidates, tokens)"""
CONTEXT_AXES = {axis: {2: "context_tokens"} for axis in ("context_keys", "context_values")}
"""Keys and values are (layers, heads, context tokens, head size)."""
PACKED = {"token_ids": 0, "position_ids": 0, "segments": -1, "first_tokens": 0}
"""The tensors of a packed batch, and what fills a shorter sequence."""


class SharedContextArchitecture(RankerArchitecture):
    """Its model is ``modeling.SharedContextRanker``, whichever family the weights come from."""

    served = SharedContext()
    shares_positions = False
    longest_input = "a context and a candidate"
    bucketed = "a candidate"
    speed_settings: ClassVar = {}

    def load(self, name: str, revision: str | None = None) -> "PreTrainedModel":
        return load_shared_context_ranker(name, revision)

    def untrained(self, model: "ModelSettings", tokenizer: "RequestTokenizer") -> "PreTrainedModel":
        from tritonrank.rankers.modeling import from_encoder
        from tritonrank.rankers.pretrained import load_encoder

        context = tokenizer.longest_rows["context_ids"]
        if model.checkpoint is None:
            return from_encoder(load_encoder(model.base, model.revision), model.base, context_positions=context)
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

    def list_tokens(self, context: float, candidate: float, candidates: int) -> float:
        return context + candidates * candidate

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

    def torch_run(self, model: Any, rows_per_batch: int) -> Callable[[Sequence[RequestTensors]], list[Logits]]:
        import torch

        @torch.inference_mode()
        def score(tensors: RequestTensors) -> Logits:
            context_ids, candidate_ids = (
                torch.from_numpy(tensors[name]).long().to(model.device) for name in INPUT_NAMES
            )
            keys, values = model.encode_context(context_ids)
            logits = np.empty(len(candidate_ids), dtype=np.float32)
            for tokens, rows in length_groups(candidate_lengths(tensors["candidate_ids"])):
                logits[rows] = model.score_candidates(keys, values, candidate_ids[rows, :tokens]).float().cpu().numpy()
            return logits

        return lambda requests: [score(tensors) for tensors in requests]

    def batch(self, model: Any, requests: Sequence[RequestTensors]) -> dict[str, "torch.Tensor"]:
        return packed_batch(requests, model.config.context_positions)

    def token_mask(self, batch: Mapping[str, "torch.Tensor"]) -> "torch.Tensor":
        return batch["segments"] >= 0

    def write_graphs(self, checkpoint_folder: Path, folder: Path, opset: int) -> None:
        """context.onnx gives the keys and values of a user's context, candidates.onnx uses them for one group of
        candidates after the other, each padded to its own length. (One graph would have to pad all candidates of a
        request to the longest, 1.6 times the tokens on MovieLens, or to run the context again for every group.)"""
        import torch

        from tritonrank.rankers.graph_writing import trace_graph
        from tritonrank.rankers.modeling import CandidatePass, ContextPass

        ranker = load_shared_context_ranker(str(checkpoint_folder)).folded()
        context_ids = torch.arange(5, dtype=torch.int32)
        candidate_ids = torch.tensor([[1, 2, 3], [4, PADDING, PADDING]], dtype=torch.int32)
        with torch.no_grad():
            keys, values = ranker.encode_context(context_ids)
            trace_graph(
                ContextPass(ranker),
                {"context_ids": context_ids},
                {"context_ids": {0: "context_tokens"}, **CONTEXT_AXES},
                ["context_keys", "context_values"],
                folder / CONTEXT_FILE,
                opset,
            )
            trace_graph(
                CandidatePass(ranker),
                {"context_keys": keys, "context_values": values, "candidate_ids": candidate_ids},
                {**CONTEXT_AXES, "candidate_ids": {0: "candidates", 1: "tokens"}, "logits": {0: "candidates"}},
                ["logits"],
                folder / CANDIDATES_FILE,
                opset,
            )

    def signatures(self, model: Any) -> dict[str, tuple[Axes, Axes]]:
        context = {name: set(axes) for name, axes in CONTEXT_AXES.items()}
        return {
            CONTEXT_FILE: ({"context_ids": {0}}, context),
            CANDIDATES_FILE: (context | {"candidate_ids": {0, 1}}, {"logits": {0}}),
        }

    def grid_cases(self, model: Any) -> Iterator[GridCase]:
        from tritonrank.rankers.pretrained import longest_input

        positions, start = longest_input(model), model.config.context_positions
        for shape in GRID:
            if shape[0] <= start and start + shape[2] <= positions:
                yield _grid_case(model, *shape)

    def profile(
        self,
        input_names: Sequence[str],
        requests: int,
        candidates: tuple[int, int],
        tokens: tuple[int, int],
        tokenizer: "RequestTokenizer",
    ) -> dict[str, Range]:
        context = (requests, tokenizer.longest_rows["context_ids"])
        largest = (requests, candidates[1], tokens[1])
        ranges = Range((1, 1), context, context), Range((1, candidates[0], tokens[0]), largest, largest)
        return dict(zip(INPUT_NAMES, ranges, strict=True))

    def max_batch_size(self, settings: AnyServing) -> int:
        # Requests are computed one after the other and answered together: more would only delay the first.
        return 1

    def score_parameters(self, settings: AnyServing) -> dict[str, int]:
        """Nothing but a parameter bounds the candidates of a request, which is one entry of the batch."""
        cache_bytes = settings.context_cache_mb * 1_000_000
        return {"context_cache_bytes": cache_bytes, "max_candidates": settings.max_candidates}

    def warmups(self, settings: AnyServing, longest_rows: Mapping[str, int]) -> list[Warmup]:
        # The scorer refuses more candidates or tokens, and would not start; what is cut to the same is run once.
        most_context, most_tokens = (longest_rows[name] for name in INPUT_NAMES)
        shapes = (
            (min(context, most_context), min(candidates, settings.max_candidates), min(tokens, most_tokens))
            for context, candidates, tokens in WARMUP
        )
        return [
            Warmup(
                f"{context} context tokens, {candidates} candidates of {tokens} tokens",
                1,
                {"context_ids": (context,), "candidate_ids": (candidates, tokens)},
            )
            for context, candidates, tokens in dict.fromkeys(shapes)
        ]


def load_shared_context_ranker(name: str, revision: str | None = None) -> "SharedContextRanker":
    """A checkpoint that was fine-tuned as a shared-context ranker, FP32.

    Raises:
        ArtifactError: not to be found, not safetensors, another kind of model, or weights are missing.
    """
    from tritonrank.rankers.modeling import SharedContextRanker
    from tritonrank.rankers.pretrained import load_config, load_whole

    if load_config(name, revision).model_type != SHARED_CONTEXT:
        raise ArtifactError(
            f"{name}: not a shared-context ranker. Other checkpoints are served as they are with model.architecture: "
            "joint; to train one under the shared-context mask, name it as model.base"
        )
    return cast(SharedContextRanker, load_whole(SharedContextRanker, name, revision))


def packed_batch(requests: Sequence[RequestTensors], context_positions: int) -> dict[str, "torch.Tensor"]:
    """Requests with equally many candidates -> the arguments of ``SharedContextRanker.forward``."""
    import torch

    packed = [_pack(request, context_positions) for request in requests]
    return {
        name: torch.from_numpy(side_by_side([row[name] for row in packed], filling, dtype=np.int64))
        for name, filling in PACKED.items()
    }


def _pack(request: RequestTensors, context_positions: int) -> dict[str, NDArray[np.int64]]:
    """One request in one sequence: the context, then each candidate without its padding."""
    context, candidates = (request[name].astype(np.int64) for name in INPUT_NAMES)
    is_token = candidates != PADDING
    lengths = is_token.sum(axis=1)
    places = np.broadcast_to(np.arange(candidates.shape[1]) + context_positions, candidates.shape)
    numbers = np.arange(1, len(candidates) + 1)
    return {
        "token_ids": np.concatenate([context, candidates[is_token]]),
        "position_ids": np.concatenate([np.arange(len(context)), places[is_token]]),
        "segments": np.concatenate([np.zeros_like(context), numbers.repeat(lengths)]),
        "first_tokens": len(context) + lengths.cumsum() - lengths,
    }


def random_request(
    generator: np.random.Generator, vocabulary: int, context_tokens: int, candidates: int, tokens: int
) -> RequestTensors:
    """Candidates of any lengths up to so many tokens; the first has as many."""
    lengths = generator.integers(1, tokens + 1, size=candidates)
    lengths[0] = tokens
    candidate_ids = generator.integers(5, vocabulary, size=(candidates, tokens), dtype=np.int32)
    candidate_ids[np.arange(tokens)[None, :] >= lengths[:, None]] = PADDING
    context_ids = generator.integers(5, vocabulary, size=context_tokens, dtype=np.int32)
    return {"context_ids": context_ids, "candidate_ids": candidate_ids}


def split_logits(model: Any, request: RequestTensors) -> Logits:
    """A request by PyTorch's split way: the context, then all candidates together."""
    import torch

    with torch.inference_mode():
        keys, values = model.encode_context(torch.from_numpy(request["context_ids"]))
        logits: Logits = model.score_candidates(keys, values, torch.from_numpy(request["candidate_ids"])).numpy()
    return logits


def _grid_case(model: Any, context_tokens: int, candidates: int, tokens: int) -> GridCase:
    generator = np.random.default_rng(context_tokens * 1_000 + candidates)
    request = random_request(generator, model.config.vocab_size, context_tokens, candidates, tokens)
    what = f"{context_tokens} context tokens and {candidates} candidates of {tokens} tokens"
    return GridCase(what, split_logits(model, request), lambda engine: engine.run([request])[0])
