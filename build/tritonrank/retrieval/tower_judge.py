"""The judge of towers: Recall@100 and @200 on the whole catalogue, with the very graph that would serve."""

from collections.abc import Sequence
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
from tritonrank.retrieval.embed import embed_items
from tritonrank.retrieval.full_catalogue import JudgedUser, judged_users, recalls
from tritonrank.retrieval.item_vectors import item_vectors

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

    def say(self) -> None:
        figures = ", ".join(f"Recall@{k} {interval(values)}" for k, values in self.recall.items())
        console.print(f"  {self.name}: {figures}", highlight=False)


class TowerJudge:
    """Judges retrievers on the test users.

    Args:
        dataset: whose items are the catalogue.
        folder: of the dataset.
        texts: of the items, in their order.
    """

    def __init__(self, dataset: Dataset, folder: Path, texts: Sequence[str]) -> None:
        self._items, self._texts = list(dataset.items), texts
        self._place = {item: number for number, item in enumerate(self._items)}
        self._users: list[JudgedUser] = judged_users(dataset, folder, dataset.test)

    def judge(self, name: str, folder: Path) -> Found:
        """What a retriever's folder finds; all items are embedded for it."""
        towers = Towers.load(folder)
        items = item_vectors(folder, self._items, self._texts, f"embedding items ({name})")
        queries = embed_items(folder, [one.example.query for one in self._users], f"embedding queries ({name})")
        users = np.zeros((len(self._users), towers.dimension), dtype=np.float32)
        for number, one in enumerate(self._users):
            history = items[[self._place[item] for item in one.example.history]]
            mixed = towers.mix(queries[number] if one.example.query else None, history)
            users[number] = 0 if mixed is None else mixed
        found = Found(name, recalls(users, items, self._users, RECALL_AT))
        found.say()
        return found


def gate(child: Found, parent: Found, budget: float, seed: int) -> Drop:
    """Whether a retriever may stand in place of another one: the paired gate of docs/gate.md on Recall@100."""
    drop = paired_drop(child.recall[GATE_AT], parent.recall[GATE_AT], budget, seed=seed, metric=f"Recall@{GATE_AT}")
    mark = "[green]passed[/]" if drop.passed else "[red]closed[/]"
    console.print(f"  gate {mark}, {child.name} against {parent.name}: {drop.reason}", highlight=False)
    return drop
