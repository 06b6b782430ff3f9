"""The joint ranker: any sequence-classification checkpoint with one label, fed with rows of (context, candidate)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from tritonrank_runtime.engine import MODEL_FILE, Feed, Logits, Tensors
from tritonrank_runtime.joint import Joint, run_in_batches
from tritonrank_runtime.padding import side_by_side

from tritonrank.rankers.architecture import Axes, GridCase, Range, RankerArchitecture, RequestTensors, Warmup
from tritonrank.rankers.layer_flop import layer_flop
from tritonrank.rankers.serving import AnyServing

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel
    from tritonrank_runtime.text import RequestTokenizer

    from tritonrank.recipe import ModelSettings

GRID = ((1, 2), (1, 7), (3, 16), (5, 33), (2, 101))
"""(rows, tokens) on which ONNX is compared with PyTorch."""
WARMUP = ((1, 16), (16, 64), (64, 96))
"""(rows, tokens)"""


class JointArchitecture(RankerArchitecture):
    """Its model stays one of its own Hugging Face family."""

    served = Joint()
    shares_positions = True
    longest_input = "rows"
    bucketed = "a row"
    speed_settings: ClassVar = {"serve.rows_per_batch": (8, 16, 32, 64)}

    def load(self, name: str, revision: str | None = None) -> "PreTrainedModel":
        from tritonrank.rankers.pretrained import load_ranker

        return load_ranker(name, revision, new_head=False)

    def untrained(self, model: "ModelSettings", tokenizer: "RequestTokenizer") -> "PreTrainedModel":
        from tritonrank.rankers.pretrained import load_ranker

        return load_ranker(model.source, model.revision, new_head=model.checkpoint is None)

    def positions(self, config: Any, tokenizer: "RequestTokenizer") -> int:
        return self.served.run_tokens(max(tokenizer.longest_rows.values()))

    def head_size(self, config: Any) -> int:
        return int(config.hidden_size // config.num_attention_heads)

    def set_heads(self, config: Any, heads: int) -> None:
        missing = list(range(heads, config.num_attention_heads))
        config.pruned_heads = dict.fromkeys(range(config.num_hidden_layers), missing) if missing else {}

    def layer_list(self, model: "PreTrainedModel") -> tuple["nn.Module", str]:
        encoder = getattr(model, model.base_model_prefix)
        return (encoder.transformer if model.config.model_type == "distilbert" else encoder.encoder), "layer"

    def list_tokens(self, context: float, candidate: float, candidates: int) -> float:
        return candidates * (context + candidate)

    def flop(self, config: Any, tensors: Tensors) -> float:
        """Per layer and token: the linear layers, and both attention products over the whole row."""
        hidden, layers = config.hidden_size, config.num_hidden_layers
        intermediate = getattr(config, "intermediate_size", None) or config.hidden_dim  # DistilBERT calls it hidden_dim
        width = self.heads(config) * self.head_size(config)
        rows = tensors["attention_mask"].sum(axis=1)
        return float(layers * layer_flop(hidden, width, intermediate, rows, rows))

    def torch_run(self, model: Any, rows_per_batch: int) -> Callable[[Sequence[RequestTensors]], list[Logits]]:
        import torch

        names = self.served.input_names(model.config)
        device = next(model.parameters()).device

        @torch.inference_mode()
        def run_batch(tensors: Feed) -> Logits:
            inputs = {name: torch.from_numpy(tensor).long().to(device) for name, tensor in tensors.items()}
            return np.asarray(model(**inputs).logits.float().cpu().numpy())

        return lambda requests: run_in_batches(run_batch, requests, names, rows_per_batch)

    def batch(self, model: Any, requests: Sequence[RequestTensors]) -> dict[str, "torch.Tensor"]:
        """Rows of all requests, padded to the longest: lists follow each other, candidates within."""
        import torch

        return {
            name: torch.from_numpy(side_by_side([row for one in requests for row in one[name]], 0)).long()
            for name in self.served.input_names(model.config)
        }

    def token_mask(self, batch: Mapping[str, "torch.Tensor"]) -> "torch.Tensor":
        return batch["attention_mask"] > 0

    def write_graphs(self, checkpoint_folder: Path, folder: Path, opset: int) -> None:
        from tritonrank.rankers.graph_writing import write_classifier

        write_classifier(checkpoint_folder, folder / MODEL_FILE, opset)

    def signatures(self, model: Any) -> dict[str, tuple[Axes, Axes]]:
        return {MODEL_FILE: ({name: {0, 1} for name in self.served.input_names(model.config)}, {"logits": {0}})}

    def grid_cases(self, model: Any) -> Iterator[GridCase]:
        from tritonrank.rankers.pretrained import longest_input

        for rows, tokens in GRID:
            if tokens <= longest_input(model):
                yield self._grid_case(model, rows, tokens)

    def _grid_case(self, model: Any, rows: int, tokens: int) -> GridCase:
        import torch

        generator = np.random.default_rng(rows * 1_000 + tokens)
        lengths = generator.integers(1, tokens + 1, size=rows)
        mask = (np.arange(tokens)[None, :] < lengths[:, None]).astype(np.int32)
        feeds: dict[str, NDArray[np.int32]] = {
            "input_ids": generator.integers(5, model.config.vocab_size, size=(rows, tokens), dtype=np.int32),
            "attention_mask": mask,
            "token_type_ids": generator.integers(0, 2, size=(rows, tokens), dtype=np.int32),
        }
        feeds = {name: feeds[name] for name in self.served.input_names(model.config)}
        with torch.inference_mode():
            expected = model(**{name: torch.from_numpy(feed).long() for name, feed in feeds.items()}).logits.numpy()
        return GridCase(f"{rows} rows of {tokens} tokens", expected, lambda engine: engine.run_padded(feeds))

    def profile(
        self,
        input_names: Sequence[str],
        requests: int,
        candidates: tuple[int, int],
        tokens: tuple[int, int],
        tokenizer: "RequestTokenizer",
    ) -> dict[str, Range]:
        """Rows are the batch, so one request is what there is room for."""
        rows = Range((candidates[0], tokens[0]), (candidates[1], tokens[1]), (candidates[1], tokens[1]))
        return dict.fromkeys(input_names, rows)

    def max_batch_size(self, settings: AnyServing) -> int:
        """The batch is of rows, and as large as the largest request."""
        return max(settings.max_candidates, settings.rows_per_batch)

    def score_parameters(self, settings: AnyServing) -> dict[str, int]:
        return {"rows_per_batch": settings.rows_per_batch}

    def warmups(self, settings: AnyServing, longest_rows: Mapping[str, int]) -> list[Warmup]:
        # The bundled server dies (SIGSEGV) of a warm-up batch that is larger than the scorer's.
        most = self.max_batch_size(settings)
        shapes = ((min(rows, most), min(tokens, *longest_rows.values())) for rows, tokens in WARMUP)
        return [
            Warmup(f"{rows} rows of {tokens} tokens", rows, dict.fromkeys(longest_rows, (tokens,)))
            for rows, tokens in dict.fromkeys(shapes)
        ]
