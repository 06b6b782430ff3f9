"""The tensors of a request -> token ids, and what of it could not be used: the only definition, for all models.

Every input is checked here, so that a bad request is refused before anything is computed for it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tritonrank_runtime.candidate_rows import NO_ROW, rows_in_blocks
from tritonrank_runtime.item_report import ItemReader
from tritonrank_runtime.item_text import TextError, decode_texts
from tritonrank_runtime.text import RequestTokenizer

Find = Callable[[str], NDArray[Any] | None]
"""Gives the tensor of a request by its name, None where the request does not have it."""


@dataclass(frozen=True)
class RequestLimits:
    """What a request may be, by the parameters of its model; the defaults are those of a recipe."""

    max_candidates: int = 1_000
    max_history: int = 1_000
    max_text_bytes: int = 65_536
    block_candidates: int = 0
    """see ``candidate_rows.py``"""

    @classmethod
    def of(cls, parameters: Mapping[str, str]) -> "RequestLimits":
        return cls(**{name: int(parameters[name]) for name in cls.__dataclass_fields__ if name in parameters})


@dataclass(frozen=True)
class ReadRequest:
    """A request as the engine takes it, and what its caller may want to hear."""

    tensors: dict[str, NDArray[np.int32]]
    """what the engine takes, by input name"""
    row_of_candidate: NDArray[np.int32]
    """see ``candidate_rows.py``"""
    item_ids: NDArray[np.object_] | None
    top_k: int
    told: dict[str, NDArray[Any]]
    """For callers who ask: tokens as scored, without special ones, whether a text was cut, and why an item could not be
    scored, in the request's order; and whose fields do not fit the template (``item_report.py``)."""

    @property
    def without_text(self) -> int:
        """Candidates that have none."""
        return int((self.row_of_candidate == NO_ROW).sum())


TOLD = ("item_tokens", "truncated", "context_tokens", "unknown_tokens", "unscored", "fields")
"""The tensors in ``ReadRequest.told``."""


class RequestReader:
    """Reads requests for one ranker.

    Args:
        tokenizer: of the ranker.
        limits: of a request.
    """

    def __init__(self, tokenizer: RequestTokenizer, limits: RequestLimits) -> None:
        self._tokenizer = tokenizer
        self._limits = limits

    def read(self, find: Find) -> ReadRequest:
        """Tokenize one request.

        Raises:
            TextError: it is wrong; the message begins with the tensor.
        """
        items = self._texts(find, "items", self._limits.max_candidates)
        if not items:
            raise TextError(f"items: {'missing' if items is None else 'empty'}; at least one candidate is needed")
        item_ids = self._item_ids(find, len(items))
        top_k = _whole_number(find, "top_k", "0 (all)")
        most_tokens = _whole_number(find, "max_item_tokens", "0 (the ranker's own)")
        query = self._texts(find, "query", 1)
        history = self._texts(find, "history", self._limits.max_history)
        reader = ItemReader(self._tokenizer.rules.item_template, _is_set(find, "strict"))
        texts = self._tokenizer.with_images(reader.render(items, "items"), item_ids)
        candidates = self._tokenizer.items(texts, most_tokens, _is_set(find, "truncate_left"))
        context = self._tokenizer.context(query[0] if query else "", reader.render(history or (), "history"))
        unscored = reader.unscored(texts, candidates)
        rows, row_of_candidate = rows_in_blocks(candidates, self._limits.block_candidates)
        told: dict[str, NDArray[Any]] = {
            "item_tokens": np.array([len(ids) for ids in candidates], dtype=np.int32),
            "truncated": np.array([ids.is_cut for ids in candidates], dtype=np.bool_),
            "context_tokens": np.array([len(context)], dtype=np.int32),
            "unknown_tokens": np.array(self._tokenizer.unknown_tokens(context, candidates), dtype=np.int32),
            "unscored": np.array([reason.encode() for reason in unscored], dtype=np.object_),
            "fields": np.array([reader.fields_json().encode()], dtype=np.object_),
        }
        return ReadRequest(self._tokenizer.tensors(context, rows), row_of_candidate, item_ids, top_k, told)

    def _texts(self, find: Find, name: str, limit: int) -> list[str] | None:
        """The texts of a tensor; None where the request does not have it."""
        values = find(name)
        if values is None:
            return None
        if values.size > limit:
            raise TextError(f"{name}: {values.size} elements; the limit is {limit}")
        return decode_texts(values.ravel(), name, self._limits.max_text_bytes)

    def _item_ids(self, find: Find, candidates: int) -> NDArray[np.object_] | None:
        found = find("item_ids")
        if found is None:
            return None
        self._texts(lambda _: found, "item_ids", self._limits.max_candidates)
        if found.size != candidates:
            raise TextError(
                f"item_ids: {found.size} elements for {candidates} items; give one id per item or none at all"
            )
        return found.ravel()


def _is_set(find: Find, name: str) -> bool:
    """Whether a tensor of the request says yes."""
    tensor = find(name)
    return tensor is not None and bool(tensor.ravel()[0])


def _whole_number(find: Find, name: str, nothing: str) -> int:
    """The number in a tensor; 0, which means ``nothing``, where the request does not have it."""
    tensor = find(name)
    if tensor is not None and (number := int(tensor.ravel()[0])) < 0:
        raise TextError(f"{name}: {number}; expected {nothing} or a positive number")
    return 0 if tensor is None else number
