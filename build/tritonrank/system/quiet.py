"""Keep the libraries' chatter away from people who can do nothing about it.

Only where our own checks say more than the warnings do: an export is compared value by value, a quantized graph is
counted node by node.
"""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """No warnings and no log records below ERROR inside the block."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def quiet_transformers() -> None:
    """Errors only from transformers; has to run before it is imported, and the user's own choice wins."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
