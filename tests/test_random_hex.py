"""Ids out of a stock: none is given out twice, not even by a fork."""

import os

from tritonrank_recommend.random_hex import STOCK_BYTES, random_hex


def test_ids_are_as_long_as_asked_and_none_comes_twice() -> None:
    ids = [random_hex(16) for _ in range(STOCK_BYTES // 16 + 100)]  # the stock ends on the way
    assert {len(one) for one in ids} == {32}
    assert len(set(ids)) == len(ids)
    assert len(random_hex(STOCK_BYTES)) == 2 * STOCK_BYTES


def test_a_fork_has_ids_of_its_own() -> None:
    random_hex(1)  # the stock is not empty
    reads, writes = os.pipe()
    child = os.fork()
    if not child:
        os.write(writes, random_hex(16).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reads, 32).decode() != random_hex(16)
    os.close(reads)
    os.close(writes)
