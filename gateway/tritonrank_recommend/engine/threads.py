"""Where a recommender's computing runs: never in its event loop."""

from collections.abc import Awaitable, Callable
from typing import Any, ParamSpec, TypeVar

from tritonrank_recommend.catalogue.interface import Catalogue
from tritonrank_recommend.catalogue.items import KEPT

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")
Work = Callable[..., Awaitable[Any]]
"""``await work(do, *arguments)`` runs ``do(*arguments)`` in one of the recommender's own threads."""


async def looked_up(
    work: Work,
    catalogue: Catalogue | None,
    do: Callable[Parameters, Result],
    *arguments: Parameters.args,
    **named: Parameters.kwargs,
) -> Result:
    """``do(*arguments)``, which looks up a few items of a catalogue: tens of microseconds where they are in memory.

    To wake a thread takes longer than that, and the thread then waits for another one that computes. Of a large
    catalogue items may have to be read from a disk, which the event loop does not wait for.
    """
    if catalogue is None or len(catalogue) <= KEPT:
        return do(*arguments, **named)
    found: Result = await work(do, *arguments, **named)
    return found
