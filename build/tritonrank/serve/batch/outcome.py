"""What the ranking of a table came to: lines for people, and one object for programs."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tritonrank.serve.batch.work import Counts

REASONS = {
    "empty": "have no text",
    "no_field": "have none of the template's fields",
    "no_token": "have text of which the tokenizer keeps nothing",
    "unknown_id": "are not in the table of items",
}


@dataclass(frozen=True)
class Outcome:
    """What was ranked.

    Attributes:
        out: the answers.
        counts: of the whole table.
        kept_pieces: that an earlier run had done, of all ``pieces``.
        seconds: of this run.
    """

    out: Path
    counts: Counts
    kept_pieces: int
    pieces: int
    seconds: float

    @property
    def told(self) -> dict[str, Any]:
        """For programs."""
        counts = self.counts
        return {
            "out": str(self.out),
            "requests": counts.requests,
            "ranked": counts.ranked,
            "pairs": counts.pairs,
            "unscored": dict(counts.unscored),
            "missing_fields": dict(counts.missing_fields),
            "unknown_fields": dict(counts.unknown_fields),
            "faults": counts.faults.total,
            "kept_pieces": self.kept_pieces,
            "pieces": self.pieces,
            "seconds": round(self.seconds, 1),
        }

    def show(self) -> None:
        """Say it on standard error."""
        counts = self.counts
        lines = [f"{counts.requests:,} requests, {counts.pairs:,} ranked items in {self.seconds:.1f} s -> {self.out}"]
        lines += [
            f"{count:,} items {REASONS.get(reason, reason)}: ranked last (column unscored: {reason})"
            for reason, count in counts.unscored.most_common()
        ]
        for fields, what in (
            (counts.missing_fields, "lacks a field that the template uses"),
            (counts.unknown_fields, "has a field that it does not use"),
        ):
            if fields:
                told = ", ".join(f"{name} ({count:,})" for name, count in fields.most_common(10))
                lines.append(f"requests with an item that {what}: {told}")
        if counts.faults.total:
            lines += [f"{counts.faults.total:,} rows were not ranked:", *(f"  {line}" for line in counts.faults.lines)]
        print("\n".join(lines), file=sys.stderr)
