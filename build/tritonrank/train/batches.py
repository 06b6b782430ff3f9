"""Training examples -> batches, as the architecture of the model makes them of requests."""

from collections.abc import Mapping, Sequence

import torch
from transformers import PreTrainedModel
from tritonrank_runtime.text import RequestTokenizer

from tritonrank.data.dataset import Dataset, Example
from tritonrank.data.requests import requests_of
from tritonrank.rankers.architectures import architecture_of
from tritonrank.rankers.scorers import RequestTensors, tensors_of
from tritonrank.train.text_dropout import TextDropout


class Collator:
    """Examples -> one padded batch for the model's forward, labels, and where there are any weights and teacher_logits
    (lists, candidates).

    Args:
        dataset: gives the texts.
        tokenizer: its rules name the model's architecture.
        model: whose batches to make.
        teacher_scores: by example id, one per candidate; only for distillation.
        dropout: leaves out parts of the texts.
    """

    def __init__(
        self,
        dataset: Dataset,
        tokenizer: RequestTokenizer,
        model: PreTrainedModel,
        teacher_scores: Mapping[str, Sequence[float]] | None = None,
        dropout: TextDropout | None = None,
    ) -> None:
        self._dataset, self._tokenizer, self._model = dataset, tokenizer, model
        self._teacher_scores, self._dropout = teacher_scores, dropout

    def __call__(self, examples: list[Example]) -> dict[str, torch.Tensor]:
        batch = architecture_of(self._model.config).batch(self._model, self._tensors(examples))
        batch["labels"] = torch.tensor([example.labels for example in examples], dtype=torch.float32)
        if any(example.weights for example in examples):
            rows = [example.weights or [1.0] * len(example.labels) for example in examples]
            batch["weights"] = torch.tensor(rows, dtype=torch.float32)
        if self._teacher_scores is not None:
            batch["teacher_logits"] = torch.tensor([self._teacher_scores[e.example_id] for e in examples])
        return batch

    def _tensors(self, examples: list[Example]) -> list[RequestTensors]:
        if self._dropout:
            return [self._dropout.tensors(self._dataset, example, self._tokenizer) for example in examples]
        requests = requests_of(self._dataset, examples, self._tokenizer.rules)
        return [tensors_of(request, self._tokenizer) for request in requests]
