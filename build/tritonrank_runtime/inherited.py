"""Let go of the server's connections, which a model that is loaded later gets with its process.

Triton starts the process of a Python model by a fork, and does not keep its sockets from it. While the first models are
loaded there are none; a version that is loaded beside what serves would hold its share of all that are open: a client
whose connection the server closes would not hear of it as long as the model lives.
"""

import os
import socket
import stat
from contextlib import suppress
from pathlib import Path

STUB = "triton_python_backend_stub"


def close_inherited_sockets() -> int:
    """Close the connections of this process and what listens; only in a model's own process, and before it has any of
    its own. Gives how many there were."""
    closed = 0
    with suppress(OSError):
        if Path("/proc/self/exe").readlink().name != STUB:  # a test, or another program that runs the model's code
            return 0
        for entry in os.listdir("/proc/self/fd"):  # noqa: PTH208 - names are numbers
            with suppress(OSError):
                descriptor = int(entry)
                if stat.S_ISSOCK(os.fstat(descriptor).st_mode) and _is_internet(descriptor):
                    os.close(descriptor)
                    closed += 1
    return closed


def _is_internet(descriptor: int) -> bool:
    with socket.socket(fileno=os.dup(descriptor)) as duplicate:
        return duplicate.family in (socket.AF_INET, socket.AF_INET6)
