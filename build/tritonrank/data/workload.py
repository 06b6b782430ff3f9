"""Load for benchmarks and load tests: a prepared dataset becomes requests with arrival times, one JSON line each.

Load that repeats one request flatters a server; production never does. So contexts are those of real users, either
each one new (nothing that a cache of contexts could use), or returning by Zipf's law or soon after; candidates are
drawn as those of the judged lists are, their number may vary from request to request, and arrivals are Poisson, at one
rate or along a curve. A request that is a judged test example keeps its candidates and labels, so that whoever sends it
can also compute NDCG. Every request draws from streams of its own: the same seed gives the same file, and a longer
workload begins with the shorter one (but for the times of a curve, which is stretched).
"""

import itertools
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from rich.console import Console
from rich.table import Table
from tritonrank_runtime.item_text import render_fields
from tritonrank_runtime.repository import model_folders
from tritonrank_runtime.text import RULES_FILE, TextRules

from tritonrank.artifacts import verify_artifact, whole_file
from tritonrank.data.arrivals import arrival_times
from tritonrank.data.dataset import Dataset, Example
from tritonrank.data.lists import history_before, training_popularity
from tritonrank.data.negatives import NegativeSampler, example_random, stable_hash
from tritonrank.data.splits import LIKED, UNUSED
from tritonrank.data.workload_settings import WorkloadSettings, candidate_sizes, zipf_exponent
from tritonrank.errors import ArtifactError, DataError

WORKLOAD_FILE = "workload.jsonl"

console = Console(emoji=False)  # a path may hold :100:


def make_workload(artifacts: Path, out: Path | None, settings: WorkloadSettings) -> Path:
    """Write a workload and print what it holds.

    Each line is a JSON object: number (from 0, in order of arrival), at_seconds (since the start), user_id, query,
    history (item texts, newest last), items (candidate texts), item_ids (no two alike), and labels (1 or 0 per
    candidate of a judged test example, else null).

    Args:
        artifacts: ``artifacts/<recipe>``, with the dataset and with a repository or a fine-tuned model, whose text
            rules are used.
        out: the file, which appears whole or not at all; default: workload.jsonl in ``artifacts``.
        settings: how many requests, of which kind.

    Returns:
        The path of the file.

    Raises:
        ArtifactError: the dataset or the text rules are missing or damaged, or the file cannot be written.
        DataError: the dataset has fewer contexts, or fewer unseen items for a user, than asked for.
    """
    path = out or artifacts / WORKLOAD_FILE
    figures = _write_lines(path, workload_lines(artifacts, settings))
    _show(path, figures)
    return path


def workload_lines(artifacts: Path, settings: WorkloadSettings) -> Iterator[dict[str, Any]]:
    """The lines of ``make_workload``, made one by one; what is wrong shows before the first.

    Raises:
        ArtifactError: the dataset or the text rules are missing or damaged.
        DataError: as ``make_workload``.
    """
    rules = _read_rules(artifacts)
    kept = rules.history_items if settings.history_items is None else settings.history_items
    source = _Source(artifacts / "dataset", rules.item_template, kept)
    contexts = _choose_contexts(source, settings)
    plans = _plan(contexts, settings)
    _check_catalogue(source, plans)
    return _lines(source, plans, settings)


@dataclass(frozen=True)
class _Context:
    """What is known before any item is seen, as the server gets it."""

    user_id: str
    query: str
    history: tuple[str, ...]
    """item texts, newest last"""
    judged: Example | None = None
    """the test example that this context belongs to"""

    @property
    def content(self) -> tuple[str, str, tuple[str, ...]]:
        """Two contexts are the same when these are."""
        return self.user_id, self.query, self.history


@dataclass(frozen=True)
class _Plan:
    """A request before its candidates are drawn."""

    context: _Context
    candidates: int
    is_judged: bool
    """whether the candidates are those of the context's test example, with labels"""


class _Source:
    """A dataset, as contexts and candidates are taken from it.

    Args:
        folder: what ``prepare`` wrote.
        template: renders an item.
        history_items: the newest items of a history that are kept.

    Raises:
        ArtifactError: the dataset is missing or damaged.
    """

    def __init__(self, folder: Path, template: str, history_items: int) -> None:
        verify_artifact(folder)
        dataset, events = Dataset.read(folder), pl.read_parquet(folder / "events.parquet", glob=False)
        self.texts = {item: render_fields(template, fields) for item, fields in dataset.items.items()}
        self._test = dataset.test
        self._history_items = history_items
        self._item_ids = list(dataset.items)
        index = {item: place for place, item in enumerate(self._item_ids)}
        self._sampler = NegativeSampler(training_popularity(events, index))
        textless = {index[item] for item, text in self.texts.items() if not text}  # the server refuses them
        met = events.group_by("user_id").agg("item_id")
        self._barred = {
            user: np.array(sorted(textless | {index[item] for item in items}), dtype=np.int64)
            for user, items in met.iter_rows()
        }
        self._liked: defaultdict[str, list[str]] = defaultdict(list)
        self._queries: defaultdict[str, list[str | None]] = defaultdict(list)
        positives = events.filter(LIKED).select("user_id", "item_id", "query", "split")
        for user, item, query, split in positives.iter_rows():
            self._liked[user].append(item)
            # What prepare left aside is history of what came later, but no request of its own.
            self._queries[user].append(None if split == UNUSED else query)

    def judged_contexts(self) -> Iterator[_Context]:
        """Those of the test examples, in their order."""
        for example in self._test:
            can_be_sent = all(self.texts[item] for item in example.candidates)
            yield self._context(example.user_id, example.query, example.history, example if can_be_sent else None)

    def contexts_in_rounds(self, seed: int) -> Iterator[_Context]:
        """Everybody's newest context, then everybody's second-newest, and so on; within a round by lot.

        So nobody with a long history dominates, and histories are as long as the users have them.
        """
        for back in itertools.count(1):
            users = [user for user, liked in self._liked.items() if len(liked) >= back]
            if not users:
                return
            turn = {user: stable_hash(seed, f"round {back}:{user}") for user in users}
            for user in sorted(users, key=turn.__getitem__):
                if context := self._context_before(user, len(self._liked[user]) - back):
                    yield context

    def context_of_each_user(self) -> Iterator[_Context]:
        """That of the user's test example, else the newest."""
        judged = {context.user_id: context for context in self.judged_contexts() if context.judged}
        for user, liked in self._liked.items():
            earlier = (self._context_before(user, place) for place in range(len(liked) - 1, -1, -1))
            if context := judged.get(user) or next(filter(None, earlier), None):
                yield context

    def unseen_items(self, user: str) -> int:
        """How many items of the catalogue the user never met; items without a text do not count."""
        return len(self._item_ids) - len(self._barred[user])

    def draw_candidates(self, user: str, count: int, random: np.random.Generator) -> list[str]:
        """Ids of items that the user never met, drawn as negatives are, in an order that says nothing."""
        drawn = self._sampler.draw(random, self._barred[user], count)
        return [self._item_ids[drawn[place]] for place in random.permutation(count)]

    def _context_before(self, user: str, place: int) -> _Context | None:
        """What was known when the user's positive number ``place`` came; None when that was nothing at all."""
        liked, query = self._liked[user], self._queries[user][place]
        history = history_before(liked, place, {liked[place]})
        if query is None or not (query or history):
            return None
        return self._context(user, query, history)

    def _context(self, user: str, query: str, history: Sequence[str], judged: Example | None = None) -> _Context:
        kept = history[-self._history_items :] if self._history_items else []
        return _Context(user, query, tuple(self.texts[item] for item in kept), judged)


def _read_rules(artifacts: Path) -> TextRules:
    """The text rules of what is served, or of the fine-tuned model where no repository was assembled yet."""
    for folder in (model_folders(artifacts / "repository").texts, artifacts / "teacher"):
        path = folder / RULES_FILE
        if not path.is_file():
            continue
        try:
            return TextRules.load(folder)
        except (OSError, ValueError, TypeError) as error:
            raise ArtifactError(
                f"{path}: not the text rules of a model ({error}). Run tritonrank build again"
            ) from None
    raise ArtifactError(
        f"{artifacts}: neither repository/ranker/1/{RULES_FILE} nor teacher/{RULES_FILE} is here, which say how an "
        "item becomes text. Give the folder artifacts/<recipe>; build what is in it: tritonrank build RECIPE"
    )


def _choose_contexts(source: _Source, settings: WorkloadSettings) -> list[_Context]:
    """One for each request; a share of them are those of a request shortly before."""
    returning = (example_random(settings.seed, "returns").random(settings.requests) < settings.returns).tolist()
    returning[0] = False
    how_soon = example_random(settings.seed, "returns within")
    back = how_soon.integers(1, settings.returns_within, settings.requests, endpoint=True).tolist()
    visitors = iter(_visitors(source, settings, returning.count(False)))
    contexts: list[_Context] = []
    for is_return, requests_ago in zip(returning, back, strict=True):
        contexts.append(contexts[-min(requests_ago, len(contexts))] if is_return else next(visitors))
    return contexts


def _visitors(source: _Source, settings: WorkloadSettings, count: int) -> list[_Context]:
    """Contexts of users as they come, not counting those who come back soon."""
    exponent = zipf_exponent(settings.users)
    if exponent is None:
        return _fresh_contexts(source, count, settings)
    users = sorted(source.context_of_each_user(), key=lambda context: stable_hash(settings.seed, context.user_id))
    weights = np.arange(1, len(users) + 1, dtype=np.float64) ** -exponent
    drawn = example_random(settings.seed, "users").choice(len(users), count, p=weights / weights.sum())
    return [users[place] for place in drawn]


def _fresh_contexts(source: _Source, count: int, settings: WorkloadSettings) -> list[_Context]:
    """Different contexts, those of the test examples first."""
    chosen: dict[tuple[str, str, tuple[str, ...]], _Context] = {}
    for context in itertools.chain(source.judged_contexts(), source.contexts_in_rounds(settings.seed)):
        chosen.setdefault(context.content, context)
        if len(chosen) == count:
            return list(chosen.values())
    raise DataError(
        f"{count} requests with a context of their own were asked for, but the dataset has only "
        f"{len(chosen)} different contexts; ask for --requests {len(chosen)} or fewer, or let users return: "
        "--users zipf:1.1"
    )


def _plan(contexts: Sequence[_Context], settings: WorkloadSettings) -> list[_Plan]:
    """How many candidates each request has, and which requests are judged: the first of each test example's."""
    sizes = candidate_sizes(settings.candidates)
    drawn = sizes.draw(example_random(settings.seed, "candidates"), settings.requests).tolist()
    plans, judged_users = [], set()
    for context, size in zip(contexts, drawn, strict=True):
        is_judged = (
            context.judged is not None
            and len(context.judged.candidates) == sizes.only
            and context.user_id not in judged_users
        )
        if is_judged:
            judged_users.add(context.user_id)
        plans.append(_Plan(context, size, is_judged))
    return plans


def _check_catalogue(source: _Source, plans: Sequence[_Plan]) -> None:
    """Before anything is written: a request may not need more unseen items than its user has."""
    drawn = [plan for plan in plans if not plan.is_judged]
    impossible = [plan for plan in drawn if plan.candidates > source.unseen_items(plan.context.user_id)]
    if not impossible:
        return
    worst = max(impossible, key=lambda plan: plan.candidates - source.unseen_items(plan.context.user_id))
    possible = min(source.unseen_items(plan.context.user_id) for plan in drawn)
    raise DataError(
        f"{len(impossible)} of {len(plans)} requests ask for more candidates than the catalogue of {len(source.texts)} "
        f"items has unseen ones for their user; the worst asks for {worst.candidates}, and "
        f"{source.unseen_items(worst.context.user_id)} are left that user {worst.context.user_id} never met. "
        + (
            f"At most {possible} are possible for all, such as --candidates {possible}"
            if possible
            else "Use a larger catalogue"
        )
    )


def _lines(source: _Source, plans: Sequence[_Plan], settings: WorkloadSettings) -> Iterator[dict[str, Any]]:
    random = example_random(settings.seed, "arrivals")
    times = arrival_times(random, len(plans), settings.rate, settings.arrivals).tolist()
    for number, (plan, at_seconds) in enumerate(zip(plans, times, strict=True)):
        context, example = plan.context, plan.context.judged
        if plan.is_judged and example is not None:
            item_ids, labels = example.candidates, [int(gain > 0) for gain in example.labels]
        else:
            random = example_random(settings.seed, f"request {number}")
            item_ids, labels = source.draw_candidates(context.user_id, plan.candidates, random), None
        yield {
            "number": number,
            "at_seconds": round(at_seconds, 6),
            "user_id": context.user_id,
            "query": context.query,
            "history": context.history,
            "items": [source.texts[item] for item in item_ids],
            "item_ids": item_ids,
            "labels": labels,
        }


@dataclass
class _Figures:
    """What the table shows, noted line by line: a long workload need not fit into memory twice."""

    requests: int = 0
    judged: int = 0
    seconds: float = 0.0
    size_bytes: int = 0
    candidates: list[int] = field(default_factory=list)
    histories: list[int] = field(default_factory=list)
    contexts: set[tuple[str, str, tuple[str, ...]]] = field(default_factory=set)

    def note(self, line: dict[str, Any], size_bytes: int) -> None:
        self.requests += 1
        self.judged += line["labels"] is not None
        self.seconds = line["at_seconds"]
        self.size_bytes += size_bytes
        self.candidates.append(len(line["items"]))
        self.histories.append(len(line["history"]))
        self.contexts.add((line["user_id"], line["query"], line["history"]))


def _write_lines(path: Path, lines: Iterable[dict[str, Any]]) -> _Figures:
    figures = _Figures()
    with whole_file(path, "choose another file with --out") as draft, draft.open("wb") as file:
        for line in lines:
            encoded = json.dumps(line, ensure_ascii=False).encode() + b"\n"
            file.write(encoded)
            figures.note(line, len(encoded))
    return figures


def _show(path: Path, figures: _Figures) -> None:
    """Print the table and the path for people, then one line of JSON for scripts."""
    candidates = [_at_share(figures.candidates, share) for share in (0.5, 0.9, 1)]
    histories = [_at_share(figures.histories, share) for share in (0.5, 1)]
    rate = figures.requests / figures.seconds if figures.seconds else 0.0
    table = Table(show_header=False)
    table.add_column()
    table.add_column(justify="right", no_wrap=True)
    table.add_row("requests", f"{figures.requests:,}")
    table.add_row("judged, with labels", f"{figures.judged:,}")
    table.add_row("distinct contexts", f"{len(figures.contexts):,}")
    table.add_row("candidates p50 / p90 / max", " / ".join(map(str, candidates)))
    table.add_row("history items p50 / max", " / ".join(map(str, histories)))
    table.add_row("mean arrival rate", f"{rate:.2f}/s")
    table.add_row("bytes", f"{figures.size_bytes:,}")
    console.print(table)
    console.print(f"-> {path}", markup=False, highlight=False, soft_wrap=True)
    summary = {
        "workload": str(path),
        "requests": figures.requests,
        "judged": figures.judged,
        "contexts": len(figures.contexts),
        "candidates": dict(zip(("p50", "p90", "max"), candidates, strict=True)),
        "history": dict(zip(("p50", "max"), histories, strict=True)),
        "requests_per_second": round(rate, 3),
        "bytes": figures.size_bytes,
    }
    print(json.dumps(summary))


def _at_share(values: Sequence[int], share: float) -> int:
    """The smallest of the values that this share of them does not exceed."""
    return int(np.quantile(values, share, method="inverted_cdf"))
