"""Optimization profiles: the ranges of shapes that a plan is tuned for, one per bucket of candidates and of tokens.

A scorer pads to a bucket, so a profile is tuned for exactly its bucket and accepts what is smaller, down to the bucket
below. Every profile of a shared-context plan takes ``tensorrt.requests`` side by side: Triton has one largest batch per
model and puts together whatever has one shape, the largest requests, too. The rows of a joint ranker are its batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from tritonrank_runtime.padding import Buckets
from tritonrank_runtime.shared_context import INPUT_NAMES, SHARED_CONTEXT
from tritonrank_runtime.text import RequestTokenizer

from tritonrank.errors import RecipeError
from tritonrank.recipe import Recipe

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Range:
    """The shapes of one input: smallest, the one that kernels are chosen for, largest."""

    smallest: Shape
    best: Shape
    largest: Shape


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
    is_shared = tokenizer.rules.architecture == SHARED_CONTEXT
    longest = tokenizer.architecture.run_tokens([*tokenizer.longest_rows.values()][-1])
    settings = recipe.tensorrt
    if settings.token_buckets and settings.token_buckets[-1] > longest:
        what = "a candidate" if is_shared else "a row"
        raise RecipeError(
            f"tensorrt.token_buckets: {settings.token_buckets[-1]} is more than the {longest} tokens that {what} can "
            "have by the text settings"
        )
    profiles = []
    for fewest, most in pairwise([0, *settings.candidate_buckets]):
        for shortest, tokens in pairwise([0, *sorted({*settings.token_buckets, longest})]):
            if is_shared:
                largest = (settings.requests, tokenizer.longest_rows["context_ids"]), (settings.requests, most, tokens)
                shapes = (
                    Range((1, 1), largest[0], largest[0]),
                    Range((1, fewest + 1, shortest + 1), largest[1], largest[1]),
                )
                profiles.append(dict(zip(INPUT_NAMES, shapes, strict=True)))
            else:
                rows = Range((fewest + 1, shortest + 1), (most, tokens), (most, tokens))
                profiles.append(dict.fromkeys(input_names, rows))
    return profiles


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


def is_shared_context(profile: Profile) -> bool:
    return INPUT_NAMES[0] in profile
