"""What came of the requests: counts by family and answer, what answers gave away, ends of the server, the verdict."""

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

LEAK = re.compile(
    r"Traceback|File \"|/home/|/tmp/|/usr/|/root/|/opt/|/mnt/|/srv/|/var/|site-packages|dist-packages"
    r"|\b[\w-]+\.pyc?\b|\.onnx\b|\.cc:\d+"
)
"""A traceback, a path, or a file of the server: nothing that an answer should hold."""
INTERNAL = ("500", "INTERNAL")
PARSERS = re.compile(
    r"Unable to (parse|set) '?[\w.' -]+'?:|failed to (parse|get) |Unable to parse JSON bytes array"
    r"|Expected JSON object for keyword|^Unable to parse request$"
)
"""Triton's and gRPC's own words for JSON, or protobuf, that is not what it should be; their status code is this one."""
NO_ANSWER = "no answer"
"""Instead of a status: the connection ended first."""
REPAIRED_SECONDS = 5.0
SLOW_SECONDS = 5.0
SETTLED_SHARE = 0.25
"""Of the blocks, after which caches and pools have their size."""
MOST_GROWTH, MOST_GROWTH_BYTES = 0.25, 128 * 2**20
"""Of resident memory since then: a share of it, or so many bytes where that is more."""
MOST_NEW_FILES = 24
"""Open ones since then; connections come and go."""
KEPT_CHARACTERS = 400
MOST_EXAMPLES = 5
SAME_CHARACTERS = 80
"""Of two answers, and one example is enough."""


class Answer(NamedTuple):
    """What one request met."""

    status: str
    """HTTP status, gRPC code, class of the client's error, or OK"""
    text: str
    """of the answer, its beginning"""
    request: str
    """enough of it for people; the seed gives it back whole"""
    is_expected: bool = True
    """False: an error of a kind that nobody should meet, such as a TypeError from our own client"""

    @property
    def is_accepted(self) -> bool:
        return self.status == "OK" or self.status.startswith("2")


@dataclass
class End:
    """The server, or a process of it, ended by itself."""

    number: int
    """of the last request before"""
    what: str
    """tritonserver, or the stub of a model"""
    family: str
    request: str
    repaired_seconds: float | None
    """until golden requests ranked again; None: not while the harness waited"""
    by_itself: bool = True
    """False: the harness had to start it again"""

    @property
    def is_repaired_in_time(self) -> bool:
        return self.by_itself and self.repaired_seconds is not None and self.repaired_seconds <= REPAIRED_SECONDS


@dataclass
class Record:
    """Everything that is found, while it is found."""

    counts: dict[str, Counter[str]] = field(default_factory=dict)
    leaks: list[dict[str, str]] = field(default_factory=list)
    leaking: int = 0
    unexpected: list[dict[str, str]] = field(default_factory=list)
    """an example of each kind"""
    unexpected_count: int = 0
    slow: int = 0
    ends: list[End] = field(default_factory=list)
    blocks: int = 0
    wrong_golden: list[str] = field(default_factory=list)
    """of blocks after which golden requests did not rank as before, and how"""
    footprints: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    """after each block: resident bytes and open files, by who was asked"""

    @property
    def requests(self) -> int:
        return sum(sum(counts.values()) for counts in self.counts.values())

    @property
    def accepted(self) -> int:
        return sum(
            count
            for counts in self.counts.values()
            for status, count in counts.items()
            if Answer(status, "", "").is_accepted
        )

    def add(self, family: str, answer: Answer, seconds: float) -> None:
        self.counts.setdefault(family, Counter())[answer.status] += 1
        self.slow += seconds > SLOW_SECONDS
        example = {
            "family": family,
            "status": answer.status,
            "request": answer.request[:KEPT_CHARACTERS],
            "answer": answer.text[:KEPT_CHARACTERS],
        }
        if found := LEAK.search(answer.text):
            self.leaking += 1
            if len(self.leaks) < MOST_EXAMPLES:
                self.leaks.append(example | {"leak": found[0]})
        is_ours = answer.status in INTERNAL and not PARSERS.search(answer.text)
        if is_ours or not answer.is_expected:
            self.unexpected_count += 1
            is_new = answer.text[:SAME_CHARACTERS] not in [one["answer"][:SAME_CHARACTERS] for one in self.unexpected]
            if is_new and len(self.unexpected) < MOST_EXAMPLES:
                self.unexpected.append(example)

    def faults(self) -> list[str]:
        """Why the server did not stand it, one sentence each; empty: it did."""
        late = [end for end in self.ends if not end.is_repaired_in_time]
        found = [
            (not self.requests or not self.accepted, f"{self.accepted} of {self.requests} requests were accepted"),
            (not self.blocks, "golden requests were never checked"),
            (self.wrong_golden, f"golden requests changed: {'; '.join(self.wrong_golden[:MOST_EXAMPLES])}"),
            (self.leaking, f"{self.leaking} answers hold a traceback or a path"),
            (self.unexpected_count, f"{self.unexpected_count} errors of a kind that nobody should meet"),
            (late, f"{len(late)} of {len(self.ends)} ends were not repaired within {REPAIRED_SECONDS:g} s"),
        ]
        return [reason for is_so, reason in found if is_so] + self._growth()

    def _growth(self) -> list[str]:
        """Who was not flat; a process that was started again begins anew and is not judged by what was before."""
        found = []
        for name, footprints in self.footprints.items():
            settled = footprints[int(SETTLED_SHARE * len(footprints)) :]
            if len(settled) < 2 or any((end.what == "gateway") == (name == "gateway") for end in self.ends):
                continue
            (resident, files), (last_resident, last_files) = settled[0], settled[-1]
            if last_resident - resident > max(MOST_GROWTH * resident, MOST_GROWTH_BYTES):
                found.append(f"memory of {name} grew from {resident / 2**20:.0f} to {last_resident / 2**20:.0f} MiB")
            if last_files - files > MOST_NEW_FILES:
                found.append(f"open files of {name} grew from {files} to {last_files}")
        return found
