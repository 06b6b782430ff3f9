"""Reads the workload.jsonl that ``tritonrank workload`` writes, and believes nothing in it.

A load test that sends a broken request measures the server's error path and calls it latency. So every line is
checked before the first request is sent, and a fault is named by file, line and field. Only the standard library is
used: load generators must not carry the pipeline.
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

WORKLOAD_FILE = "workload.jsonl"
MOST_CANDIDATES = 1_000  # what one request may hold


class WorkloadError(ValueError):
    """A workload file cannot be used; the message names file, line and field."""


@dataclass(frozen=True)
class WorkloadRequest:
    """One request of a workload."""

    number: int
    """from 0, in order of arrival"""
    at_seconds: float
    """when it arrives, since the start of the workload"""
    user_id: str
    query: str
    """empty when there is none"""
    history: list[str]
    """item texts, newest last; may be empty"""
    items: list[str]
    """texts of the candidates, 1 to 1,000; none blank"""
    item_ids: list[str]
    """one for each candidate, no two alike"""
    labels: list[int] | None
    """one for each candidate, 1 or 0, where the request is a judged test example; None elsewhere"""


def read_workload(path: Path) -> list[WorkloadRequest]:
    """All requests of the file, in order of arrival.

    Raises:
        WorkloadError: the file is missing, empty, or a line of it is not a request.
    """
    try:
        with path.open("rb") as file:  # binary, because only \\n ends a line: a text may hold other line breaks
            requests = list(_checked_in_order(path, file))
    except OSError as error:
        raise WorkloadError(f"{path}: {error.strerror}. Write one: tritonrank workload artifacts/<recipe>") from None
    if not requests:
        raise WorkloadError(f"{path}: holds no request. Write one: tritonrank workload artifacts/<recipe>")
    return requests


def workload_of(target: str, workload: Path | None) -> Path:
    """The file that was named, or the one in the folder that is tested.

    Raises:
        WorkloadError: neither.
    """
    if workload is not None:
        return workload
    if "://" in target:
        raise WorkloadError("--workload: a URL has no workload of its own. Write one: tritonrank workload ARTIFACTS")
    path = Path(target) / WORKLOAD_FILE
    if not path.is_file():
        raise WorkloadError(f"{path}: no such workload. Write it: tritonrank workload {target}")
    return path


def cut_to(requests: Sequence[WorkloadRequest], candidates: int, path: Path) -> list[WorkloadRequest]:
    """Requests of one size, the first ``candidates`` items of each; those that have fewer are left out.

    Raises:
        WorkloadError: none has as many; the message names ``path``.
    """
    chosen = [request for request in requests if len(request.items) >= candidates]
    if not chosen:
        raise WorkloadError(
            f"{path}: no request with {candidates} items. Write one: tritonrank workload artifacts/<recipe> "
            f"--candidates {candidates}"
        )
    return [
        replace(
            request,
            items=request.items[:candidates],
            item_ids=request.item_ids[:candidates],
            labels=request.labels[:candidates] if request.labels else request.labels,
        )
        for request in chosen
    ]


def _checked_in_order(path: Path, lines: Iterator[bytes]) -> Iterator[WorkloadRequest]:
    arrived = 0.0
    for number, line in enumerate(lines):
        place = f"{path}:{number + 1}"
        request = _read_line(line, place)
        if request.number != number:
            raise WorkloadError(f"{place}: number: is {request.number}; expected {number}, as requests count from 0")
        if request.at_seconds < arrived:
            raise WorkloadError(
                f"{place}: at_seconds: {request.at_seconds} is before the request above, which arrives at {arrived}"
            )
        arrived = request.at_seconds
        yield request


def _read_line(line: bytes, place: str) -> WorkloadRequest:
    try:
        values = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise WorkloadError(f"{place}: not valid UTF-8 at byte {error.start}") from None
    except (ValueError, RecursionError) as error:
        raise WorkloadError(f"{place}: not a line of JSON: {error}") from None
    if not isinstance(values, dict):
        raise WorkloadError(f"{place}: expected a JSON object, one for each request")
    for name, (holds, expected) in _FIELDS.items():
        if name not in values:
            raise WorkloadError(f"{place}: {name}: is missing; expected {expected}")
        if not holds(values[name]):
            raise WorkloadError(f"{place}: {name}: is {_short(values[name])}; expected {expected}")
    if unknown := next((name for name in values if name not in _FIELDS), None):
        raise WorkloadError(f"{place}: {unknown}: no such field; there are {', '.join(_FIELDS)}")
    candidates = len(values["items"])
    for name in ("item_ids", "labels"):
        if values[name] is not None and len(values[name]) != candidates:
            raise WorkloadError(
                f"{place}: {name}: {len(values[name])} of them for {candidates} items; expected one for each"
            )
    return WorkloadRequest(**values | {"at_seconds": float(values["at_seconds"])})


def _is_number(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_time(value: Any) -> bool:
    if type(value) not in (int, float):
        return False
    try:
        return math.isfinite(value) and value >= 0
    except OverflowError:  # JSON allows whole numbers that no float can hold
        return False


def _is_text(value: Any) -> bool:
    """Text that can be sent: JSON can escape one half of a character, which UTF-8 cannot carry."""
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _are_candidates(value: Any) -> bool:
    return _are_texts(value) and 1 <= len(value) <= MOST_CANDIDATES and all(map(str.strip, value))


def _are_different(value: Any) -> bool:
    return _are_texts(value) and len(set(value)) == len(value)


def _are_labels(value: Any) -> bool:
    return value is None or (isinstance(value, list) and all(type(label) is int and label in (0, 1) for label in value))


_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "number": (_is_number, "a whole number from 0"),
    "at_seconds": (_is_time, "seconds from 0"),
    "user_id": (_is_text, "text"),
    "query": (_is_text, "text, which may be empty"),
    "history": (_are_texts, "a list of texts"),
    "items": (_are_candidates, f"a list of 1 to {MOST_CANDIDATES} texts, none of them blank"),
    "item_ids": (_are_different, "a list of texts, no two alike"),
    "labels": (_are_labels, "a list of 0 and 1, or null"),
}


def _short(value: Any) -> str:
    shown = json.dumps(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."
