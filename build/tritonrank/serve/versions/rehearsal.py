"""Serve a version by itself before it is loaded beside what serves others.

Triton 2.51 tells a model that loads others (``model_repository/steward``) why one could not be loaded through shared
memory that it frees again without waiting: the model may read it afterwards, and give it back a second time. One failed
load in five ended it with a segmentation fault, and the server with it. So a running server is asked to load only what
another one just did; and what a version's code does to its server, it does to that one.
"""

import threading

from tritonrank.errors import ServerError
from tritonrank.serve.server import LocalTriton
from tritonrank.serve.server_log import models_that_failed
from tritonrank.serve.serving import CheckedRepository

WHOLE_LOG = 100_000
"""Lines."""


def rehearse(checked: CheckedRepository, beside: LocalTriton, cancelled: threading.Event) -> None:
    """Start a server for a version alone, ask it all golden requests, and end it; nothing, where its files as they are
    were proved before.

    Args:
        checked: whose files were compared with their hashes.
        beside: the server that the version is to be loaded into; this one is started as that was, on free ports.
        cancelled: once it is set, the rehearsal is given up.

    Raises:
        ServerError: the version cannot be served; says why.
    """
    if checked.is_proved:
        return
    alone = LocalTriton(
        checked.folder,
        ready_timeout_seconds=beside.ready_timeout_seconds,
        extra_arguments=beside.extra_arguments,
        environment=beside.environment,
        cancelled=cancelled,
    )
    try:
        checked.prove(alone.start(), cancelled)
    except ServerError as error:
        faults = models_that_failed(alone.log_tail(WHOLE_LOG).encode())
        raise ServerError(f"in a server of its own: {'; '.join(faults) or error}") from None
    finally:
        alone.kill()  # stopping takes seconds, and nobody is asking it
