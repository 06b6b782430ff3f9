"""Shifts the clock of a simulated system: Python imports this by itself where its folder is on PYTHONPATH.

``time.time``, ``time.time_ns``, and ``time.gmtime`` and ``time.localtime`` where they are not told a moment, give the
real time plus the seconds (float64) in the file that the variable names. The file is mapped: whoever moves the clock
moves it for all processes at once. Clocks that measure how long something takes (``monotonic``, ``perf_counter``) stay
as they are, and so do the times of files and ``datetime.now``: libraries compare the very class. gRPC gets the real
time: its deadlines are moments that its core, which is not Python, holds against the real clock.
"""

import mmap
import os
import struct
import sys
import time
from pathlib import Path
from typing import Any

VARIABLE = "LOADTESTS_CLOCK"
REAL = ("grpc",)
"""Packages whose modules are told the real time."""


def shift(file: Path) -> None:
    """Let this process tell the shifted time from now on."""
    with file.open("rb") as opened:
        shared = mmap.mmap(opened.fileno(), 8, access=mmap.ACCESS_READ)
    offset, real, real_ns = struct.Struct("<d").unpack_from, time.time, time.time_ns
    gmtime, localtime = time.gmtime, time.localtime

    def seconds() -> float:
        """How much the asking module's clock is ahead."""
        return 0.0 if _asks_for_the_real(sys._getframe(2).f_globals.get("__name__", "")) else offset(shared)[0]

    def now(moment: Any) -> Any:
        return real() + offset(shared)[0] if moment is None else moment

    time.time = lambda: real() + seconds()
    time.time_ns = lambda: real_ns() + int(1e9 * seconds())
    time.gmtime = lambda moment=None, /: gmtime(now(moment))
    time.localtime = lambda moment=None, /: localtime(now(moment))


def _asks_for_the_real(module: str) -> bool:
    return module.partition(".")[0] in REAL


if VARIABLE in os.environ:
    shift(Path(os.environ[VARIABLE]))
