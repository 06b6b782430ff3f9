"""Ports of the loopback address that refuse connections for as long as a test needs it.

A port that was free a moment ago is not one: the next server of any process may be given it, answer, or accept and say
nothing.
"""

import socket
import sys
import weakref


def hold_port(port: int = 0, *, of: object) -> int:
    """The number of `port`, of a free one where it is 0, which nobody is given by chance while `of` is referred to.

    A socket is bound to it and never listens. Whoever asks for the port by its number can still listen on it.
    """
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # gRPC's servers bind with it
    holder.bind(("127.0.0.1", port))
    weakref.finalize(of, holder.close)
    return int(holder.getsockname()[1])


def refused_address() -> str:
    """host:port on which nothing listens while this process lives."""
    return f"127.0.0.1:{hold_port(of=sys.modules[__name__])}"
