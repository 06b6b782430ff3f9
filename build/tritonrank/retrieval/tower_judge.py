"""The judge of towers: Recall@100 and @200 on the whole catalogue."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from tritonrank_recommend.catalogue.encoder import Towers

from tritonrank.data.dataset import Dataset
from tritonrank.judge.gate import Drop, paired_drop
from tritonrank.judge.metrics import interval
from tritonrank.retrieval.encoded import Encoded
from tritonrank.retrieval.full_catalogue import JudgedUser, judged_users, recalls
from tritonrank.retrieval.item_vectors import Residuals

RECALL_AT = (100, 200)
GATE_AT = 100
"""The one of RECALL_AT that gates look at."""

console = Console()


@dataclass(frozen=True)
class Found:
    """What one retriever finds."""

    name: str
    recall: dict[int, NDArray[np.float64]]
    """by k, per judged user"""

    def as_metrics(self) -> dict[str, Any]:
        return {f"recall@{k}": asdict(interval(values)) for k, values in self.recall.items()}


class TowerJudge:
    """Judges retrievers on the test users.

    Args:
        dataset: whose items are the catalogue.
        folder: of the dataset.
    """

    def __init__(self, dataset: Dataset, folder: Path) -> None:
        self._items = list(dataset.items)
        self._place = {item: number for number, item in enumerate(self._items)}
        self._users: list[JudgedUser] = judged_users(dataset, folder, dataset.test)

    def judge(self, name: str, encoded: Encoded, towers: Towers, residuals: Residuals) -> Found:
        """What towers find; one line says it.

        Args:
            name: what they are called.
            encoded: the texts by their encoder.
            towers: how a user is mixed.
            residuals: what items have beyond their texts.
        """
        items = residuals.added(self._items, encoded.items)
        users = np.zeros((len(self._users), towers.dimension), dtype=np.float32)
        for number, one in enumerate(self._users):
            history = items[[self._place[item] for item in one.example.history]]
            query = encoded.queries[one.example.query] if one.example.query else None
            mixed = towers.mix(query, history)
            users[number] = 0 if mixed is None else mixed
        found = Found(name, recalls(users, items, self._users, RECALL_AT))
        figures = ", ".join(f"Recall@{k} {interval(values)}" for k, values in found.recall.items())
        console.print(f"  {name}: {figures}", highlight=False, soft_wrap=True)
        return found


def gate(child: Found, parent: Found, budget: float, seed: int) -> Drop:
    """Whether a retriever may stand in place of another one: the paired gate of docs/gate.md on Recall@100."""
    drop = paired_drop(child.recall[GATE_AT], parent.recall[GATE_AT], budget, seed=seed, metric=f"Recall@{GATE_AT}")
    mark = "[green]passed[/]" if drop.passed else "[red]closed[/]"
    console.print(f"  gate {mark}, {child.name} against {parent.name}: {drop.reason}", highlight=False, soft_wrap=True)
    return drop
