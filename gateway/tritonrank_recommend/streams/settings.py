"""How events travel, once."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamSettings:
    """Settings of one stream.

    Attributes:
        url: see ``opening.open_stream``.
        keep: messages that stay behind what all groups have, to be read again; with 200 bytes each or so.
        dead_letters: a file; None is ``dead-letters.jsonl`` in the folder of the training log, else beside the
            stream's own file, else where the process was started.
    """

    url: str = "auto"
    keep: int = 100_000
    dead_letters: Path | None = None
