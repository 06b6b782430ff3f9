"""Training examples -> batches: rows of pairs for a joint ranker, packed sequences for a shared-context one."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel
from tritonrank_runtime.padding import PADDING
from tritonrank_runtime.text import RequestTokenizer

from tritonrank.data.prepare import Dataset, Example
from tritonrank.data.requests import requests_of
from tritonrank.rankers.modeling import SharedContextRanker
from tritonrank.rankers.scorers import RequestTensors, model_input_names, tensors_of


class Collator:
    """Examples -> one padded batch for the model's forward, and labels and teacher_logits (lists, candidates).

    Args:
        dataset: gives the texts.
        tokenizer: its rules name the model's architecture.
        model: whose batches to make.
        teacher_scores: by example id, one per candidate; only for distillation.
    """

    def __init__(
        self,
        dataset: Dataset,
        tokenizer: RequestTokenizer,
        model: PreTrainedModel,
        teacher_scores: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        self._dataset, self._tokenizer, self._model = dataset, tokenizer, model
        self._teacher_scores = teacher_scores

    def __call__(self, examples: list[Example]) -> dict[str, torch.Tensor]:
        requests = requests_of(self._dataset, examples, self._tokenizer.rules)
        tensors = [tensors_of(request, self._tokenizer) for request in requests]
        if isinstance(self._model, SharedContextRanker):
            batch = packed_batch(tensors, self._model.config.context_positions)
        else:
            batch = _joint_batch(tensors, model_input_names(self._model))
        batch["labels"] = torch.tensor([example.labels for example in examples], dtype=torch.float32)
        if self._teacher_scores is not None:
            batch["teacher_logits"] = torch.tensor([self._teacher_scores[e.example_id] for e in examples])
        return batch


def packed_batch(requests: Sequence[RequestTensors], context_positions: int) -> dict[str, torch.Tensor]:
    """Shared-context requests with equally many candidates -> the arguments of ``SharedContextRanker.forward``."""
    packed = [_pack(request, context_positions) for request in requests]
    names = ("token_ids", "position_ids", "segments", "first_tokens")
    padding = {"token_ids": 0, "position_ids": 0, "segments": -1, "first_tokens": 0}
    return {
        name: pad_sequence([row[name] for row in packed], batch_first=True, padding_value=padding[name])
        for name in names
    }


def _pack(request: RequestTensors, context_positions: int) -> dict[str, torch.Tensor]:
    """One request in one sequence: the context, then each candidate without its padding."""
    context, candidates = (torch.from_numpy(request[name]).long() for name in ("context_ids", "candidate_ids"))
    is_token = candidates != PADDING
    lengths = is_token.sum(dim=1)
    places = torch.arange(candidates.shape[1]) + context_positions
    numbers = torch.arange(1, len(candidates) + 1)
    return {
        "token_ids": torch.cat([context, candidates[is_token]]),
        "position_ids": torch.cat([torch.arange(len(context)), places.expand_as(candidates)[is_token]]),
        "segments": torch.cat([torch.zeros_like(context), numbers.repeat_interleave(lengths)]),
        "first_tokens": len(context) + lengths.cumsum(0) - lengths,
    }


def _joint_batch(requests: Sequence[RequestTensors], input_names: Sequence[str]) -> dict[str, torch.Tensor]:
    """Rows of all requests, padded to the longest: lists follow each other, candidates within."""
    longest = max(request["input_ids"].shape[1] for request in requests)
    return {
        name: torch.from_numpy(
            np.concatenate([np.pad(row[name], ((0, 0), (0, longest - row[name].shape[1]))) for row in requests])
        ).long()
        for name in input_names
    }
