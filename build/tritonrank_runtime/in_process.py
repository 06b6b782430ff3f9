"""A ranker without a server: what the models ``tokenize``, ``score`` and ``select`` do, in the process that asks.

This file lies beside the model, like everything that Triton loads, so a ranker that is opened from a folder has the
texts, the engine and the order of the artifact that it belongs to, whatever release its caller is of. The caller is
``tritonrank_client.open``; it finds here one class, and hands over what would otherwise be tensors.

One request runs at a time and takes all cores: a second one beside it would make both slower and neither reproducible.
Those that come meanwhile wait, as many as the server's queue would hold, until their deadline.
"""

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tritonrank_runtime.candidate_rows import NO_ROW, candidate_scores, rows_in_blocks
from tritonrank_runtime.engine import Engine, Watch
from tritonrank_runtime.engines import ENGINE_PARAMETERS, ONNXRUNTIME, TORCH, model_files, open_executor
from tritonrank_runtime.item_report import ItemReader
from tritonrank_runtime.item_text import TextError, decode_texts
from tritonrank_runtime.repository import IDENTITY_FILE, model_folders
from tritonrank_runtime.selection import best_first
from tritonrank_runtime.text import RequestTokenizer

ITEM_CACHE_ENTRIES = 100_000
CONTEXT_CACHE_BYTES = 256_000_000
MANIFEST = "manifest.json"
LOOK_SECONDS = 0.05


class BusyError(RuntimeError):
    """As many requests wait as may wait at the most."""


class LateError(RuntimeError):
    """The request's time ran out, while it waited or while it was computed."""


class FolderError(ValueError):
    """The folder holds nothing that can rank in this process; the message says what it holds instead."""


INVALID_REQUEST = TextError
"""What a request that is wrong raises."""


@dataclass(frozen=True)
class Limits:
    """What a request may be, by the parameters of the artifact's ``tokenize``; the defaults are those of a recipe."""

    max_candidates: int = 1_000
    max_history: int = 1_000
    max_text_bytes: int = 65_536
    queue_requests: int = 64
    deadline_us: int = 2_000_000
    block_candidates: int = 0
    """see ``candidate_rows.py``"""

    @classmethod
    def of(cls, parameters: Mapping[str, str]) -> "Limits":
        return cls(**{name: int(parameters[name]) for name in cls.__dataclass_fields__ if name in parameters})


@dataclass(frozen=True)
class Request:
    """The tensors of ``rank``: texts as UTF-8 bytes, and items as a client would send them."""

    query: bytes
    history: Sequence[bytes]
    items: Sequence[bytes]
    item_ids: Sequence[bytes] | None = None
    top_k: int = 0
    max_item_tokens: int = 0
    truncate_left: bool = False
    strict: bool = False


@dataclass(frozen=True)
class Ranking:
    """What ``rank`` answers: places of the candidates and their scores, best first; the rest in the request's order."""

    indices: NDArray[np.int32]
    scores: NDArray[np.float32]
    item_tokens: NDArray[np.int32]
    truncated: NDArray[np.bool_]
    context_tokens: int
    unknown_tokens: tuple[int, int]
    unscored: Sequence[str]
    fields: str
    """JSON; see ``ItemReader.fields_json``"""


@dataclass(frozen=True)
class _Read:
    """A request's tokens, and what of it could not be used."""

    candidates: Sequence[Any]
    context: Sequence[int]
    unscored: Sequence[str]
    fields: str


class LocalRanker:
    """Ranks with the engine and the texts of an artifact. Safe for threads.

    Args:
        tokenizer: reads ``text.json`` and ``tokenizer.json``.
        engine: computes the logits.
        limits: of a request.
        artifact: the identity of what scores.
    """

    def __init__(self, tokenizer: RequestTokenizer, engine: Engine, limits: Limits, artifact: str) -> None:
        self.artifact = artifact
        self.limits = limits
        self._tokenizer = tokenizer
        self._engine = engine
        self._turn = threading.Lock()
        self._waiting = threading.BoundedSemaphore(limits.queue_requests + 1)

    def rank(self, request: Request, seconds: float, is_wanted: Callable[[], bool] = lambda: True) -> Ranking:
        """Rank the candidates of one request.

        Args:
            request: what to rank.
            seconds: that it may take, waiting included; the artifact's deadline where that is shorter.
            is_wanted: looked at between the parts of the work; False stops it.

        Raises:
            TextError: the request is wrong; the message begins with the field.
            BusyError: too many wait already.
            LateError: its time ran out.
        """
        ends_at = time.monotonic() + min(seconds, self.limits.deadline_us / 1e6)
        if not self._waiting.acquire(blocking=False):
            raise BusyError(f"{self.limits.queue_requests} requests wait already, as many as may")
        try:
            self._wait_for_turn(ends_at, is_wanted)
            try:
                read = self._read(request)
                scores = self._score(read, lambda: time.monotonic() < ends_at and is_wanted())
            finally:
                self._turn.release()
        finally:
            self._waiting.release()
        order = best_first(scores, request.item_ids, request.top_k)
        return Ranking(
            order,
            scores[order],
            np.array([len(ids) for ids in read.candidates], dtype=np.int32),
            np.array([ids.is_cut for ids in read.candidates], dtype=np.bool_),
            len(read.context),
            self._tokenizer.unknown_tokens(read.context, read.candidates),
            read.unscored,
            read.fields,
        )

    def _wait_for_turn(self, ends_at: float, is_wanted: Callable[[], bool]) -> None:
        """Wait, and look now and then whether anybody still waits for the answer: who does not makes room."""
        while not self._turn.acquire(timeout=max(0.0, min(LOOK_SECONDS, ends_at - time.monotonic()))):
            if time.monotonic() >= ends_at or not is_wanted():
                raise LateError("the request waited for others until its time ran out")

    def _read(self, request: Request) -> "_Read":
        """The tokens of a request."""
        limits = self.limits
        items = self._texts("items", request.items, limits.max_candidates)
        history = self._texts("history", request.history, limits.max_history)
        self._texts("item_ids", request.item_ids or (), limits.max_candidates)
        (query,) = self._texts("query", [request.query], 1)
        reader = ItemReader(self._tokenizer.rules.item_template, request.strict)
        texts = self._tokenizer.with_images(reader.render(items, "items"), request.item_ids)
        candidates = self._tokenizer.items(texts, request.max_item_tokens, request.truncate_left)
        context = self._tokenizer.context(query, reader.render(history, "history"))
        return _Read(candidates, context, reader.unscored(texts, candidates), reader.fields_json())

    def _score(self, read: "_Read", is_wanted: Callable[[], bool]) -> NDArray[np.float32]:
        """Scores of the candidates."""
        rows, row_of_candidate = rows_in_blocks(read.candidates, self.limits.block_candidates)
        if not (row_of_candidate != NO_ROW).any():  # nothing to compute, and no logits that anybody looks at
            return candidate_scores(np.empty(0, dtype=np.float32), row_of_candidate)
        tensors = self._tokenizer.tensors(read.context, rows)
        (logits,) = self._engine.run([tensors], watch=Watch(lambda _: is_wanted()))
        if not len(logits):
            raise LateError("the request's time ran out while it was computed")
        if not np.isfinite(logits).all():
            raise RuntimeError("the engine's logits are not finite numbers")
        return candidate_scores(logits, row_of_candidate)

    def _texts(self, field: str, values: Sequence[bytes], limit: int) -> list[str]:
        if len(values) > limit:
            raise TextError(f"{field}: {len(values)} elements; the limit is {limit}")
        return decode_texts(values, field, self.limits.max_text_bytes)


def open_repository(
    repository: Path, tokenize: Mapping[str, str], score: Mapping[str, str], threads: int = 0
) -> LocalRanker:
    """The ranker of an assembled repository.

    Args:
        repository: what ``tritonrank serve`` would load.
        tokenize: parameters in the config of the model that reads texts.
        score: of the one that computes, which may be the same.
        threads: that compute at the most; 0 = all cores that this process may use.

    Raises:
        FolderError: its scorer has no graph that runs in this process.
        ExecutorError: what should compute is not installed.
    """
    texts, scorer, answers = model_folders(repository)
    identity = json.loads((answers / IDENTITY_FILE).read_text(encoding="utf-8"))
    executor = score.get("executor", ONNXRUNTIME)
    if (scorer / "shards.json").is_file() or (executor != TORCH and not model_files(scorer)):
        found = ", ".join(sorted(path.name for path in scorer.iterdir() if path.is_file())) or "nothing"
        raise FolderError(f"{scorer}: no graph that one process could run (it holds {found})")
    options = {name: int(score[name]) for name in ENGINE_PARAMETERS if name in score}
    engine = open_executor(executor, scorer, "cpu", threads, **options)
    tokenizer = RequestTokenizer.from_folder(texts, int(tokenize.get("item_cache_entries", ITEM_CACHE_ENTRIES)))
    return LocalRanker(tokenizer, engine, Limits.of(tokenize), str(identity["artifact"]))


def open_model(folder: Path, threads: int = 0) -> LocalRanker:
    """The ranker of one stage's artifact, ``onnx`` or ``int8``, before it is assembled; the defaults are its limits.

    Raises:
        FolderError: it holds no graph.
    """
    if not model_files(folder):
        raise FolderError(f"{folder}: no graph that one process could run")
    manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    engine = open_executor(ONNXRUNTIME, folder, "cpu", threads, context_cache_bytes=CONTEXT_CACHE_BYTES)
    tokenizer = RequestTokenizer.from_folder(folder, ITEM_CACHE_ENTRIES)
    limits = Limits(block_candidates=tokenizer.architecture.block_candidates)
    return LocalRanker(tokenizer, engine, limits, str(manifest["artifact"])[:16])
