"""What a request costs on its way through Triton: each model's queue, copies and computing, as the server counts them.

Means per request between two looks: Triton counts nanoseconds since it started, so a percentile cannot be had of them.
Of the one process that does every step Triton knows only the whole; the steps are what that process counts itself.
"""

import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import tritonclient.grpc

from loadtests.results import step_counter
from loadtests.server_metrics import read_counters

STEPS = ("tokenize", "queue", "score", "select")
"""Of the one process, in a request's order."""
ANSWER_SECONDS = 10.0
ENSEMBLE = "rank"
PARTS = ("queue", "compute_input", "compute_infer", "compute_output")
"""Waiting, copying in, computing, copying out: the names of Triton's statistics."""

Counts = Mapping[str, Mapping[str, tuple[int, int]]]
"""By model, by part: how often, and nanoseconds altogether."""


@dataclass(frozen=True)
class Look:
    """What a server had counted at one moment.

    Attributes:
        models: Triton's statistics.
        steps: seconds of the one process; empty where each step is a model.
    """

    models: Counts
    steps: Mapping[str, float]


@dataclass(frozen=True)
class Hops:
    """Milliseconds per request.

    Attributes:
        models: by model, by part of its time.
        steps: by step of the one process; empty where each step is a model.
        server: of the whole request within Triton.
        client: mean of what the client waited.
    """

    models: dict[str, dict[str, float]]
    steps: dict[str, float]
    server: float
    client: float

    def summary(self) -> dict[str, Any]:
        """For the record. ``between`` is what passes in the server outside of any model."""
        inside = sum(sum(parts.values()) for parts in self.models.values())
        return {
            "models_ms": self.models,
            "steps_ms": self.steps,
            "between_ms": self.server - inside,
            "client_and_network_ms": self.client - self.server,
            "client_mean_ms": self.client,
        }


def look(url: str, metrics_url: str) -> Look:
    """What the server has counted so far, of every model that has answered.

    Args:
        url: grpc://HOST:PORT of Triton.
        metrics_url: of its page of metrics.
    """
    with urllib.request.urlopen(metrics_url, timeout=ANSWER_SECONDS) as page:
        counters = read_counters(page.read().decode())
    steps = {step: counters[step_counter(step)] for step in STEPS if step_counter(step) in counters}
    with tritonclient.grpc.InferenceServerClient(url.removeprefix("grpc://")) as client:
        statistics = client.get_inference_statistics()
    models = {
        model.name: {
            part: (getattr(model.inference_stats, part).count, getattr(model.inference_stats, part).ns)
            for part in (*PARTS, "success")
        }
        for model in statistics.model_stats
        if model.inference_stats.success.count
    }
    return Look(models, steps)


def hops_between(before: Look, after: Look, client_seconds: float) -> Hops | None:
    """The means of what was done between two looks; None where no request came through the ensemble."""
    requests, nanoseconds = _growth(before.models, after.models, ENSEMBLE, "success")
    if not requests:
        return None
    models = {}
    for model in after.models:
        parts = {part: _growth(before.models, after.models, model, part) for part in PARTS}
        if model != ENSEMBLE and any(count for count, _ in parts.values()):
            models[model] = {part: spent / requests / 1e6 for part, (_, spent) in parts.items()}
    steps = {step: 1000 * (after.steps[step] - before.steps.get(step, 0.0)) / requests for step in after.steps}
    return Hops(models, steps, nanoseconds / requests / 1e6, client_seconds * 1000)


def _growth(before: Counts, after: Counts, model: str, part: str) -> tuple[int, int]:
    count, nanoseconds = after.get(model, {}).get(part, (0, 0))
    earlier_count, earlier_nanoseconds = before.get(model, {}).get(part, (0, 0))
    return count - earlier_count, nanoseconds - earlier_nanoseconds
