"""What the gateway knows of the model behind it: limits, scores, names. Asked of the server now and then."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from tritonrank_client import ModelInfo

from tritonrank_gateway.ranking import Backend
from tritonrank_gateway.scores import Scores, scores_of

FRESH_SECONDS = 10.0
"""A published model is known after so long; sooner where a ranking bears another artifact's name."""
LEAST_SECONDS = 1.0
"""Between two questions: during a rollout the artifacts of two replicas take turns."""


@dataclass(frozen=True, slots=True)
class Model:
    """The model as its server describes it.

    Attributes:
        name: the ensemble.
        outputs: what it can tell.
        parameters: those of the ensemble's config.
        scores: how its scores may be told.
        max_candidates, max_text_bytes: the server's own limits.
        template: how an item's fields become its text; empty where the server does not say.
        fields: the names that the template uses.
        history_items: newest items of a history that it reads; None where the server does not say.
    """

    name: str
    outputs: frozenset[str] = frozenset()
    parameters: Mapping[str, str] = field(default_factory=dict)
    scores: Scores = field(default_factory=Scores)
    max_candidates: int = 1_000
    max_text_bytes: int = 65_536
    template: str = ""
    fields: tuple[str, ...] = ()
    history_items: int | None = None


class KnownModel:
    """The model behind a backend, remembered for a while."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._model: Model | None = None
        self._asked_at = 0.0
        self._lock = asyncio.Lock()
        self.artifact = ""

    @property
    def known(self) -> Model | None:
        """The model as it was known last, without asking; None before it was asked for the first time."""
        return self._model

    async def get(self) -> Model:
        """The model; asks the server where that was not done lately.

        Raises:
            RankError: the server was never reached.
            ValueError: what it says cannot be read.
        """
        if self._model is None or time.monotonic() - self._asked_at > FRESH_SECONDS:
            async with self._lock:
                if self._model is None or time.monotonic() - self._asked_at > FRESH_SECONDS:
                    await self._ask()
        assert self._model is not None
        return self._model

    def scored_by(self, artifact: str) -> None:
        """Take note of who scored; another than before was published since, and is asked for soon."""
        if artifact != self.artifact:
            self.artifact = artifact
            self._asked_at = min(self._asked_at, time.monotonic() - FRESH_SECONDS + LEAST_SECONDS)

    async def _ask(self) -> None:
        asked_at = time.monotonic()
        try:
            self._model = model_of(await self._backend.info())
        except Exception:
            if self._model is None:
                raise  # nobody knows it; who asks is told
        self._asked_at = asked_at  # what was known stays in force while the server is away


def model_of(info: ModelInfo) -> Model:
    """The model that a server describes.

    Raises:
        ValueError: a parameter cannot be read; the message names it.
    """
    parameters = info.parameters
    return Model(
        info.name,
        frozenset(output.name for output in info.outputs),
        parameters,
        scores_of(parameters),
        max_candidates=int(parameters.get("max_candidates", 1_000)),
        max_text_bytes=int(parameters.get("max_text_bytes", 65_536)),
        template=info.template,
        fields=info.fields,
        history_items=int(parameters["history_items"]) if "history_items" in parameters else None,
    )
