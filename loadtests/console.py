"""What verbs say when they cannot do their work: one message, no traceback, and an exit code of its own."""

import sys
from typing import NoReturn

from rich.console import Console

CANNOT_RUN = 2
"""Exit code when the test could not be made; 1 is for objectives that were missed."""

console = Console(stderr=True, emoji=False)


def fail(message: str) -> NoReturn:
    """Say what is wrong and end the program."""
    console.print(message, style="bold red", markup=False, highlight=False, soft_wrap=True)
    sys.exit(CANNOT_RUN)
