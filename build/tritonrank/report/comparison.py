"""The requests that compression hurt most, with both rankings side by side, and how many it hurt at all."""

from dataclasses import dataclass

import numpy as np
from tritonrank_runtime.text import TextRules

from tritonrank.data.dataset import Dataset
from tritonrank.data.requests import requests_of
from tritonrank.judge.evaluate import Judgement
from tritonrank.judge.metrics import ranking
from tritonrank.rankers.scorers import Request
from tritonrank.report.ladder import Build

WORST_SHOWN = 10
TOP_SHOWN = 10
HISTORY_SHOWN = 6
ALIKE = 1e-9


@dataclass(frozen=True)
class RankedItem:
    text: str
    is_liked: bool
    rank: int
    """here, from 1"""
    other_rank: int
    """in the other ranking"""


@dataclass(frozen=True)
class WorstRequest:
    """One request as both rankers answered it."""

    example_id: str
    user: str
    query: str
    history: list[str]
    """the newest items, newest last"""
    candidates: int
    liked: list[RankedItem]
    """what the user went on to like: ``rank`` by the compressed ranker, ``other_rank`` by the teacher"""
    teacher_ndcg: float
    child_ndcg: float
    teacher_top: list[RankedItem]
    child_top: list[RankedItem]


@dataclass(frozen=True)
class Comparison:
    """The teacher and what became of it, request by request."""

    teacher: str
    child: str
    better: int
    same: int
    """in NDCG@10"""
    worse: int
    worst: list[WorstRequest]
    """only such as became worse, worst first"""

    @property
    def requests(self) -> int:
        return self.better + self.same + self.worse


def comparison(build: Build) -> Comparison | None:
    """The served ranker beside the teacher; None where the judgements of one of them are not there any more."""
    teacher, child = build.judgement(build.teacher), build.judgement(build.served)
    if teacher is None or child is None or build.served == build.teacher or teacher.example_ids != child.example_ids:
        return None
    change = child.values() - teacher.values()
    losses = [int(place) for place in np.argsort(change, kind="stable")[:WORST_SHOWN] if change[place] < -ALIKE]
    dataset = Dataset.read(build.dataset)
    examples = {example.example_id: example for example in dataset.test}
    chosen = [examples[teacher.example_ids[place]] for place in losses]
    requests = requests_of(dataset, chosen, TextRules.load(build.rungs()[build.served].folder))
    users = [example.user_id for example in chosen]
    return Comparison(
        teacher=build.teacher,
        child=build.served,
        better=int((change > ALIKE).sum()),
        same=int((np.abs(change) <= ALIKE).sum()),
        worse=int((change < -ALIKE).sum()),
        worst=[
            _side_by_side(place, user, request, teacher, child)
            for place, user, request in zip(losses, users, requests, strict=True)
        ],
    )


def _side_by_side(place: int, user: str, request: Request, teacher: Judgement, child: Judgement) -> WorstRequest:
    labels = teacher.table["labels"][place]
    orders = [ranking(judgement.table["scores"][place]).tolist() for judgement in (teacher, child)]
    ranks = [{item: rank for rank, item in enumerate(order, 1)} for order in orders]

    def ranked(items: list[int], here: int) -> list[RankedItem]:
        return [
            RankedItem(request.items[item], bool(labels[item]), ranks[here][item], ranks[1 - here][item])
            for item in items
        ]

    return WorstRequest(
        example_id=teacher.example_ids[place],
        user=user,
        query=request.query,
        history=request.history[-HISTORY_SHOWN:],
        candidates=len(request.items),
        liked=ranked([item for item, label in enumerate(labels) if label], here=1),
        teacher_ndcg=float(teacher.values()[place]),
        child_ndcg=float(child.values()[place]),
        teacher_top=ranked(orders[0][:TOP_SHOWN], here=0),
        child_top=ranked(orders[1][:TOP_SHOWN], here=1),
    )
