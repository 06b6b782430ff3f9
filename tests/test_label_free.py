"""The judge without labels, and the texts that it judges on."""

from pathlib import Path

import numpy as np
import pytest
from tritonrank.data.own_texts import golden_pairs, packaged_requests, requests_of_file
from tritonrank.errors import DataError
from tritonrank.judge.label_free import Budgets, agreement
from tritonrank.rankers.pretrained import load_tokenizer
from tritonrank.recipe import PACKAGED_MINILM

GENERATOR = np.random.default_rng(3)
EXPECTED = [GENERATOR.normal(size=30).astype(np.float32) for _ in range(5)]


def test_the_same_scores_pass() -> None:
    found = agreement(EXPECTED, EXPECTED)
    assert found.passed
    assert (found.tau, found.overlap, found.difference) == (1, 1, 0)
    assert (found.requests, found.candidates) == (5, 150)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ([-scores for scores in EXPECTED], "tau"),
        ([*EXPECTED[:4], EXPECTED[4] + 0.6 * (np.arange(30) == 7)], "a score changed"),
        ([*EXPECTED[:4], np.full(30, np.nan)], "tau"),
        ([scores + GENERATOR.normal(size=30) for scores in EXPECTED], "ten best"),
    ],
    ids=["reversed", "one score", "no number", "noise"],
)
def test_each_budget_closes_the_gate(changed: list[np.ndarray], said: str) -> None:
    found = agreement([scores.astype(np.float32) for scores in changed], EXPECTED)
    assert not found.passed
    assert any(said in fault for fault in found.faults)
    assert agreement(EXPECTED, EXPECTED, Budgets(difference=0)).passed


def test_an_order_needs_two() -> None:
    with pytest.raises(ValueError, match="two candidates"):
        agreement([np.ones(1, np.float32)], [np.ones(1, np.float32)])


def test_packaged_texts_are_many_and_of_all_lengths() -> None:
    requests = packaged_requests()
    assert sum(len(request.items) for request in requests) >= 300
    assert packaged_requests() == requests, "always the same"
    tokenizer = load_tokenizer(PACKAGED_MINILM)
    lengths = [len(tokenizer(item, add_special_tokens=False)["input_ids"]) for r in requests for item in r.items]
    assert min(lengths) <= 8
    assert max(lengths) >= 400
    assert len({query for query, _ in golden_pairs()}) == 18


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no query with two documents"),
        ("one line\n", "no query with two documents"),
        ('{"query": "a"}\n', ":1: documents"),
        ('fine\tone\n{"query": "a", "documents": [1]}\n', ":2: documents"),
        ("{not json\n", ":1: not JSON"),
    ],
)
def test_faults_of_a_file_name_its_line(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "texts"
    path.write_text(text)
    with pytest.raises(DataError, match=said):
        requests_of_file(path)


def test_lines_of_both_kinds_are_requests(tmp_path: Path) -> None:
    path = tmp_path / "texts"
    path.write_text('{"query": "q", "document": "a"}\nq\tb\n{"documents": ["plain one", "plain two"]}\nplain three\n')
    first, second = requests_of_file(path)
    assert (first.query, first.items) == ("q", ["a", "b"])
    assert second.items == ["plain one", "plain two", "plain three"]
