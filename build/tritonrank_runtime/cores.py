"""How many cores this process may use: what threads, instances and the parts of a request are counted by."""

import os
from pathlib import Path

QUOTA_FILE = Path("/sys/fs/cgroup/cpu.max")


def available_cores() -> int:
    """The affinity mask, cut down by a container's CPU quota."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = QUOTA_FILE.read_text(encoding="ascii").split()
        if quota != "max":
            cores = min(cores, max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        pass
    return cores
