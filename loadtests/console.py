"""What verbs say when they cannot do their work: one message, no traceback, and an exit code of its own."""

import json
import sys
from typing import NoReturn

from rich.console import Console

CANNOT_RUN = 2
"""Exit code when the test could not be made; 1 is for objectives that were missed."""

console = Console(stderr=True, emoji=False)


def fail(message: str, *, valid: bool = False) -> NoReturn:
    """Say what is wrong and end a verb that gives a verdict: whoever reads its last line finds that nothing passed.

    Args:
        message: for people.
        valid: whether a load was sent that says something about the server.
    """
    print(json.dumps({"passed": False, "valid": valid, "why": [message]}))
    fail_plainly(message)


def fail_plainly(message: str) -> NoReturn:
    """Say what is wrong and end a verb without a verdict."""
    console.print(message, style="bold red", markup=False, highlight=False, soft_wrap=True)
    sys.exit(CANNOT_RUN)
