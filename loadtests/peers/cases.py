"""The requests of a run: read from the workload file, and cut to texts that give the peers the tokens that we have.

Ours takes query, history and items and cuts them by token budgets (text.json). The peers take two strings, so the same
cuts are made here, before any clock runs: a text is cut where its last allowed token ends, and the context is
``query [SEP] oldest kept item [SEP] ... [SEP] newest item``, which their tokenizer reads as the separator token.

What remains different: a word cut in two can be tokenized in another way when it stands alone, and a text that holds
the literal "[SEP]" is text to us and a separator to them. ``identical_rows`` in the results says how often.
"""

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, count
from pathlib import Path

from tokenizers import Tokenizer

from loadtests.workload import WorkloadError, WorkloadRequest, read_workload

CHARACTERS_PER_TOKEN = 32
"""As in the pipeline's text.py: a long text is cut to this before it is tokenized."""
ZIPF_EXPONENT = 1.0


@dataclass(frozen=True)
class Case:
    """One request, in both forms.

    Attributes:
        number: its line in the workload.
        query, history, items: what ours gets; history newest last.
        context, documents: what the peers get; one document per item.
        labels: 1 for what the user chose next, 0 for the rest; None where that is not known.
    """

    number: int
    query: str
    history: list[str]
    items: list[str]
    context: str
    documents: list[str]
    labels: list[int] | None


def read_cases(workload: Path, tokenizer_folder: Path, candidates: int) -> list[Case]:
    """All requests with at least ``candidates`` items, cut to that many; those with labels come first.

    Args:
        workload: what ``tritonrank workload`` wrote.
        tokenizer_folder: holds tokenizer.json and text.json.
        candidates: items per request: latencies are compared at one size.

    Raises:
        WorkloadError: the file cannot be used, or no request has enough items.
    """
    texts = PairTexts(tokenizer_folder)
    requests = [request for request in read_workload(workload) if len(request.items) >= candidates]
    if not requests:
        raise WorkloadError(f"{workload}: no request with {candidates} items; choose fewer with --candidates")
    return sorted((_case(request, texts, candidates) for request in requests), key=lambda case: case.labels is None)


def zipf_cases(cases: Sequence[Case], seed: int) -> Iterator[Case]:
    """Users who come back: contexts drawn with probability 1 / rank, each time with another request's items.

    Labels belong to one user and one list, so these have none.
    """
    generator = random.Random(seed)
    ranked = generator.sample(cases, len(cases))
    weights = list(accumulate((rank + 1) ** -ZIPF_EXPONENT for rank in range(len(ranked))))
    while True:
        user = generator.choices(ranked, cum_weights=weights)[0]
        other = generator.choice(cases)
        yield replace(user, items=other.items, documents=other.documents, labels=None)


class Fresh:
    """Hands out cases in order, so that a system sees no context twice while there are unseen ones.

    Attributes:
        repeated: how many were handed out for a second time.
    """

    def __init__(self, cases: Sequence[Case]) -> None:
        self._cases = cases
        self._places = count()
        self.repeated = 0

    def __iter__(self) -> "Fresh":
        return self

    def __next__(self) -> Case:
        place = next(self._places)
        self.repeated += place >= len(self._cases)
        return self._cases[place % len(self._cases)]


class PairTexts:
    """Cuts the parts of a request as the pipeline does, and gives strings.

    Args:
        folder: tokenizer.json and text.json of a model artifact.
    """

    def __init__(self, folder: Path) -> None:
        rules = json.loads((folder / "text.json").read_text(encoding="utf-8"))
        self._query_tokens: int = rules["query_tokens"]
        self._history_items: int = rules["history_items"]
        self._history_tokens: int = rules["history_tokens"]
        self._candidate_tokens: int = rules["candidate_tokens"]
        self._cut = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._cut.no_truncation()
        self._cut.no_padding()
        self._cut.encode_special_tokens = True
        self._pairs = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._pairs.no_truncation()
        self._pairs.no_padding()
        self._separator = f" {self._pairs.encode('a', 'b').tokens[-1]} "

    def context(self, query: str, history: Sequence[str]) -> str:
        """Query and the newest history items that fit the budget, oldest first."""
        newest = history[-self._history_items :] if self._history_items else []
        kept: list[str] = []
        budget = self._history_tokens
        for text, tokens in reversed([self._cut_text(text, self._candidate_tokens) for text in newest]):
            cost = tokens + (1 if kept else 0)
            if not tokens:
                continue
            if kept and cost > budget:
                break
            kept.append(self._cut_text(text, budget)[0])
            budget -= cost
        parts = [self._cut_text(query, self._query_tokens)[0], *reversed(kept)]
        return self._separator.join(part for part in parts if part)

    def document(self, item: str) -> str:
        """The item, cut to the candidate budget."""
        return self._cut_text(item, self._candidate_tokens)[0]

    def rows(self, case: Case) -> list[list[int]]:
        """Token ids of each (context, document) pair as a peer's tokenizer makes them."""
        pairs = [(case.context, document) for document in case.documents]
        return [encoding.ids for encoding in self._pairs.encode_batch(pairs)]

    def context_length(self, case: Case) -> int:
        """Tokens of the context with the special tokens around it."""
        return len(self._pairs.encode(case.context).ids)

    def _cut_text(self, text: str, tokens: int) -> tuple[str, int]:
        text = text[: tokens * CHARACTERS_PER_TOKEN]
        encoding = self._cut.encode(text, add_special_tokens=False)
        if len(encoding.ids) <= tokens:
            return text.strip() if encoding.ids else "", len(encoding.ids)
        return text[: encoding.offsets[tokens - 1][1]], tokens


def _case(request: WorkloadRequest, texts: PairTexts, candidates: int) -> Case:
    items = request.items[:candidates]
    labels = request.labels[:candidates] if request.labels else None
    return Case(
        number=request.number,
        query=request.query,
        history=request.history,
        items=items,
        context=texts.context(request.query, request.history),
        documents=[texts.document(item) for item in items],
        labels=labels if labels and any(labels) else None,
    )
