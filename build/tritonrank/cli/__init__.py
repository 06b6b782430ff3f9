"""The command line: one verb per stage, and the verbs that use what was built.

The verbs stand in the order in which they are used, here and on the first page of ``tritonrank --help``.
"""

import sys

from rich.console import Console

from tritonrank.cli import (
    building,
    builds,
    fleet,
    importing,
    judging,
    learning,
    logs,
    ranking,
    replaying,
    rolling,
    searching,
    serving,
    settings,
    starting,
    storing,
    up,
    watching,
    workload,
)
from tritonrank.cli.options import app
from tritonrank.errors import TritonRankError, storage_error
from tritonrank.system.quiet import quiet_transformers

__all__ = [
    "app",
    "building",
    "builds",
    "fleet",
    "importing",
    "judging",
    "learning",
    "logs",
    "main",
    "ranking",
    "replaying",
    "rolling",
    "searching",
    "serving",
    "settings",
    "starting",
    "storing",
    "up",
    "watching",
    "workload",
]

console = Console(stderr=True, emoji=False)  # items.csv:100: is a line of a file, not an emoji


def main() -> None:
    """Entry point: errors of the user's own making, and of disks, are one message, without a traceback."""
    quiet_transformers()
    try:
        app()
    except Exception as error:
        known = error if isinstance(error, TritonRankError) else storage_error(error)
        if known is None:
            raise
        console.print(f"[bold red]{type(known).__name__}[/]: ", end="")
        console.print(str(known), markup=False, highlight=False, soft_wrap=True)
        sys.exit(known.exit_code)
