"""The requests that a step hurt most, in words: who asked, what they liked, and what either model put on top.

These are people's ids, queries and histories. They go into files that the owner of the data reads, never to a terminal
and never into an error's message, which both end up in logs.
"""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from textwrap import shorten
from typing import Any

from tritonrank_runtime.text import TextRules

from tritonrank.data.dataset import Dataset
from tritonrank.data.requests import requests_of
from tritonrank.judge.evaluate import Judgement
from tritonrank.judge.gate import Verdict
from tritonrank.judge.metrics import ranking

HISTORY_SHOWN = 3
TOP_SHOWN = 3
SHOWN = 160
"""Characters of a text."""


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


def require_passed(found: Verdict, record: Path, advice: str) -> None:
    """Raise unless the gate passed; the worst requests of a closed one go into a file.

    Args:
        found: with the worst requests in words.
        record: the file.
        advice: what can be done, for the message.

    Raises:
        GateError: the gate closed; the message names the file.
    """
    if found.passed:
        return
    lines = [f"{found.child} against {found.parent} on {found.examples} requests: {found.reason}.", ""]
    words = {request["example_id"]: in_words(request) for request in found.worst_requests}
    lines += [
        f"{name}: NDCG@10 {before:.3f} -> {after:.3f}{words.get(name, '')}" for name, before, after in found.worst
    ]
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text("\n".join(lines) + "\n", encoding="utf-8")
    found.require(f"{advice}\nWhose requests those are: {record}")


def forget_closed_gate(record: Path) -> None:
    """What an earlier attempt left, once the step has passed."""
    record.unlink(missing_ok=True)


def in_words(request: dict[str, Any]) -> str:
    """A worst request on indented lines of its own."""
    asked = f" asked for {shorten(request['query'], SHOWN)!r}" if request["query"] else ""
    return (
        f"\n    user {request['user']}{asked}, lately: {_listed(request['history']) or 'nothing'}"
        f"\n    went on to like: {_listed(request['liked'])}"
        f"\n    top before: {_listed(request['parent_top'])}"
        f"\n    top after:  {_listed(request['child_top'])}"
    )


def _listed(texts: Iterable[str]) -> str:
    return "; ".join(shorten(text, SHOWN, placeholder=" ...") for text in texts)
