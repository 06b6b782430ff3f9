"""What a request costs on its way through Triton: each model's queue, copies and computing, as the server counts them.

Means per request between two looks: Triton counts nanoseconds since it started, so a percentile cannot be had of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import tritonclient.grpc

ENSEMBLE = "rank"
PARTS = ("queue", "compute_input", "compute_infer", "compute_output")
"""Waiting, copying in, computing, copying out: the names of Triton's statistics."""

Counts = Mapping[str, Mapping[str, tuple[int, int]]]
"""By model, by part: how often, and nanoseconds altogether."""


@dataclass(frozen=True)
class Hops:
    """Milliseconds per request.

    Attributes:
        models: by model, by part of its time.
        server: of the whole request within Triton.
        client: mean of what the client waited.
    """

    models: dict[str, dict[str, float]]
    server: float
    client: float

    def summary(self) -> dict[str, Any]:
        """For the record. ``between`` is what passes in the server outside of any model."""
        inside = sum(sum(parts.values()) for parts in self.models.values())
        return {
            "models_ms": self.models,
            "between_ms": self.server - inside,
            "client_and_network_ms": self.client - self.server,
            "client_mean_ms": self.client,
        }


def read_counts(url: str) -> Counts:
    """What the server has counted so far, of every model that has answered."""
    with tritonclient.grpc.InferenceServerClient(url.removeprefix("grpc://")) as client:
        statistics = client.get_inference_statistics()
    return {
        model.name: {
            part: (getattr(model.inference_stats, part).count, getattr(model.inference_stats, part).ns)
            for part in (*PARTS, "success")
        }
        for model in statistics.model_stats
        if model.inference_stats.success.count
    }


def hops_between(before: Counts, after: Counts, client_seconds: float) -> Hops | None:
    """The means of what was done between two looks; None where no request came through the ensemble."""
    requests, nanoseconds = _growth(before, after, ENSEMBLE, "success")
    if not requests:
        return None
    models = {}
    for model in after:
        parts = {part: _growth(before, after, model, part) for part in PARTS}
        if model != ENSEMBLE and any(count for count, _ in parts.values()):
            models[model] = {part: spent / requests / 1e6 for part, (_, spent) in parts.items()}
    if not models:  # no ensemble: one process does it all, and its own parts are the hops
        models[ENSEMBLE] = {part: _growth(before, after, ENSEMBLE, part)[1] / requests / 1e6 for part in PARTS}
    return Hops(models, nanoseconds / requests / 1e6, client_seconds * 1000)


def _growth(before: Counts, after: Counts, model: str, part: str) -> tuple[int, int]:
    count, nanoseconds = after.get(model, {}).get(part, (0, 0))
    earlier_count, earlier_nanoseconds = before.get(model, {}).get(part, (0, 0))
    return count - earlier_count, nanoseconds - earlier_nanoseconds
