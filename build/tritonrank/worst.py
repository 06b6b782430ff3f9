"""The requests that a step hurt most, in words: who asked, what they liked, and what either model put on top."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from tritonrank.evaluate import Judgement
from tritonrank.gate import Verdict
from tritonrank.metrics import ranking
from tritonrank.prepare import Dataset
from tritonrank.scorers import requests_of
from tritonrank.text import TextRules

HISTORY_SHOWN = 3
TOP_SHOWN = 3


def with_worst_requests(
    found: Verdict, child: Judgement, parent: Judgement, dataset_folder: Path, rules: TextRules
) -> Verdict:
    """The verdict with its worst requests in words, in the same order."""
    if not found.worst:
        return found
    names = [name for name, _, _ in found.worst]
    dataset = Dataset.read(dataset_folder)
    examples = {example.example_id: example for example in dataset.test}
    scores = [dict(zip(j.example_ids, j.table["scores"].to_list(), strict=True)) for j in (parent, child)]
    described = []
    for name, request in zip(names, requests_of(dataset, [examples[n] for n in names], rules), strict=True):
        tops = [[request.items[i] for i in ranking(by_name[name])[:TOP_SHOWN]] for by_name in scores]
        words: dict[str, Any] = {
            "example_id": name,
            "user": examples[name].user_id,
            "query": request.query,
            "history": request.history[-HISTORY_SHOWN:],
            "liked": [item for item, label in zip(request.items, examples[name].labels, strict=True) if label],
            "parent_top": tops[0],
            "child_top": tops[1],
        }
        described.append(words)
    return replace(found, worst_requests=described)
