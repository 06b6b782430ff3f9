"""What serves: the release, the artifacts of the parts, and when each was made."""

import datetime
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily
from prometheus_client.registry import Collector
from tritonrank_recommend.engine import Recommender

from tritonrank_gateway.metrics import NAME
from tritonrank_gateway.versions.versions import Versions

MANIFEST = "manifest.json"


class AboutMetrics(Collector):
    """Looks whenever the page is read: artifacts are replaced while the gateway serves.

    Args:
        versions: the live one has the ranker, and a golden.json beside the manifest that says when it was assembled.
        recommender: None where there is none.
    """

    def __init__(self, versions: Versions, recommender: Recommender | None) -> None:
        self._versions, self._recommender = versions, recommender
        self._version = version("tritonrank")

    def collect(self) -> Iterator[Metric]:
        yield InfoMetricFamily(
            NAME.rstrip("_"),
            "The release that serves, and the artifact of its ranker",
            value={"version": self._version, "artifact": self._versions.live.model.artifact},
        )
        created = GaugeMetricFamily(
            f"{NAME}artifact_created_seconds", "When an artifact was made, unix seconds", labels=("part", "artifact")
        )
        for part, artifact, seconds in self._made():
            if seconds:
                created.add_metric((part, artifact), seconds)
        yield created

    def _made(self) -> Iterator[tuple[str, str, float]]:
        live = self._versions.live
        if live.version.golden is not None:
            assembled = _read(Path(live.version.golden).with_name(MANIFEST))
            if assembled.metrics.get("artifact") == live.model.artifact:  # while one follows another they differ
                yield "ranker", live.model.artifact, _unix_seconds(assembled.created)
        if self._recommender is not None:
            parts = self._recommender.parts
            for name, folder in (("catalogue", parts.catalogue), ("blend", parts.blend)):
                if folder.opened is not None:
                    yield name, folder.opened.artifact, folder.created


class _Manifest(msgspec.Struct):
    created: str = ""
    metrics: dict[str, Any] = {}


def _read(path: Path) -> _Manifest:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Manifest)
    except (OSError, msgspec.DecodeError):
        return _Manifest()


def _unix_seconds(moment: str) -> float:
    """Of a moment as manifests have it; 0 where that says nothing."""
    try:
        return datetime.datetime.fromisoformat(moment).timestamp()
    except ValueError:
        return 0.0
