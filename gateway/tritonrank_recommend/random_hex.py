"""Random ids that nobody can guess, for an event loop beside threads that compute.

``os.urandom`` gives the interpreter up while the system answers, and a thread that computes keeps it for up to 5 ms:
a page asks for four ids. So they come out of a stock that is filled once for many.
"""

import os
import threading

STOCK_BYTES = 4_096

_lock = threading.Lock()
_stock = b""


def random_hex(size: int) -> str:
    """2 ``size`` hex digits, of at most STOCK_BYTES random bytes; each byte is given out once."""
    global _stock
    with _lock:
        if len(_stock) < size:
            _stock = os.urandom(STOCK_BYTES)
        given, _stock = _stock[:size], _stock[size:]
    return given.hex()


def _forget() -> None:
    """A fork has our stock, and must not give out the same."""
    global _stock
    _stock = b""


os.register_at_fork(after_in_child=_forget)
