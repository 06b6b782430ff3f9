"""What a TensorRT plan computes beside what a request needs: tokens of padding, counted before anything is compiled.

A plan has one shape per bucket, so a request is padded to the longest context there can be, to the next bucket of
candidates and to the next bucket of tokens. The packed engines (PyTorch on a GPU, the native one on a CPU) compute no
padding: the ratio here is what a plan has to win back by better kernels.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tritonrank_runtime.engine import Tensors
from tritonrank_runtime.padding import Buckets
from tritonrank_runtime.shared_context import INPUT_NAMES, SHARED_CONTEXT
from tritonrank_runtime.text import RequestTokenizer

from tritonrank.rankers.scorers import Request, tensors_of
from tritonrank.recipe import Recipe
from tritonrank.tensorrt.profiles import buckets_of, profiles_of

JOINT_INPUTS = ("input_ids", "attention_mask")


@dataclass(frozen=True)
class PaddingCost:
    """Of some requests: tokens that they need, and that a padded plan computes for them."""

    requests: int
    needed: int
    computed: int

    @property
    def ratio(self) -> float:
        """Computed for each that is needed; 1 is none of padding."""
        return self.computed / self.needed if self.needed else 1.0

    def as_json(self) -> Mapping[str, Any]:
        return vars(self) | {"ratio": self.ratio}


def padding_cost(recipe: Recipe, tokenizer: RequestTokenizer, requests: Sequence[Request]) -> PaddingCost:
    """What the plans of a recipe would compute for these requests; a candidate that comes twice is scored once.

    Args:
        recipe: its tensorrt section has the buckets.
        tokenizer: of the ranker; knows the longest rows.
        requests: the recipe's own, judged ones say.

    Raises:
        RecipeError: a bucket is longer than any row can be.
        TextError: a request has more candidates than the last bucket.
    """
    names = INPUT_NAMES if tokenizer.rules.architecture == SHARED_CONTEXT else JOINT_INPUTS
    buckets = buckets_of(profiles_of(recipe, tokenizer, [*names]))
    return padding_of(tokenizer, buckets, (tensors_of(request, tokenizer) for request in requests))


def padding_of(
    tokenizer: RequestTokenizer, buckets: Buckets, requests: Iterable[Tensors | Mapping[str, NDArray[np.int32]]]
) -> PaddingCost:
    """The same of requests that are tokenized already, for the buckets of plans that may be compiled."""
    count = needed = computed = 0
    for tensors in requests:
        count += 1
        needed += tokenizer.architecture.needed_tokens(tensors)
        computed += tokenizer.architecture.computed_tokens(tokenizer.padded(tensors, buckets))
    return PaddingCost(count, needed, computed)
