"""What serves: the release, the artifacts of the parts, and when each was made."""

import datetime
from collections.abc import Iterator
from importlib.metadata import version

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily
from prometheus_client.registry import Collector
from tritonrank_recommend.engine import Recommender

from tritonrank_gateway.metrics import NAME
from tritonrank_gateway.model import KnownModel

CREATED_PARAMETER = "artifact_created"


class AboutMetrics(Collector):
    """Looks whenever the page is read: artifacts are replaced while the gateway serves.

    Args:
        model: the ranker; what has not been reached yet is left out.
        recommender: None where there is none.
    """

    def __init__(self, model: KnownModel, recommender: Recommender | None) -> None:
        self._model, self._recommender = model, recommender
        self._version = version("tritonrank")

    def collect(self) -> Iterator[Metric]:
        yield InfoMetricFamily(
            NAME.rstrip("_"),
            "The release that serves, and the artifact of its ranker",
            value={"version": self._version, "artifact": self._model.artifact},
        )
        created = GaugeMetricFamily(
            f"{NAME}artifact_created_seconds", "When an artifact was made, unix seconds", labels=("part", "artifact")
        )
        for part, artifact, seconds in self._made():
            if seconds:
                created.add_metric((part, artifact), seconds)
        yield created

    def _made(self) -> Iterator[tuple[str, str, float]]:
        known = self._model.known
        if known is not None:
            yield "ranker", self._model.artifact, unix_seconds(known.parameters.get(CREATED_PARAMETER, ""))
        if self._recommender is not None:
            parts = self._recommender.parts
            for name, folder in (("catalogue", parts.catalogue), ("blend", parts.blend)):
                if folder.opened is not None:
                    yield name, folder.opened.artifact, folder.created


def unix_seconds(moment: str) -> float:
    """Of a moment as manifests have it; 0 where that says nothing."""
    try:
        return datetime.datetime.fromisoformat(moment).timestamp()
    except ValueError:
        return 0.0
