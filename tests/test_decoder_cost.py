"""The cost model of decoders in ranks: against counts done by hand, against the figures that went in, and the page."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tritonrank.gpu_check.decoder_shapes import LOADS, SHAPES, Load
from tritonrank.gpu_check.parallel_cost import (
    H100,
    H100_FP8,
    KERNEL_SECONDS,
    PRODUCT_FLOPS,
    PUBLISHED,
    Sums,
    faster_until,
    layer_seconds,
    markdown,
    mean_seconds,
    read_sums,
    record,
    request_seconds,
    sum_seconds,
    summed_bytes,
    table,
)

ROOT = Path(__file__).parents[1]
FREE = Sums("free", {2: ((1, 0.0),), 4: ((1, 0.0),), 8: ((1, 0.0),)}, 1e30)
LARGE = SHAPES["qwen3-8b"]


def test_tokens_are_those_of_the_geometry() -> None:
    load = Load(500, 100, 30)
    assert (load.shared, load.pairs) == (3_500, 53_000)


def test_a_large_product_reaches_what_was_measured() -> None:
    """8,192 x 8,192 x 8,192 is 16 waves of tiles, of which the last is not full."""
    flops = 2 * 8_192**3
    assert 0.9 < flops / PRODUCT_FLOPS / H100.product(8_192, 8_192, 8_192) <= 1
    assert H100.product(1, 1, 1) == KERNEL_SECONDS


def test_sums_are_the_published_ones_and_grow_by_the_bus_beyond_them() -> None:
    assert PUBLISHED.of(2**20, 4) == pytest.approx(19e-6)
    assert PUBLISHED.of(1.25 * 2**20, 4) == pytest.approx(20.5e-6)
    assert PUBLISHED.of(1, 8) == pytest.approx(24e-6)
    assert PUBLISHED.of(5 * 2**20, 4) == pytest.approx(37e-6 + 1.5 * 2**20 / 367e9)
    assert PUBLISHED.of(10**9, 1) == 0
    for ranks in (2, 4, 8):  # of no size does a larger one take less, but for noise in the smallest
        found = [PUBLISHED.of(2**power, ranks) for power in range(15, 30)]
        assert found == sorted(found)


def test_bytes_that_are_added_up_are_counted() -> None:
    """Two sums per layer, of all tokens; in the last of one row per candidate."""
    load = Load(500, 100, 30)
    assert summed_bytes(LARGE, load) == (3_500 * 4_096 * 2, 100 * 4_096 * 2)
    usual, last = (PUBLISHED.of(size, 4) for size in summed_bytes(LARGE, load))
    assert sum_seconds(LARGE, load, PUBLISHED, 4) == pytest.approx(2 * (35 * usual + last))


def test_with_free_sums_ranks_take_at_least_their_share() -> None:
    for load in LOADS:
        alone = request_seconds(LARGE, load, H100, FREE)
        for ranks in (2, 4, 8):
            assert alone / ranks < request_seconds(LARGE, load, H100, FREE, ranks) < alone
    instant = replace(H100, kernel_seconds=0.0)
    times = layer_seconds(LARGE, LOADS[2], instant, 1) / layer_seconds(LARGE, LOADS[2], instant, 2)
    assert 1.6 < times < 2


def test_flops_of_a_request_are_those_of_the_architecture() -> None:
    """Products alone, in one wave's precision: no more than a tenth above what the weights say."""
    load = LOADS[2]
    products = 2 * LARGE.layer_weights * load.shared / PRODUCT_FLOPS
    assert products < request_seconds(LARGE, load, H100, FREE) < 1.5 * products


def test_fp8_gains_less_than_its_products_do() -> None:
    for load in LOADS:
        gain = request_seconds(LARGE, load, H100, FREE) / request_seconds(LARGE, load, H100_FP8, FREE)
        assert 1 < gain < 1.4


def test_waiting_is_that_of_the_textbook() -> None:
    """M/D/1 at half of its load waits half a service; M/M/2's Erlang C at 1 of 2 is a third, and half of that wait."""
    assert mean_seconds(1.0, 1, 0.5) == pytest.approx(1.5)
    assert mean_seconds(1.0, 2, 1.0) == pytest.approx(1 + 1 / 3 / 2)
    assert mean_seconds(1.0, 2, 2.0) == float("inf")


def test_ranks_win_up_to_a_load_and_replicas_beyond() -> None:
    until = faster_until(0.6, 1.0, 2)
    assert 0 < until < 1 / 0.6
    for load, is_faster in ((until * 0.99, True), (until * 1.01, False)):
        assert (mean_seconds(0.6, 1, load) < mean_seconds(1.0, 2, load)) is is_faster
    assert faster_until(1.0, 1.0, 2) == 0


def test_what_a_machine_measured_takes_the_place_of_what_others_did(tmp_path: Path) -> None:
    path = tmp_path / "sums.json"
    path.write_text(json.dumps({"kind": "measured", "machine": "two cards", "seconds": {"2": [[1_000, 1e-3]]}}))
    sums = read_sums(path)
    assert sums.of(500, 2) == 1e-3
    assert sums.of(2_000, 2) == pytest.approx(2e-3)
    rows = table(sums, LOADS[:1])
    assert all([*row.milliseconds] == [1, 2] for row in rows)
    assert "4 together" not in markdown(rows)
    assert record(rows, sums)["sums"]["origin"] == "measured on two cards"
    for text in ("{", '{"seconds": {}}', '{"kind": "measured", "machine": "x", "seconds": {"2": []}}'):
        path.write_text(text)
        with pytest.raises(SystemExit, match=r"sums\.json: no times of sums.*tritonrank\.gpu_check\.sum_speed"):
            read_sums(path)


def test_the_page_and_the_record_have_this_table() -> None:
    rows = table()
    assert markdown(rows) in (ROOT / "docs" / "tensor-parallel.md").read_text(encoding="utf-8")
    kept = json.loads((ROOT / "docs" / "measurements" / "decoder-parallel-model.json").read_text(encoding="utf-8"))
    made = json.loads(json.dumps(record(rows, PUBLISHED)))
    assert kept | {"created": ""} == made | {"created": ""}
