"""Candidates are grouped by length, so that padding and starting together cost least."""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonrank_runtime.length_groups import (
    FEWEST_TOKENS,
    MOST_TOKENS,
    RUN_TOKENS,
    cut_groups,
    length_groups,
)

length_lists = st.lists(st.integers(1, 30), min_size=0, max_size=40)


def cost(groups: list[list[int]]) -> int:
    """Tokens that so grouped lengths cost: padding and starting included."""
    return sum(len(group) * max(group) + RUN_TOKENS for group in groups)


def partitions(lengths: list[int]) -> Iterator[list[list[int]]]:
    """Every way to put them into groups."""
    if not lengths:
        yield []
        return
    first, *others = lengths
    for groups in partitions(others):
        yield [[first], *groups]
        for place, group in enumerate(groups):
            yield [*groups[:place], [first, *group], *groups[place + 1 :]]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=7))
def test_no_other_grouping_costs_less(lengths: list[int]) -> None:
    groups = [[lengths[row] for row in rows] for _, rows in length_groups(np.array(lengths))]
    assert cost(groups) == min(map(cost, partitions(lengths)))


@settings(max_examples=150, deadline=None)
@given(length_lists)
def test_every_row_is_in_one_group_that_has_room_for_it(lengths: list[int]) -> None:
    groups = length_groups(np.array(lengths, dtype=np.int64))
    assert sorted(itertools.chain.from_iterable(rows.tolist() for _, rows in groups)) == list(range(len(lengths)))
    for tokens, rows in groups:
        assert len(rows) > 0
        assert tokens == max(lengths[row] for row in rows)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 500), st.integers(1, 700)), min_size=1, max_size=6), st.integers(1, 16))
def test_groups_are_cut_into_runs_of_a_share_each(counted: list[tuple[int, int]], shares: int) -> None:
    """To the nearest number of parts, so a part may be half a share too large, and rows are not cut."""
    lengths = np.concatenate([np.full(count, tokens) for tokens, count in counted])
    groups = length_groups(lengths)
    runs = cut_groups(groups, shares)
    assert sorted(np.concatenate([rows for _, rows in runs]).tolist()) == list(range(len(lengths)))
    assert {place: tokens for tokens, rows in runs for place in rows} == {
        place: tokens for tokens, rows in groups for place in rows
    }, "cutting pads nobody further"
    share = min(max(FEWEST_TOKENS, sum(tokens * len(rows) for tokens, rows in groups) / shares), MOST_TOKENS)
    assert all(tokens * len(rows) <= 1.5 * share + tokens for tokens, rows in runs)
    assert all(len(rows) > 0 for _, rows in runs)
    if len(groups) < len(runs):  # something was cut, and not into crumbs
        whole = {(tokens, len(rows)) for tokens, rows in groups}
        parts = [(tokens, len(rows)) for tokens, rows in runs if (tokens, len(rows)) not in whole]
        assert all(tokens * (rows + 1) > FEWEST_TOKENS / 2 for tokens, rows in parts)


def test_little_work_is_not_cut_and_much_work_keeps_every_core_busy() -> None:
    assert len(cut_groups(length_groups(np.full(8, 12)), shares=16)) == 1
    for shares in (2, 4, 16):
        runs = cut_groups(length_groups(film_lengths(300)), shares)
        largest = max(tokens * len(rows) for tokens, rows in runs)
        assert len(runs) > 0.75 * shares
        assert largest <= 2 * sum(tokens * len(rows) for tokens, rows in runs) / shares


def test_few_rows_run_at_once_and_many_in_several_groups() -> None:
    assert len(length_groups(np.array([5, 9, 12]))) == 1
    assert 2 < len(length_groups(film_lengths(100))) < 12


def film_lengths(candidates: int) -> np.ndarray[Any, Any]:
    """Tokens of "{title} ({year}) {genres}" and [CLS], about as films have them: mean 15, hardly any above 25."""
    random = np.random.default_rng(candidates)
    return np.clip(np.rint(random.lognormal(np.log(14.5), 0.28, size=candidates)), 7, 25).astype(np.int64)


@pytest.mark.parametrize("candidates", [50, 100, 300, 1_000])
def test_padding_of_films_stays_below_a_tenth(candidates: int) -> None:
    lengths = film_lengths(candidates)
    assert lengths.max() > 1.6 * lengths.mean()  # padded to the longest, they would take so much more
    assert sum(tokens * len(rows) for tokens, rows in length_groups(lengths)) <= 1.10 * lengths.sum()
