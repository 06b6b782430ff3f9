"""What of a model may be changed while it runs: numbers in a file, looked at now and then, each within its bounds.

The environment of the server names the file (`TRITONRANK_TUNING`); without it nothing is looked at. A file that is
wrong changes nothing, and the log says why, once. A file that is taken away brings back what the model began with.

    {"queue_share": 0.3, "batch_tokens": 0}
"""

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

VARIABLE = "TRITONRANK_TUNING"
LOOK_SECONDS = 1.0
LARGEST_FILE_BYTES = 4_096
BOUNDS = {"queue_share": (0.0, 1.0), "batch_tokens": (0.0, 1_000_000.0)}
"""By name what each may be; what a model does not have is not its business, and is passed over."""


class Tuning:
    """The numbers of one model. Used from one thread.

    Args:
        own: by name what the model began with.
        say: takes a line for the log.
        path: of the file; None looks at nothing.
        clock: seconds, for tests.
    """

    def __init__(
        self,
        own: Mapping[str, float],
        say: Callable[[str], None],
        path: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._own, self._say, self._clock = dict(own), say, clock
        self._path = path or (Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None)
        self.values = dict(own)
        self._looked_at = -LOOK_SECONDS
        self._seen: tuple[int, int] | None = None

    def look(self) -> bool:
        """Whether anything has changed since the last time; costs nothing most times."""
        if self._path is None or self._clock() - self._looked_at < LOOK_SECONDS:
            return False
        self._looked_at = self._clock()
        try:
            state = self._path.stat()
            seen = (state.st_mtime_ns, state.st_size)
        except OSError:
            seen = None
        if seen == self._seen:
            return False
        self._seen = seen
        try:
            wanted = self._own | (_read(self._path) if seen is not None else {})
        except (OSError, ValueError) as error:
            self._say(f"{VARIABLE}: nothing is changed: {error}")
            return False
        before, self.values = self.values, {name: wanted[name] for name in self._own}
        changed = [name for name in self._own if self.values[name] != before[name]]
        for name in changed:
            self._say(f"{VARIABLE}: {name} is {self.values[name]:g} after {before[name]:g}")
        return bool(changed)


def _read(path: Path) -> dict[str, float]:
    """The numbers of a file.

    Raises:
        ValueError: one is none, is out of bounds, or has a name that nobody knows; the message names it.
    """
    with path.open("rb") as file:
        content = file.read(LARGEST_FILE_BYTES + 1)
    if len(content) > LARGEST_FILE_BYTES:
        raise ValueError(f"more than {LARGEST_FILE_BYTES} bytes")
    told = json.loads(content)
    if not isinstance(told, dict):
        raise ValueError('expected {"queue_share": 0.3}')  # noqa: TRY004 - as a field that is wrong
    for name, value in told.items():
        if name not in BOUNDS:
            raise ValueError(f"{str(name)[:40]}: not known; there are {', '.join(BOUNDS)}")
        low, high = BOUNDS[name]
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise ValueError(f"{name}: expected a number from {low:g} to {high:g}")
    return {name: float(value) for name, value in told.items()}
