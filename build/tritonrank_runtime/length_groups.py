"""Candidates of similar length run together: how a request is cut into runs, and how large a run should be.

Graphs that leave padding out themselves need no groups: their runs take rows in the order of the request, about as many
tokens each (``packed_runs``).
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

RUN_TOKENS = 24
"""What starting a run of the candidate graph costs, in tokens: a run of two took as long as 18 in a large one."""
FEWEST_TOKENS = 96
"""A group is not cut into parts of fewer tokens than this: flat matrix products are slow (a token in a run of 48 costs
1.4 times one in a run of 1,200). A choice between the two that was not tuned."""
MOST_TOKENS = 1_024
"""Tokens in one run of the candidate graph: bounds its memory. Larger runs were not found to be much faster (7% from
1,200 to 2,000 tokens)."""
GPU_RUN_TOKENS = 16_384
"""What starting a run costs on a GPU, in tokens: hundreds of kernels, however few tokens they have. Not tuned."""
GPU_MOST_TOKENS = 65_536
"""As ``MOST_TOKENS``, for a GPU's memory."""
SHARES_PER_CORE = 2
"""Parts of a request per core, where they are large enough: with more than one, threads finish at nearly one time."""
PACKED_FEWEST_TOKENS = 192
"""As ``FEWEST_TOKENS``, for graphs without padding: such a run takes its rows through all layers while they are in the
core's cache, and is no faster for being larger."""
PACKED_SHARES_PER_CORE = 4
"""As ``SHARES_PER_CORE``, for graphs without padding, of which a run costs some microseconds to start."""

Group = tuple[int, NDArray[np.int64]]
"""Candidates that run together: tokens to pad to, and their places in the request."""


def candidate_lengths(candidate_ids: NDArray[np.int32]) -> NDArray[np.int64]:
    """Tokens of each row, without the padding of -1."""
    return np.asarray((candidate_ids >= 0).sum(axis=1), dtype=np.int64)


def candidate_blocks(lengths: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Places of the rows of each block; a row without tokens parts two of them (``candidate_rows.py``)."""
    partings = np.flatnonzero(lengths == 0)
    starts, ends = [0, *(partings + 1)], [*partings, len(lengths)]
    return [np.arange(start, end, dtype=np.int64) for start, end in zip(starts, ends, strict=True)]


def candidate_run_sizes(is_gpu: bool) -> tuple[int, int]:
    """What starting a run of candidates costs, and how many it may hold, both in tokens."""
    return (GPU_RUN_TOKENS, GPU_MOST_TOKENS) if is_gpu else (RUN_TOKENS, MOST_TOKENS)


def length_groups(lengths: NDArray[np.int64], run_tokens: int = RUN_TOKENS) -> list[Group]:
    """Candidates of similar length, at the least total cost.

    Sorted by length, rows are cut into groups so that padded tokens plus ``run_tokens`` per group are the fewest: on a
    CPU a hundred candidates fall into several groups with hardly any padding, three candidates into one.
    """
    order = np.argsort(lengths, kind="stable")
    distinct, counts = np.unique(lengths, return_counts=True)
    before = np.concatenate([[0], np.cumsum(counts)])
    # cheapest[n] = cost of the rows of the n shortest distinct lengths; start[n] = where its last group begins
    cheapest, start = np.zeros(len(distinct) + 1), np.zeros(len(distinct) + 1, dtype=np.int64)
    for end in range(1, len(distinct) + 1):
        costs = cheapest[:end] + (before[end] - before[:end]) * distinct[end - 1] + run_tokens
        start[end] = int(np.argmin(costs))
        cheapest[end] = costs[start[end]]
    groups = []
    end = len(distinct)
    while end:
        groups.append((int(distinct[end - 1]), order[before[start[end]] : before[end]]))
        end = int(start[end])
    return groups


def cut_groups(groups: Sequence[Group], shares: int, most_tokens: int = MOST_TOKENS) -> list[Group]:
    """Groups cut into parts of about an equal share of the tokens, none larger or smaller than a run should be."""
    total = sum(tokens * len(rows) for tokens, rows in groups)
    share = min(max(FEWEST_TOKENS, total / shares), most_tokens)
    parts = []
    for tokens, rows in groups:
        count = min(len(rows), math.ceil(tokens * len(rows) / share - 0.5) or 1)
        parts += [(tokens, part) for part in np.array_split(rows, count)]
    return parts


def packed_runs(lengths: NDArray[np.int64], shares: int) -> list[Group]:
    """Rows in their order, cut into runs of about an equal share of the tokens; rows without tokens are left out.

    Args:
        lengths: tokens of each row.
        shares: runs at the most.
    """
    rows = np.flatnonzero(lengths)
    tokens = lengths[rows]
    count = min(len(rows), shares, max(1, int(tokens.sum()) // PACKED_FEWEST_TOKENS))
    if not count:
        return []
    # A row belongs to the share in which its middle token lies.
    middles = np.cumsum(tokens) - tokens / 2
    share_of_row = np.minimum(middles * count // tokens.sum(), count - 1)
    runs = [rows[share_of_row == share] for share in range(count)]
    return [(int(lengths[run].max()), run) for run in runs if len(run)]
