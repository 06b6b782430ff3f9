"""Optimization profiles: the ranges of shapes that a plan is tuned for, one per bucket of candidates and of tokens.

A scorer pads to a bucket, so a profile is tuned for exactly its bucket and accepts what is smaller, down to the bucket
below. Every profile of a shared-context plan takes ``tensorrt.requests`` side by side: Triton has one largest batch per
model and puts together whatever has one shape, the largest requests, too. The rows of a joint ranker are its batch.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from tritonrank_runtime.padding import Buckets
from tritonrank_runtime.text import RequestTokenizer

from tritonrank.errors import RecipeError
from tritonrank.rankers.architecture import Range as Range
from tritonrank.rankers.architecture import Shape as Shape
from tritonrank.rankers.architectures import architecture_named
from tritonrank.recipe import Recipe

Profile = dict[str, Range]
"""By input name."""


def profiles_of(recipe: Recipe, tokenizer: RequestTokenizer, input_names: list[str]) -> list[Profile]:
    """All profiles of a plan, smaller buckets first.

    Args:
        recipe: its tensorrt section.
        tokenizer: knows the longest rows that the text settings allow.
        input_names: of the graph.

    Raises:
        RecipeError: a token bucket is longer than any row can be.
    """
    architecture = architecture_named(tokenizer.rules.architecture)
    longest = tokenizer.architecture.run_tokens([*tokenizer.longest_rows.values()][-1])
    settings = recipe.tensorrt
    if settings.token_buckets and settings.token_buckets[-1] > longest:
        raise RecipeError(
            f"tensorrt.token_buckets: {settings.token_buckets[-1]} is more than the {longest} tokens that "
            f"{architecture.bucketed} can have by the text settings"
        )
    return [
        architecture.profile(input_names, settings.requests, (fewest + 1, most), (shortest + 1, tokens), tokenizer)
        for fewest, most in pairwise([0, *settings.candidate_buckets])
        for shortest, tokens in pairwise([0, *sorted({*settings.token_buckets, longest})])
    ]


def profiles_from(described: Sequence[Mapping[str, Any]]) -> list[Profile]:
    """The profiles that a ``plan.json`` describes."""
    return [
        {name: Range(**{bound: tuple(shape) for bound, shape in one.items()}) for name, one in profile.items()}
        for profile in described
    ]


def buckets_of(profiles: Sequence[Profile]) -> Buckets:
    """What requests have to be padded to, so that each has the shape that one of the profiles is tuned for."""
    shapes = [list(profile.values())[-1].largest[-2:] for profile in profiles]  # joint (rows, tokens), of each input
    candidates, tokens = (tuple(sorted({shape[axis] for shape in shapes})) for axis in (0, 1))
    return Buckets(candidates, tokens)
