"""How a recommender works, once."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """Settings of one recommender.

    Attributes:
        candidates: that are retrieved and ranked, unless the request says how many.
        ranked: of these, that the ranker reads, the first so many; 0: as many as the blend was judged with.
        page_minutes: that a list is kept for its further pages.
        history_items: texts of the history that the ranker is told where it does not say how many it reads.
        warm_context: the ranker is told of the context while retrieval runs; costs a request more, see docs/gateway.md.
        threads: that retrieve and blend.
        profile_seconds: that the store may take for a profile.
        wait_seconds: that a change of items may take until it is seen here, before the change is acknowledged anyway.
    """

    candidates: int = 200
    ranked: int = 0
    page_minutes: float = 30.0
    history_items: int = 8
    warm_context: bool = False
    threads: int = 2
    profile_seconds: float = 0.1
    wait_seconds: float = 1.0
