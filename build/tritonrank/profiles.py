"""Optimization profiles: the ranges of shapes that a plan is tuned for, one per bucket of candidates and of tokens.

A scorer pads to a bucket, so a profile is tuned for exactly its bucket and accepts what is smaller, down to the bucket
below. Requests run side by side as long as their padded candidates together are not more than the largest bucket holds:
memory is that of one large request.
"""

from dataclasses import dataclass
from itertools import pairwise

from tritonrank.engine import SHARED_CONTEXT_INPUTS, padded_length
from tritonrank.errors import RecipeError
from tritonrank.recipe import Recipe
from tritonrank.text import SHARED_CONTEXT, RequestTokenizer

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
    longest = tokenizer.candidate_row_tokens if is_shared else padded_length(tokenizer.row_tokens)
    settings = recipe.tensorrt
    if settings.token_buckets and settings.token_buckets[-1] > longest:
        what = "a candidate" if is_shared else "a row"
        raise RecipeError(
            f"tensorrt.token_buckets: {settings.token_buckets[-1]} is more than the {longest} tokens that {what} can "
            "have by the text settings"
        )
    most_candidates = settings.candidate_buckets[-1]
    profiles = []
    for fewest, most in pairwise([0, *settings.candidate_buckets]):
        for shortest, tokens in pairwise([0, *sorted({*settings.token_buckets, longest})]):
            if is_shared:
                requests = max(1, min(settings.requests, most_candidates // most))
                context = tokenizer.context_row_tokens
                shapes = (
                    Range((1, 1), (requests, context), (requests, context)),
                    Range((1, fewest + 1, shortest + 1), (requests, most, tokens), (requests, most, tokens)),
                )
                profiles.append(dict(zip(SHARED_CONTEXT_INPUTS, shapes, strict=True)))
            else:
                rows = Range((fewest + 1, shortest + 1), (most, tokens), (most, tokens))
                profiles.append(dict.fromkeys(input_names, rows))
    return profiles
