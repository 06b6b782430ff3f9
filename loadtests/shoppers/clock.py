"""The clock of a simulated system: compressed days, without a word of it in the system's own code.

Each process of the system is started with a shifted ``time.time`` (``clocked/sitecustomize.py``). The simulator sets
the clock to the moment at which somebody comes, and it runs on from there at its usual speed. So what the gateway
writes down (``shown_at``, ``received_at``, the hours of the log) is of the simulated day, and so is what it reckons
with: how old an event is, how long an item is new.

The clock never goes back. Simulated days lie in the past of the real clock: files, whose times are real, are never
older than anything that the system takes for now.
"""

import mmap
import os
import struct
import time
from collections.abc import Mapping
from pathlib import Path

from loadtests.shoppers.clocked.sitecustomize import VARIABLE

FOLDER = Path(__file__).parent / "clocked"


class SimulatedClock:
    """The clock of one system.

    Args:
        file: that its processes map; it is made, and its folder has to be there.
        start: unix seconds that it tells first.

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(self, file: Path, start: float) -> None:
        self._file = file.resolve()
        self._file.write_bytes(struct.pack("<d", start - time.time()))
        with self._file.open("r+b") as opened:
            self._shared = mmap.mmap(opened.fileno(), 8)

    @property
    def now(self) -> float:
        """Unix seconds that the system's processes tell."""
        return time.time() + float(struct.unpack_from("<d", self._shared)[0])

    def move_to(self, second: float) -> None:
        """Set it to a later moment; an earlier one leaves it."""
        if second > self.now:
            struct.pack_into("<d", self._shared, 0, second - time.time())

    @property
    def environment(self) -> Mapping[str, str]:
        """Variables of processes that live by this clock."""
        before = os.environ.get("PYTHONPATH", "")
        return {VARIABLE: str(self._file), "PYTHONPATH": os.pathsep.join(filter(None, [str(FOLDER), before]))}
