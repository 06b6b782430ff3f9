"""What events say: types with weights become gains, and gains reach lists, losses and metrics."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from pydantic import ValidationError
from tritonrank.data.loading import load_tables
from tritonrank.errors import DataError
from tritonrank.judge.metrics import mrr, ndcg, recall
from tritonrank.recipe import TablesData
from tritonrank.train.losses import list_loss

WEIGHTS = {"column": "event_type", "view": 0, "add_to_cart": 1, "purchase": 3}
TYPES = ["view", "purchase", " add_to_cart", "view"]


def shop(folder: Path, types: list[Any], label: object = WEIGHTS, suffix: str = "csv") -> TablesData:
    """Two items, and an event of each type in turn."""
    items = pl.DataFrame({"item_id": ["a", "b"], "title": ["Lamp", "Tent"]})
    events = pl.DataFrame(
        {
            "user_id": ["u"] * len(types),
            "item_id": ["a", "b"] * (len(types) // 2),
            "timestamp": range(1_000_000_000, 1_000_000_000 + len(types)),
            "event_type": types,
        }
    )
    for name, frame in (("items", items), ("events", events)):
        (frame.write_csv if suffix == "csv" else frame.write_parquet)(folder / f"{name}.{suffix}")
    paths = {name: str(folder / f"{name}.{suffix}") for name in ("items", "events")}
    return TablesData.model_validate({"source": "tables", **paths, "text_fields": ["title"], "label": label})


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_event_types_have_weights(tmp_path: Path, suffix: str) -> None:
    events = load_tables(shop(tmp_path, TYPES, suffix=suffix), seed=1).events
    assert events["label"].to_list() == [0, 1, 1, 0]
    assert events["gain"].to_list() == [0.0, 3.0, 1.0, 0.0]


@pytest.mark.parametrize("stars", [[1, 5, 3, 4], [1.0, 5.0, 3.0, 4.0], ["1", "5.0", "3", "4"]])
def test_numbers_may_be_types_too(tmp_path: Path, stars: list[Any]) -> None:
    label = {"column": "event_type", 1: 0, 3: 0, 4: 1, 5: 2.5}
    assert load_tables(shop(tmp_path, stars, label, "parquet"), seed=1).events["gain"].to_list() == [0, 2.5, 0, 1]


def test_types_without_a_weight_are_one_fault(tmp_path: Path) -> None:
    settings = shop(tmp_path, ["view", "wishlist", "purchase", "refund"] * 30)
    with pytest.raises(DataError) as caught:
        load_tables(settings, seed=1)
    (fault,) = str(caught.value).splitlines()[1:]
    assert "'refund' (30 rows), 'wishlist' (30 rows)" in fault
    assert "data.label" in fault
    assert "refund: 0" in fault


@pytest.mark.parametrize(
    ("label", "told"),
    [
        ({"view": 0, "purchase": 1}, "column"),
        ({"column": "event_type", "view": 0}, "above 0"),
        ({"column": "event_type", "view": -1}, "'view'"),
        ({"column": "event_type", "view": "much"}, "'view'"),
        ({"column": "event_type", "view": float("inf")}, "'view'"),
        ({"column": "event_type", True: 1, False: 0}, "quotes"),
    ],
)
def test_a_mapping_that_says_nothing_is_refused(label: dict[Any, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        TablesData.model_validate(
            {"source": "tables", "items": "i.csv", "events": "e.csv", "text_fields": ["t"], "label": label}
        )


def test_metrics_of_graded_lists() -> None:
    scores, gains = [4.0, 3.0, 2.0, 1.0], [1.0, 0.0, 3.0, 0.0]
    found, best = 1 + 3 / np.log2(4), 3 + 1 / np.log2(3)
    assert ndcg(scores, gains) == pytest.approx(found / best)
    assert ndcg(scores, gains, k=1) == pytest.approx(1 / 3)
    assert mrr(scores, gains) == 1
    assert recall(scores, gains, k=1) == 0.5
    assert ndcg(scores, [0.0, 0.0, 0.5, 0.0]) == ndcg(scores, [0, 0, 1, 0])  # one positive: its weight does not count


LOGITS = [[0.5, -1.0, 2.0, 0.0], [1.0, 0.25, -0.5, 0.75]]
GAINS = [[0.0, 1.0, 3.0, 0.0], [0.0, 0.0, 0.5, 0.0]]


def graded_loss(kind: str) -> float:
    """By loops over lists, candidates and pairs."""
    total, weights = 0.0, 0.0
    for logits, gains in zip(LOGITS, GAINS, strict=True):
        logs = np.array(logits) - np.log(np.exp(logits).sum())
        for i, gain in enumerate(gains):
            if kind == "listwise":
                total, weights = total - gain * logs[i], weights + gain
            elif kind == "binary":
                weight, sign = (gain, -1) if gain else (1.0, 1)
                total, weights = total + weight * np.log1p(np.exp(sign * logits[i])), weights + weight
            else:
                for j, other in enumerate(gains):
                    if gain > other:
                        total += (gain - other) * np.log1p(np.exp(logits[j] - logits[i]))
                        weights += gain - other
    return float(total / weights)


@pytest.mark.parametrize("kind", ["listwise", "pairwise", "binary"])
def test_a_positive_counts_by_its_gain(kind: str) -> None:
    loss = list_loss(torch.tensor(LOGITS, dtype=torch.float64), torch.tensor(GAINS), kind)
    assert loss.item() == pytest.approx(graded_loss(kind), rel=1e-6)


@pytest.mark.parametrize("kind", ["listwise", "pairwise", "binary"])
def test_binary_labels_have_the_loss_they_had(kind: str) -> None:
    """To the bit: a recipe without weights trains as it did."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(8, 6, generator=generator)
    labels = torch.eye(6)[torch.randint(6, (8,), generator=generator)]
    if kind == "listwise":
        before = torch.nn.functional.cross_entropy(logits, labels)
    elif kind == "binary":
        before = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels)
    else:
        pairs = (labels[:, :, None] > labels[:, None, :]).float()
        before = (torch.nn.functional.softplus(logits[:, None, :] - logits[:, :, None]) * pairs).sum() / pairs.sum()
    assert list_loss(logits, labels, kind).item() == before.item()
