"""The formulas behind docs/tensor-parallel.md, against counts done by hand and against the page."""

from pathlib import Path

import pytest
from tensor_parallel_cost import (
    BERT_BASE,
    ENCODERS,
    H100,
    L4,
    LOADS,
    MACHINES,
    MINILM,
    Encoder,
    Load,
    Machine,
    product_seconds,
    smallest_hidden,
    speed_table,
    speedup,
    summed_bytes,
    sums,
    sums_table,
)

DOCS = Path(__file__).parents[1] / "docs"


def test_counts_done_by_hand() -> None:
    encoder = Encoder("two layers", layers=2, hidden=8, inner=32)
    load = Load.of(context=3, candidates=2, candidate_tokens=4)
    assert load.tokens == 11
    assert sums(encoder) == 4
    assert encoder.layer_weights == 2 * (4 * 64 + 2 * 256)
    # Both sums of the first layer have 11 rows, both of the last one per candidate.
    assert summed_bytes(encoder, load) == 2 * 2 * (11 + 2) * 8


def test_the_weights_are_those_of_the_published_encoders() -> None:
    """Without embeddings, biases and LayerNorms: 10.6, 84.9 and 302 million."""
    assert [round(encoder.layer_weights / 1e6, 1) for encoder in ENCODERS] == [10.6, 84.9, 302.0]


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.name)
def test_it_pays_from_the_smallest_hidden_size_on(machine: Machine) -> None:
    """Where latency no longer counts: a request of a million tokens."""
    instant = Machine(machine.name, machine.flops_per_second, machine.bytes_per_second, 0.0)
    for ranks in (2, 4, 8):
        for factor, pays in ((0.8, False), (1.25, True)):
            hidden = int(smallest_hidden(machine) * factor)
            encoder = Encoder("any", 24, hidden, 4 * hidden)
            assert (speedup(encoder, Load(1_000_000, 1_000), instant, ranks) > 1) is pays


def test_replicas_always_serve_more() -> None:
    for encoder in ENCODERS:
        for machine in MACHINES:
            for load in LOADS:
                for ranks in (2, 4):
                    assert speedup(encoder, load, machine, ranks) < ranks


def test_one_rank_costs_nothing() -> None:
    assert product_seconds(MINILM, LOADS[0], L4, 1) == product_seconds(MINILM, LOADS[0], L4)
    free = Machine("free", H100.flops_per_second, 1e30, 0.0)
    assert speedup(BERT_BASE, LOADS[0], free, 4) == pytest.approx(4)


def test_the_page_has_these_tables() -> None:
    page = (DOCS / "tensor-parallel.md").read_text(encoding="utf-8")
    assert sums_table() in page
    assert speed_table() in page
    for machine in MACHINES:
        assert f"{smallest_hidden(machine):.0f}" in page
