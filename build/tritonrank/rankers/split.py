"""What the two architectures have in common whose rankers read once what all candidates share: how they are run, packed
for training, written as two graphs, and compared.

``shared_context.py`` and ``decoder.py`` say what differs: where candidates' positions begin, and which token is read.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from tritonrank_runtime.engine import Logits
from tritonrank_runtime.images import FIRST_IMAGE_ID, IMAGE_VECTORS
from tritonrank_runtime.kept_states import EXACT_BITS
from tritonrank_runtime.length_groups import candidate_lengths, length_groups
from tritonrank_runtime.padding import PADDING, side_by_side
from tritonrank_runtime.split import SplitArchitecture
from tritonrank_runtime.split_engine import SplitNames

from tritonrank.rankers.architecture import (
    Axes,
    GridCase,
    Range,
    RankerArchitecture,
    RequestTensors,
    Warmup,
)
from tritonrank.rankers.serving import AnyServing, kept_bits

if TYPE_CHECKING:
    import torch
    from torch import nn
    from tritonrank_runtime.text import RequestTokenizer

GRID = ((2, 1, 2), (7, 3, 5), (33, 5, 16), (60, 13, 31), (1, 2, 3))
"""(tokens of the shared row, candidates, tokens) on which ONNX is compared with PyTorch."""
WARMUP = ((16, 1, 8), (64, 10, 16), (96, 100, 16))
"""(tokens of the shared row, candidates, tokens)"""
BATCHED_GRID = ((1, 2, 1, 2), (2, 7, 3, 5), (3, 33, 5, 16), (2, 60, 13, 31), (5, 1, 2, 3))
"""(requests, tokens of the shared row, candidates, tokens) on which the padded graph is compared with PyTorch."""


class SplitRankerArchitecture(RankerArchitecture):
    """Two graphs over one request: the shared row gives keys and values, and candidates attend to them."""

    served: SplitArchitecture
    shares_positions = False
    speed_settings: ClassVar = {}
    shared_axis: str
    """the name of the axis that counts the shared row's tokens"""

    @property
    def split_names(self) -> SplitNames:
        """Of the tensors and the two graphs."""
        return self.served.names

    # ---- the model's ways, under one name

    @abstractmethod
    def encode(self, model: Any, shared_ids: "torch.Tensor") -> "tuple[torch.Tensor, torch.Tensor]":
        """Keys and values of the shared row."""

    @abstractmethod
    def score(self, model: Any, keys: "torch.Tensor", values: "torch.Tensor", rows: "torch.Tensor") -> "torch.Tensor":
        """Logits (candidates,)."""

    @abstractmethod
    def passes(self, model: Any) -> "tuple[nn.Module, nn.Module, nn.Module]":
        """``encode``, ``score``, and the padded way, as modules that an exporter takes."""

    @abstractmethod
    def loaded(self, checkpoint: str) -> Any:
        """The ranker of a folder, FP32."""

    @abstractmethod
    def fits(self, model: Any, shared_tokens: int, tokens: int) -> bool:
        """Whether a model has positions for a shared row and candidates of so many tokens."""

    @abstractmethod
    def packed_request(self, model: Any, request: RequestTensors) -> dict[str, NDArray[np.int64]]:
        """One request in one sequence, by the arguments of the model's forward."""

    # ---- what all of it follows from

    def list_tokens(self, context: float, candidate: float, candidates: int) -> float:
        return context + candidates * candidate

    def torch_run(self, model: Any, rows_per_batch: int) -> Callable[[Sequence[RequestTensors]], list[Logits]]:
        import torch

        @torch.inference_mode()
        def score(tensors: RequestTensors) -> Logits:
            shared, rows = (torch.from_numpy(tensors[name]).long().to(model.device) for name in self.split_names.inputs)
            keys, values = self.encode(model, shared)
            logits = np.empty(len(rows), dtype=np.float32)
            for tokens, places in length_groups(candidate_lengths(tensors[self.split_names.rows])):
                logits[places] = self.score(model, keys, values, rows[places, :tokens]).float().cpu().numpy()
            return logits

        return lambda requests: [score(tensors) for tensors in requests]

    def batch(self, model: Any, requests: Sequence[RequestTensors]) -> dict[str, "torch.Tensor"]:
        return side_by_side_batch([self.packed_request(model, request) for request in requests])

    def token_mask(self, batch: Mapping[str, "torch.Tensor"]) -> "torch.Tensor":
        return batch["segments"] >= 0

    def write_graphs(self, checkpoint_folder: Path, folder: Path, opset: int) -> None:
        """The first gives keys and values of the shared row, the second uses them for one group of candidates after the
        other, each padded to its own length. (One graph would have to pad all candidates of a request to the longest,
        1.6 times the tokens on MovieLens, or to run the shared row again for every group.)"""
        import torch

        from tritonrank.rankers.graph_writing import trace_graph

        names = self.split_names
        ranker = self.loaded(str(checkpoint_folder)).folded()
        first, second, _ = self.passes(ranker)
        # A ranker of images takes their vectors beside the ids.
        images, image_axes = self._image_inputs(ranker), self._image_axes(ranker)
        shared_ids = torch.arange(5, dtype=torch.int32)
        rows = torch.tensor([[1, 2, 3], [4, PADDING, PADDING]], dtype=torch.int32)
        axes = self._state_axes()
        with torch.no_grad():
            trace_graph(
                first,
                {names.shared: shared_ids, **images},
                {names.shared: {0: self.shared_axis}, **axes, **image_axes},
                names.states,
                folder / names.shared_file,
                opset,
            )
            states = dict(zip(names.states, self.encode(ranker, shared_ids), strict=True))
            trace_graph(
                second,
                {**states, names.rows: rows, **images},
                {**axes, names.rows: {0: "candidates", 1: "tokens"}, "logits": {0: "candidates"}, **image_axes},
                ["logits"],
                folder / names.rows_file,
                opset,
            )

    def _image_inputs(self, model: Any) -> "dict[str, torch.Tensor]":
        """What the graphs of a ranker of images take beside ids: (images, width)."""
        import torch
        from tritonrank_runtime.image_tokens import image_tokens

        images = image_tokens(model)
        return {} if images is None else {IMAGE_VECTORS: torch.zeros(2, len(images.centre))}

    def _image_axes(self, model: Any) -> dict[str, dict[int, str]]:
        return {name: {0: "images"} for name in self._image_inputs(model)}

    def _state_axes(self) -> dict[str, dict[int, str]]:
        """Keys and values are (layers, heads, tokens of the shared row, head size)."""
        return {name: {2: self.shared_axis} for name in self.split_names.states}

    def signatures(self, model: Any) -> dict[str, tuple[Axes, Axes]]:
        names = self.split_names
        states = {name: set(axes) for name, axes in self._state_axes().items()}
        images = {name: set(axes) for name, axes in self._image_axes(model).items()}
        return {
            names.shared_file: ({names.shared: {0}} | images, states),
            names.rows_file: (states | {names.rows: {0, 1}} | images, {"logits": {0}}),
        }

    def grid_cases(self, model: Any) -> Iterator[GridCase]:
        for shape in GRID:
            if self.fits(model, shape[0], shape[2]):
                yield self._grid_case(model, *shape)

    def _grid_case(self, model: Any, shared_tokens: int, candidates: int, tokens: int) -> GridCase:
        generator = np.random.default_rng(shared_tokens * 1_000 + candidates)
        request = self.random_request(generator, model.config.vocab_size, shared_tokens, candidates, tokens)
        self._put_images(generator, model, request)
        what = f"{shared_tokens} shared tokens and {candidates} candidates of {tokens} tokens"
        return GridCase(what, self.split_logits(model, request), lambda engine: engine.run([request])[0])

    def _put_images(self, generator: np.random.Generator, model: Any, request: RequestTensors) -> None:
        """Put one at the end of the shared row, and one at the beginning of every second candidate."""
        from tritonrank_runtime.image_tokens import image_tokens

        images = image_tokens(model)
        if images is not None and images.table is not None:
            first, end = FIRST_IMAGE_ID, images.table.known_ids
            request[self.split_names.shared][-1] = generator.integers(first, end)
            rows = request[self.split_names.rows][::2]
            rows[:, 0] = generator.integers(first, end, size=len(rows))

    def random_request(
        self, generator: np.random.Generator, vocabulary: int, shared_tokens: int, candidates: int, tokens: int
    ) -> RequestTensors:
        """Candidates of any lengths up to so many tokens; the first has as many."""
        lengths = generator.integers(1, tokens + 1, size=candidates)
        lengths[0] = tokens
        rows = generator.integers(5, vocabulary, size=(candidates, tokens), dtype=np.int32)
        rows[np.arange(tokens)[None, :] >= lengths[:, None]] = PADDING
        shared_ids = generator.integers(5, vocabulary, size=shared_tokens, dtype=np.int32)
        return {self.split_names.shared: shared_ids, self.split_names.rows: rows}

    def split_logits(self, model: Any, request: RequestTensors) -> Logits:
        """A request by PyTorch's split way: the shared row, then all candidates together."""
        import torch

        shared_ids, rows = (torch.from_numpy(request[name]) for name in self.split_names.inputs)
        with torch.inference_mode():
            logits: Logits = self.score(model, *self.encode(model, shared_ids), rows).numpy()
        return logits

    def profile(
        self,
        input_names: Sequence[str],
        requests: int,
        candidates: tuple[int, int],
        tokens: tuple[int, int],
        tokenizer: "RequestTokenizer",
    ) -> dict[str, Range]:
        names = self.split_names
        shared = (requests, tokenizer.longest_rows[names.shared])
        largest = (requests, candidates[1], tokens[1])
        ranges = Range((1, 1), shared, shared), Range((1, candidates[0], tokens[0]), largest, largest)
        return dict(zip(names.inputs, ranges, strict=True))

    def max_batch_size(self, settings: AnyServing) -> int:
        # Requests are computed one after the other and answered together: more would only delay the first.
        return 1

    def score_parameters(self, settings: AnyServing) -> dict[str, int]:
        """Nothing but a parameter bounds the candidates of a request, which is one entry of the batch."""
        cache_bytes = settings.context_cache_mb * 1_000_000
        bits = kept_bits(settings)
        told = {} if bits == EXACT_BITS else {"context_cache_bits": bits}
        return {"context_cache_bytes": cache_bytes, **told, "max_candidates": settings.max_candidates}

    def warmups(self, settings: AnyServing, longest_rows: Mapping[str, int]) -> list[Warmup]:
        # The scorer refuses more candidates or tokens, and would not start; what is cut to the same is run once.
        names = self.split_names
        most_shared, most_tokens = (longest_rows[name] for name in names.inputs)
        shapes = (
            (min(shared, most_shared), min(candidates, settings.max_candidates), min(tokens, most_tokens))
            for shared, candidates, tokens in WARMUP
        )
        return [
            Warmup(
                f"{shared} {self.shared_axis.replace('_', ' ')}, {candidates} candidates of {tokens} tokens",
                1,
                {names.shared: (shared,), names.rows: (candidates, tokens)},
            )
            for shared, candidates, tokens in dict.fromkeys(shapes)
        ]


def side_by_side_batch(packed: Sequence[Mapping[str, NDArray[np.int64]]]) -> dict[str, "torch.Tensor"]:
    """Requests with equally many candidates, each as one sequence -> the arguments of the model's forward."""
    import torch

    return {
        name: torch.from_numpy(
            side_by_side([row[name] for row in packed], PADDING if name == "segments" else 0, dtype=np.int64)
        )
        for name in packed[0]
    }


def packed_request(
    shared_ids: NDArray[np.int32], rows: NDArray[np.int32], starts_at: int
) -> tuple[dict[str, NDArray[np.int64]], NDArray[np.int64]]:
    """One request in one sequence: the shared row, then each candidate without its padding; and where candidates end.

    Args:
        shared_ids: (tokens,).
        rows: (candidates, tokens), padded with -1.
        starts_at: position of each candidate's first token.
    """
    shared, candidates = shared_ids.astype(np.int64), rows.astype(np.int64)
    is_token = candidates != PADDING
    lengths = is_token.sum(axis=1)
    places = np.broadcast_to(np.arange(candidates.shape[1]) + starts_at, candidates.shape)
    numbers = np.arange(1, len(candidates) + 1)
    packed = {
        "token_ids": np.concatenate([shared, candidates[is_token]]),
        "position_ids": np.concatenate([np.arange(len(shared)), places[is_token]]),
        "segments": np.concatenate([np.zeros_like(shared), numbers.repeat(lengths)]),
    }
    return packed, len(shared) + lengths.cumsum()
