"""Where a recommender's computing runs: never in its event loop."""

from collections.abc import Awaitable, Callable
from typing import Any

Work = Callable[..., Awaitable[Any]]
"""``await work(do, *arguments)`` runs ``do(*arguments)`` in one of the recommender's own threads."""
