"""The cache of contexts keeps those seen last, within its bytes."""

from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonrank_runtime.context_cache import ContextCache

Entry = dict[str, np.ndarray[Any, Any]]


def entry_of(size: int) -> Callable[[Any], Entry]:
    return lambda ids: {"context_keys": np.full(size, ids[0], np.float32), "context_values": np.zeros(size, np.float32)}


ENTRY_BYTES = 2 * 4 * 100 + 4  # keys, values, and one token id as the key


@settings(max_examples=60, deadline=None)
@given(asked=st.lists(st.integers(0, 6), max_size=30), room=st.integers(0, 4))
def test_the_cache_holds_the_contexts_seen_last_within_its_bytes(asked: list[int], room: int) -> None:
    cache = ContextCache(room * ENTRY_BYTES + ENTRY_BYTES - 1)
    expected: list[int] = []  # the reference: newest last
    hits = 0
    for token in asked:
        found = cache.get(np.array([token], np.int32), entry_of(100))
        assert (found["context_keys"] == token).all()
        hits += token in expected
        expected = ([one for one in expected if one != token] + [token])[-room:] if room else []
        assert cache.bytes == len(expected) * ENTRY_BYTES
    assert (cache.hits, cache.misses) == (hits, len(asked) - hits)


def test_a_context_too_large_for_the_cache_drops_no_other() -> None:
    cache = ContextCache(2 * ENTRY_BYTES)
    small, large = np.array([1], np.int32), np.array([2], np.int32)
    cache.get(small, entry_of(100))
    cache.get(large, entry_of(100_000))
    cache.get(small, entry_of(100))
    assert (cache.hits, cache.bytes) == (1, ENTRY_BYTES)
