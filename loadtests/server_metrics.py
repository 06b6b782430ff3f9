"""What the server does during a run, looked at from outside every second.

Three sources: Triton's statistics (``/v2/models/stats``: executions, queue and compute time, batch sizes, per composing
model), its metrics page (Prometheus text: kept contexts, tokens, refusals) and the operating system (CPU time and
memory of tritonserver and of the Python stubs that it started). All of them count up from the server's start, so a
sample is the growth since the last answer of that source. Looking must not break what is looked at, nor the run: a
source that is dead, slow or talks nonsense leaves its part of the sample empty, its growth comes with the next answer,
and what went wrong is kept for the report.
"""

import http.client
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

import psutil
from prometheus_client.parser import text_string_to_metric_families

from loadtests.results import ModelSecond, ServerSecond
from loadtests.target import LiveServer

INTERVAL_SECONDS = 1.0
ANSWER_SECONDS = 2.0
STOP_SECONDS = 4 * ANSWER_SECONDS
MOST_BYTES = 16_000_000
OWN_COUNTERS = "tritonrank_"
"""Our models' counters begin so; Triton's own are in the statistics, with more detail."""
CACHE_HITS = "tritonrank_context_cache_hits_total"
CACHE_MISSES = "tritonrank_context_cache_misses_total"

NONSENSE = (ValueError, KeyError, TypeError, AttributeError)
"""What reading a page that is not Triton's comes to."""

Read = TypeVar("Read")


@dataclass(frozen=True)
class _Sample:
    """What one look at the server showed; None: that source did not answer, or there is nothing to compare with."""

    at: float
    """time.monotonic()"""
    interval_seconds: float
    models: list[ModelSecond] | None
    counters: dict[str, float] | None
    cpu_seconds: float | None
    rss_bytes: int | None


class ServerSampler:
    """Samples a server in a thread of its own; a context manager.

    Args:
        server: where it is reached; sources whose address is empty are left out.
        model: the ensemble; it and its composing models are told of.
        interval_seconds: between samples.
        answer_seconds: after which a page is given up: the next sample is more worth than this one.
    """

    def __init__(
        self,
        server: LiveServer,
        *,
        model: str = "rank",
        interval_seconds: float = INTERVAL_SECONDS,
        answer_seconds: float = ANSWER_SECONDS,
    ) -> None:
        self.faults: list[str] = []
        """what each source said when it failed, each message once"""
        self._server = server
        self._model = model
        self._interval_seconds = interval_seconds
        self._answer_seconds = answer_seconds
        self._models: list[str] | None = None
        self._samples: list[_Sample] = []
        self._statistics: dict[str, dict[str, Any]] | None = None
        self._counters: dict[str, float] | None = None
        self._cpu: dict[tuple[int, float], float] | None = None
        self._looked_at = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="server sampler", daemon=True)

    def start(self) -> Self:
        """Take the first look, which later ones are compared with, and go on in the background."""
        self.look()
        self._samples.clear()
        self._thread.start()
        return self

    def stop(self) -> None:
        """Take a last look and end. May be called again."""
        if self._ended.is_set():
            return
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(STOP_SECONDS)
        if not self._thread.is_alive():  # else a page trickles in, and nobody waits for that
            self.look()

    def seconds(self, origin: float) -> list[ServerSecond]:
        """The samples so far.

        Args:
            origin: time.monotonic() of the moment that is second 0 of the run.
        """
        return [_as_record(sample, origin) for sample in list(self._samples)]

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _run(self) -> None:
        due = time.monotonic()
        while True:
            due += self._interval_seconds
            if self._ended.wait(max(0.0, due - time.monotonic())):
                return
            self.look()
            due = max(due, time.monotonic() - self._interval_seconds)  # after a slow look do not catch up in a burst

    def look(self) -> None:
        """Take a sample now."""
        statistics = self._try(self._read_statistics)
        counters = self._try(self._read_counters)
        usage = self._try(self._read_usage)
        now = time.monotonic()
        models = growth = cpu_seconds = None
        if statistics is not None:
            if self._statistics is not None:
                models = [model_growth(name, self._statistics.get(name), statistics[name]) for name in statistics]
            self._statistics = statistics
        if counters is not None:
            if self._counters is not None:
                growth = {name: _growth(self._counters.get(name, 0.0), value) for name, value in counters.items()}
            self._counters = counters
        if usage is not None:
            cpu, _ = usage
            if self._cpu is not None:
                # Of a process that was not there before, all its time is new.
                cpu_seconds = sum(max(0.0, used - self._cpu.get(process, 0.0)) for process, used in cpu.items())
            self._cpu = cpu
        self._samples.append(
            _Sample(
                at=now,
                interval_seconds=now - self._looked_at if self._looked_at else 0.0,
                models=models,
                counters=growth,
                cpu_seconds=cpu_seconds,
                rss_bytes=usage[1] if usage is not None else None,
            )
        )
        self._looked_at = now

    def _try(self, read: Callable[[], Read | None]) -> Read | None:
        try:
            return read()
        except (OSError, http.client.HTTPException, psutil.Error, *NONSENSE) as error:
            fault = f"{read.__name__.removeprefix('_read_')}: {type(error).__name__}: {error}"
            if fault not in self.faults:
                self.faults.append(fault)
            return None

    def _read_statistics(self) -> dict[str, dict[str, Any]] | None:
        if not self._server.http_url:
            return None
        page = json.loads(fetch(f"{self._server.http_url}/v2/models/stats", self._answer_seconds))
        found = {str(one["name"]): one for one in page["model_stats"]}
        for name, entry in found.items():
            model_growth(name, None, entry)  # figures that cannot be read are found here, and not at the next look
        if self._models is None:
            self._models = composing_models(self._server.http_url, self._model)
        return {name: found[name] for name in self._models if name in found}

    def _read_counters(self) -> dict[str, float] | None:
        if not self._server.metrics_url:
            return None
        return read_counters(fetch(self._server.metrics_url, self._answer_seconds).decode(), self._models)

    def _read_usage(self) -> tuple[dict[tuple[int, float], float], int] | None:
        if self._server.pid is None:
            return None
        root = psutil.Process(self._server.pid)
        cpu: dict[tuple[int, float], float] = {}
        resident = 0
        for process in [root, *root.children(recursive=True)]:
            try:
                times, memory = process.cpu_times(), process.memory_info()
            except psutil.NoSuchProcess:  # ended while we look
                continue
            cpu[process.pid, process.create_time()] = times.user + times.system
            resident += memory.rss
        return cpu, resident


def composing_models(http_url: str, model: str) -> list[str]:
    """The ensemble and its steps in order; the model alone if it is no ensemble.

    Raises:
        OSError, ValueError, KeyError: no answer, or not one of Triton's.
    """
    config = json.loads(fetch(f"{http_url}/v2/models/{model}/config"))
    steps = config.get("ensemble_scheduling", {}).get("step", [])
    return [model, *(str(step["model_name"]) for step in steps)]


def served_settings(http_url: str, model: str = "rank") -> dict[str, str]:
    """What the composing models' configurations say of instances, batching and our own parameters.

    Returns:
        "score.instances", "score.max_batch_size", "tokenize.queue_requests" and so on; nothing if the server does not
        say: results without settings are better than none.
    """
    settings: dict[str, str] = {}
    try:
        for name in composing_models(http_url, model)[1:]:
            settings |= _settings_of(name, json.loads(fetch(f"{http_url}/v2/models/{name}/config")))
    except (OSError, *NONSENSE):
        return {}
    return settings


def read_counters(page: str, models: Sequence[str] | None = None) -> dict[str, float]:
    """Our own counters of a metrics page by name, their instances summed.

    Args:
        page: Prometheus text.
        models: only counters of these models; None takes all.

    Raises:
        ValueError: not such a page.
    """
    counters: dict[str, float] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples if family.type == "counter" else ():
            is_ours = sample.name.startswith(OWN_COUNTERS)
            if is_ours and (models is None or sample.labels.get("model") in models):
                counters[sample.name] = counters.get(sample.name, 0.0) + sample.value
    return counters


def model_growth(name: str, before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> ModelSecond:
    """What one model did between two entries of Triton's statistics; without an entry before: since its start."""
    if before is not None and _count(now, "success") + _count(now, "fail") < _count(before, "success"):
        before = None  # the server was started again in between
    earlier = before or {}
    batches = _growing(_batches(earlier), _batches(now))
    return ModelSecond(
        model=name,
        requests=_between(earlier, now, "success", "count"),
        failures=_between(earlier, now, "fail", "count"),
        executions=int(now.get("execution_count", 0)) - int(earlier.get("execution_count", 0)),
        inferences=int(now.get("inference_count", 0)) - int(earlier.get("inference_count", 0)),
        duration_us=_between(earlier, now, "success", "ns") / 1_000,
        queue_us=_between(earlier, now, "queue", "ns") / 1_000,
        compute_input_us=_between(earlier, now, "compute_input", "ns") / 1_000,
        compute_us=_between(earlier, now, "compute_infer", "ns") / 1_000,
        compute_output_us=_between(earlier, now, "compute_output", "ns") / 1_000,
        batch_sizes={size: count for size, count in sorted(batches.items()) if count},
    )


def fetch(url: str, timeout_seconds: float = ANSWER_SECONDS) -> bytes:
    """GET, directly: never through a proxy that the environment names.

    Raises:
        OSError: no connection, no answer in time, another status than 200, or more than MOST_BYTES.
    """
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.netloc, timeout=timeout_seconds)
    try:
        connection.request("GET", address.path)
        response = connection.getresponse()
        body = response.read(MOST_BYTES + 1)
    except http.client.HTTPException as error:
        raise OSError(f"{url}: not an answer in HTTP ({type(error).__name__})") from error
    finally:
        connection.close()
    if response.status != http.client.OK:
        raise OSError(f"{url}: HTTP {response.status}")
    if len(body) > MOST_BYTES:
        raise OSError(f"{url}: more than {MOST_BYTES} bytes")
    return body


def _settings_of(name: str, config: Mapping[str, Any]) -> dict[str, str]:
    settings = {f"{name}.instances": str(sum(int(group.get("count", 1)) for group in config["instance_group"]))}
    if config.get("max_batch_size"):
        settings[f"{name}.max_batch_size"] = str(config["max_batch_size"])
    if batching := config.get("dynamic_batching"):
        settings[f"{name}.queue_delay_us"] = str(batching.get("max_queue_delay_microseconds", 0))
        if preferred := batching.get("preferred_batch_size"):
            settings[f"{name}.preferred_batch_size"] = ", ".join(map(str, preferred))
    for key, value in sorted(config.get("parameters", {}).items()):
        settings[f"{name}.{key}"] = str(value["string_value"])
    return settings


def _as_record(sample: _Sample, origin: float) -> ServerSecond:
    counters = dict(sample.counters or {})
    return ServerSecond(
        second=round(sample.at - origin, 3),
        interval_seconds=round(sample.interval_seconds, 3),
        models=sample.models or [],
        context_cache_hits=int(counters.pop(CACHE_HITS, 0)),
        context_cache_misses=int(counters.pop(CACHE_MISSES, 0)),
        cpu_seconds=sample.cpu_seconds,
        rss_bytes=sample.rss_bytes,
        counters=counters,
    )


def _growth(before: float, now: float) -> float:
    """Of a counter that has fallen, the server was started again: all of it is new."""
    return now - before if now >= before else now


def _growing(before: Mapping[int, int], now: Mapping[int, int]) -> dict[int, int]:
    return {size: int(_growth(before.get(size, 0), count)) for size, count in now.items()}


def _count(entry: Mapping[str, Any], duration: str) -> int:
    return int(entry.get("inference_stats", {}).get(duration, {}).get("count", 0))


def _between(before: Mapping[str, Any], now: Mapping[str, Any], duration: str, unit: str) -> int:
    values = [int(entry.get("inference_stats", {}).get(duration, {}).get(unit, 0)) for entry in (before, now)]
    return max(0, values[1] - values[0])


def _batches(entry: Mapping[str, Any]) -> dict[int, int]:
    return {int(one["batch_size"]): int(one["compute_infer"]["count"]) for one in entry.get("batch_stats", ())}
