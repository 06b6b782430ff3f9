"""NDCG@10 on the validation users, which decides whose weights are kept."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from transformers import PreTrainedModel
from tritonrank_runtime.text import RequestTokenizer

from tritonrank.data.dataset import Dataset, Example
from tritonrank.data.requests import requests_of
from tritonrank.judge.metrics import ndcg
from tritonrank.rankers.architectures import architecture_of
from tritonrank.rankers.scorers import Request, Scores, tensors_of, torch_scorer

TIE_DIGITS = 5
"""Decimals of a logit: in one packed sequence equal texts get logits that differ by rounding, and are ties all the
same."""


class Judge:
    """Judges a ranker in training; of several processes each judges its share.

    Args:
        dataset: its validation examples.
        tokenizer: of the ranker.
        precision: of products; None: FP32.
    """

    def __init__(self, dataset: Dataset, tokenizer: RequestTokenizer, precision: torch.dtype | None) -> None:
        self._examples = dataset.validation
        self._requests = requests_of(dataset, dataset.validation, tokenizer.rules)
        self._tokenizer = tokenizer
        self._precision = precision

    def ndcg(self, model: PreTrainedModel) -> float:
        """Of a ranker that is whole in this process; as it is served, context and candidates apart."""
        was_training = model.training
        scorer = torch_scorer(model.eval(), self._tokenizer)
        weight = next(model.parameters())
        with torch.autocast(weight.device.type, dtype=self._precision, enabled=self._precision is not None):
            values = [ndcg(scorer.score(request), example.labels) for request, example in self._share()]
        model.train(was_training)
        return _mean(values, weight.device)

    def ndcg_of_shards(self, network: Any, model: PreTrainedModel) -> float:
        """Of a ranker that all processes share: each layer needs all of them, so all read equally many lists, and as
        they are read in training.

        Args:
            network: takes a batch of the training.
            model: the ranker in it.
        """
        was_training = network.training
        network.eval()
        device = next(model.parameters()).device
        score = self._forward(network, model, device)
        share, world = list(self._share()), _world()
        values = [ndcg(score(request), example.labels) for request, example in share]
        for _ in range(-(-len(self._examples) // world) - len(share)):  # one more where others have one more
            score(self._requests[0])
        network.train(was_training)
        return _mean(values, device)

    def _share(self) -> Iterator[tuple[Request, Example]]:
        rank = dist.get_rank() if dist.is_initialized() else 0
        yield from list(zip(self._requests, self._examples, strict=True))[rank :: _world()]

    def _forward(self, network: Any, model: PreTrainedModel, device: torch.device) -> Callable[[Request], Scores]:
        architecture = architecture_of(model.config)

        @torch.no_grad()
        def score(request: Request) -> Scores:
            batch = architecture.batch(model, [tensors_of(request, self._tokenizer)])
            outputs = network(**{name: tensor.to(device) for name, tensor in batch.items()})
            logits = outputs if isinstance(outputs, torch.Tensor) else outputs.logits
            scores: Scores = logits.float().flatten().cpu().numpy().round(TIE_DIGITS)
            return scores

        return score


def _world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _mean(values: list[float], device: torch.device) -> float:
    totals = torch.tensor([sum(values), len(values)], dtype=torch.float64, device=device)
    if _world() > 1:
        dist.all_reduce(totals)
    return float(totals[0] / totals[1])
