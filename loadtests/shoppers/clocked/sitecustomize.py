"""Shifts the clock of a simulated system: Python imports this by itself where its folder is on PYTHONPATH.

``time.time`` and ``time.time_ns`` tell the real time plus the seconds (float64) that the file named by the variable
holds. The file is mapped, so that whoever moves the clock moves it for all processes at once. Clocks that measure how
long something takes (``monotonic``, ``perf_counter``) stay as they are, and so do the times of files. gRPC gets the
real time: its deadlines are moments that its core, which is not Python, holds against the real clock.
"""

import mmap
import os
import struct
import sys
import time
from pathlib import Path

VARIABLE = "LOADTESTS_CLOCK"
REAL = ("grpc",)
"""Packages whose modules are told the real time."""


def shift(file: Path) -> None:
    """Let this process tell the shifted time from now on."""
    with file.open("rb") as opened:
        shared = mmap.mmap(opened.fileno(), 8, access=mmap.ACCESS_READ)
    offset, real, real_ns = struct.Struct("<d").unpack_from, time.time, time.time_ns

    def seconds() -> float:
        """How much the asking module's clock is ahead."""
        return 0.0 if _asks_for_the_real(sys._getframe(2).f_globals.get("__name__", "")) else offset(shared)[0]

    time.time = lambda: real() + seconds()
    time.time_ns = lambda: real_ns() + int(1e9 * seconds())


def _asks_for_the_real(module: str) -> bool:
    return module.partition(".")[0] in REAL


if VARIABLE in os.environ:
    shift(Path(os.environ[VARIABLE]))
