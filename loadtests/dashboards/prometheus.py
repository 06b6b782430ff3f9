"""Prometheus' HTTP API, as far as dashboards ask it. https://prometheus.io/docs/prometheus/latest/querying/api/"""

import json
import math
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ANSWER_SECONDS = 30.0
MOST_BYTES = 64_000_000


class PrometheusError(RuntimeError):
    """It does not answer, or says that a query is wrong."""


@dataclass(frozen=True)
class Found:
    """One series: its labels, and (unix seconds, value) at each step; values that are no number are left out."""

    labels: Mapping[str, str]
    points: Sequence[tuple[float, float]]


class Prometheus:
    """One server.

    Args:
        url: such as http://127.0.0.1:9090.
    """

    def __init__(self, url: str) -> None:
        if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
            raise PrometheusError(f"{url}: expected a URL such as http://127.0.0.1:9090")
        self.url = url.rstrip("/")

    def now(self, query: str, at: float) -> list[Found]:
        """An instant query.

        Raises:
            PrometheusError: as of the class.
        """
        result = self._ask("query", {"query": query, "time": f"{at:.3f}"})["result"]
        return _finite([(one["metric"], [one["value"]]) for one in result])

    def over_time(self, query: str, start: float, end: float, step: float) -> list[Found]:
        """A range query; unix seconds, seconds."""
        window = {"start": f"{start:.3f}", "end": f"{end:.3f}", "step": f"{step:g}"}
        result = self._ask("query_range", {"query": query} | window)["result"]
        return _finite([(one["metric"], one["values"]) for one in result])

    def names(self) -> frozenset[str]:
        """Of all metrics."""
        return frozenset(self._ask("label/__name__/values", {}))

    def label_values(self, metric: str, label: str) -> list[str]:
        """The values of a label of a metric."""
        return [str(one) for one in self._ask(f"label/{label}/values", {"match[]": metric})]

    def scrape_seconds(self) -> float:
        """The longest time between two looks at one of its targets."""
        targets = self._ask("targets", {"state": "active"})["activeTargets"]
        if not targets:
            raise PrometheusError(f"{self.url}: it looks at nothing; name gateway and Triton in its scrape_configs")
        return max(_seconds(one["scrapeInterval"]) for one in targets)

    def _ask(self, what: str, parameters: Mapping[str, str]) -> Any:
        """The ``data`` of an answer."""
        url = f"{self.url}/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=ANSWER_SECONDS) as answer:
                told = json.loads(answer.read(MOST_BYTES))
            return told["data"]
        except urllib.error.HTTPError as error:
            raise PrometheusError(f"{self.url}: {parameters.get('query', what)}: {_reason(error)}") from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise PrometheusError(f"{self.url}: no Prometheus answers there: {error}") from error


def _reason(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.loads(error.read(MOST_BYTES))["error"])
    except (ValueError, KeyError, TypeError):
        return str(error)


def _finite(series: Sequence[tuple[Mapping[str, str], Sequence[tuple[float, str]]]]) -> list[Found]:
    found = []
    for labels, values in series:
        points = [(float(at), float(value)) for at, value in values]
        if finite := [point for point in points if math.isfinite(point[1])]:
            found.append(Found(labels, finite))
    return found


def _seconds(duration: str) -> float:
    """Of Prometheus' durations, such as 1m30s."""
    units = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}
    total, number, unit = 0.0, "", ""
    for letter in f"{duration}0":
        if letter.isdigit() and unit:
            total += float(number) * units[unit]
            number, unit = "", ""
        if letter.isdigit():
            number += letter
        else:
            unit += letter
    return total
