"""One measurement with NVIDIA's perf_analyzer, and what its files say.

perf_analyzer is told a number of requests instead of its default, windows that are repeated until three of them agree:
on a few cores they often never do, and then it reports nothing at all. It is started anew for every level, because the
first refused request ends it, and a server that refuses under overload does right. From its profile, which has the
times of every request, come latencies (computed as all others here) and throughput (its CSV counts whole windows, the
wait at the end included: 15/s for 17/s in a run of 4 s). From its CSV files, one for the ensemble and one per composing
model, comes the breakdown; the overhead is in its printed summary only. CSV files and output are kept.

Columns: https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/perf_analyzer/docs/cli.html
"""

import csv
import json
import math
import os
import re
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tritonrank_client import encode_item

from loadtests.results import PerfLevel, PerfModel, Spread, in_order_of_flow
from loadtests.target import Protocol
from loadtests.workload import WorkloadRequest

LAUNCHER = Path(".tools/bin/perf_analyzer")
LONGEST_SECONDS = 600.0
"""Of one level; perf_analyzer itself waits for ever for a server that hangs."""
START_SECONDS = 60.0
REQUEST_SECONDS = 10.0
"""Nor may a level take longer than its start and so long for each request. Once, on a crowded machine, it did not end
over HTTP for a reason of its own, which sixty runs under load did not show again."""
MODEL_COLUMNS = {
    "Server Queue": "queue_us",
    "Server Compute Input": "compute_input_us",
    "Server Compute Infer": "compute_us",
    "Server Compute Output": "compute_output_us",
}
CLIENT_COLUMNS = {
    "Client Send": "client_send_us",
    "Network+Server Send/Recv": "network_us",
    "Client Recv": "client_receive_us",
}
OVERHEAD = re.compile(
    r"^ *(\S+), version: .*?Avg request latency: \d+ usec \(overhead (\d+) usec", re.DOTALL | re.MULTILINE
)
THREAD_ERROR = "had error: "


class PerfAnalyzerError(RuntimeError):
    """perf_analyzer cannot be run, or what it wrote cannot be read; the message names the file."""


@dataclass(frozen=True)
class Level:
    """One load to measure: so many requests in flight, or so many arriving per second (Poisson)."""

    mode: Literal["concurrency", "rate"]
    value: float

    @property
    def name(self) -> str:
        """For files and phases: concurrency-4, rate-7.5."""
        return f"{self.mode}-{self.value:g}"


@dataclass(frozen=True)
class Measured:
    """What came of a level: the figures, and of every answered request its times and its number of candidates."""

    level: PerfLevel
    times: list[tuple[float, float]]
    """(sent, answered) in seconds since the first was sent"""
    candidates: int
    artifact: str


def measure(
    level: Level,
    requests: Sequence[WorkloadRequest],
    *,
    url: str,
    protocol: Protocol,
    folder: Path,
    launcher: Path = LAUNCHER,
    model: str = "rank",
    longest_seconds: float | None = None,
) -> Measured:
    """Send the requests once, in order, and read what perf_analyzer found.

    A server that refuses or fails requests gives a level without figures, whose ``failed`` says why.

    Args:
        level: the load.
        requests: each with a history, because perf_analyzer cannot send a tensor without elements; as many as the
            level's value at least, because it wants that.
        url: grpc:// or http:// with host and port.
        protocol: of the url.
        folder: gets input, CSV files, output of perf_analyzer; all named for the level.
        launcher: what ``make tools`` wrote.
        model: the ensemble.
        longest_seconds: after this the level has failed; the default follows from the number of requests.

    Raises:
        PerfAnalyzerError: the launcher is missing or does not run, or its files cannot be read.
    """
    if not launcher.is_file():
        raise PerfAnalyzerError(f"{launcher}: there is no perf_analyzer. Fetch it: make tools")
    folder.mkdir(parents=True, exist_ok=True)
    for left_over in (*folder.glob(f"{level.name}.*"), *folder.glob(f"*_v*.{level.name}.csv")):
        left_over.unlink()  # figures of an earlier run must not pass for those of one that failed
    rows = folder / f"{level.name}.input.json"
    rows.write_text(json.dumps(input_data(requests), ensure_ascii=False), encoding="utf-8")
    command = _command(level, launcher.resolve(), len(requests), url, protocol, model)
    if longest_seconds is None:
        longest_seconds = min(LONGEST_SECONDS, START_SECONDS + REQUEST_SECONDS * len(requests))
    try:
        # In the folder, because composing models go to files whose names begin with theirs: a path would not do.
        output, code = _run(command, folder, longest_seconds)
    except OSError as error:
        raise PerfAnalyzerError(f"{launcher}: does not run: {error.strerror}. Fetch it again: make tools") from None
    (folder / f"{level.name}.txt").write_text(output, encoding="utf-8")
    rows.unlink()
    if code != 0:
        return Measured(PerfLevel(mode=level.mode, value=level.value, failed=_reason(output, code)), [], 0, "")
    profile = folder / f"{level.name}.json"
    try:
        return _read(level, folder, profile, output, model)
    finally:
        profile.unlink(missing_ok=True)  # it repeats every text that was sent


def _run(command: Sequence[str], folder: Path, longest_seconds: float) -> tuple[str, int | None]:
    """Output and exit code; None where it did not end, and was killed with all that it had started.

    Raises:
        OSError: it cannot be executed.
    """
    with subprocess.Popen(
        command,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=longest_seconds)
        except BaseException as error:  # Ctrl-C too: its session is its own
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            return f"{output}\nno end after {longest_seconds:g} s: killed\n", None
        return output, process.returncode


def wire_text(text: str) -> str:
    """A text as an element of items or history, as the client sends it."""
    return encode_item(text).decode("utf-8")


def input_data(requests: Sequence[WorkloadRequest]) -> dict[str, Any]:
    """perf_analyzer's JSON: one entry per request, each tensor with its shape; the tensors that our client sends."""

    def tensor(values: Sequence[object]) -> dict[str, list[object]]:
        return {"content": list(values), "shape": [len(values)]}

    return {
        "data": [
            {
                "query": tensor([request.query]),
                "history": tensor([wire_text(text) for text in request.history]),
                "items": tensor([wire_text(text) for text in request.items]),
                "item_ids": tensor(request.item_ids),
                "top_k": tensor([0]),
            }
            for request in requests
        ]
    }


def sendable(requests: Sequence[WorkloadRequest]) -> list[WorkloadRequest]:
    """Those that perf_analyzer can send: it refuses a tensor without elements, so users without a history drop out."""
    return [request for request in requests if request.history]


def read_row(path: Path) -> dict[str, float]:
    """The one row of figures in a CSV file of perf_analyzer, by column.

    Raises:
        PerfAnalyzerError: no such file, not one row, or a figure that is no number.
    """
    try:
        rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise PerfAnalyzerError(f"{path}: cannot be read: {error}") from None
    if len(rows) != 1:
        raise PerfAnalyzerError(f"{path}: {len(rows)} rows; expected one, as one level was measured")
    figures = {}
    for column, value in rows[0].items():
        try:
            figures[column] = float(value)
        except (TypeError, ValueError):
            raise PerfAnalyzerError(f"{path}: column {column!r}: {value!r} is not a number") from None
        if not math.isfinite(figures[column]):
            raise PerfAnalyzerError(f"{path}: column {column!r}: {value!r} is not a figure")
    return figures


def _command(level: Level, launcher: Path, requests: int, url: str, protocol: Protocol, model: str) -> list[str]:
    load = {
        "concurrency": ["--concurrency-range", f"{level.value:g}", "--sync"],
        # Asynchronous: a thread that waits for its answer could not send the next request when that is due.
        "rate": ["--request-rate-range", f"{level.value:g}", "--request-distribution", "poisson", "--async"],
    }[level.mode]
    return [
        *(str(launcher), "-m", model, "-i", protocol, "-u", url.split("://")[-1]),
        *("--input-data", f"{level.name}.input.json", "--request-count", str(requests), *load),
        *("--percentile", "99", "-f", f"{level.name}.csv", "--verbose-csv"),
        *("--profile-export-file", f"{level.name}.json"),
    ]


def _read(level: Level, folder: Path, profile: Path, output: str, model: str) -> Measured:
    times, candidates, artifact = _read_profile(profile)
    row = read_row(folder / f"{level.name}.csv")
    overheads = {name: float(value) for name, value in OVERHEAD.findall(output)}
    models = [_model(model, folder / f"{level.name}.csv", None)]
    files = folder.glob(f"*_v*.{level.name}.csv")
    composing = {path.name.removesuffix(f".{level.name}.csv").rpartition("_v")[0]: path for path in files}
    models += [_model(name, composing[name], overheads.get(name)) for name in in_order_of_flow(composing)]
    seconds = max(end for _, end in times) - min(start for start, _ in times)
    figures = PerfLevel(
        mode=level.mode,
        value=level.value,
        requests=len(times),
        seconds=round(seconds, 6),
        answered_per_second=round(len(times) / seconds, 3),
        latency=Spread.of([1_000 * (end - start) for start, end in times]),
        models=models,
        **{field: _column(row, column, folder / f"{level.name}.csv") for column, field in CLIENT_COLUMNS.items()},
    )
    return Measured(figures, times, candidates, artifact)


def _model(name: str, path: Path, overhead_us: float | None) -> PerfModel:
    row = read_row(path)
    figures = {field: _column(row, column, path) for column, field in MODEL_COLUMNS.items()}
    return PerfModel(model=name, overhead_us=overhead_us, **figures)


def _column(row: dict[str, float], column: str, path: Path) -> float:
    if column not in row:
        raise PerfAnalyzerError(f"{path}: no column {column!r}; there are {', '.join(row)}")
    return row[column]


def _read_profile(path: Path) -> tuple[list[tuple[float, float]], int, str]:
    try:
        # Texts are written as they went over the wire, the bytes of their lengths among them: 128 and more is no UTF-8.
        (experiment,) = json.loads(path.read_text(encoding="utf-8", errors="replace"))["experiments"]
        requests = [request for request in experiment["requests"] if request["response_timestamps"]]
        first = min((request["timestamp"] for request in requests), default=0)
        times = [((r["timestamp"] - first) / 1e9, (r["response_timestamps"][0] - first) / 1e9) for r in requests]
        answers = [request["response_outputs"][0] for request in requests]
        # An ensemble that is not ours has no scores; then nothing is said of candidates.
        candidates = sum(len(answer.get("scores", ())) for answer in answers)
        artifact = str(answers[0].get("artifact", "")) if answers else ""
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise PerfAnalyzerError(f"{path}: not a profile of perf_analyzer: {type(error).__name__}: {error}") from None
    if not times:
        raise PerfAnalyzerError(f"{path}: holds no answered request")
    return times, candidates, artifact


def _reason(output: str, code: int | None) -> str:
    """What perf_analyzer said, in one line: what most of its threads met, else its last words."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    if code is None:
        return lines[-1]
    errors = [line.partition(THREAD_ERROR)[2] for line in lines if THREAD_ERROR in line]
    errors = errors or [line for line in lines if line.startswith("Error: ")][:1]  # then comes the whole usage
    told = max(errors, key=errors.count) if errors else next(iter(reversed(lines)), "it said nothing")
    return f"perf_analyzer ended with exit code {code}: {told}"
