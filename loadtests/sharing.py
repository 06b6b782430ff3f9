"""``python -m loadtests sharing``: what a request costs whose candidates share their user, and what pairs would cost.

One network, computed in two ways: its two graphs, which read the shared row (a decoder's prefix, a shared-context
ranker's context) once per request; and the same network over whole rows, one for each pair of shared row and candidate,
as rerank servers compute a list. Both are FP32 graphs in ONNX Runtime on the same threads, both cut their work by
length, and their scores are compared. All ways take turns on the same request, so that whatever else the machine does
meets all of them; the median of the ratios of single requests is what remains.

A request with K candidates of C tokens behind P shared ones has P + KC tokens where pairs have K(P + C): that is all
there is to gain, and the table says how much of it arrives.
"""

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from tritonrank.artifacts import read_manifest
from tritonrank.artifacts.workspace import Workspace
from tritonrank.data.dataset import Dataset
from tritonrank.data.requests import requests_of
from tritonrank.errors import ArtifactError, TritonRankError
from tritonrank.rankers.cost import gflop_of
from tritonrank.rankers.scorers import Request, RequestTensors, Scores, tensors_of
from tritonrank_runtime.architecture import ROWS_PER_BATCH, EngineOptions
from tritonrank_runtime.cores import available_cores
from tritonrank_runtime.engine import Graph
from tritonrank_runtime.engines import engine_of, model_files
from tritonrank_runtime.length_groups import candidate_lengths
from tritonrank_runtime.sessions import open_session
from tritonrank_runtime.split_engine import SplitNames
from tritonrank_runtime.text import RequestTokenizer
from tritonrank_runtime.threads import Threads

from loadtests.console import fail, fail_plainly
from loadtests.machine import describe_machine
from loadtests.results import RunFileError, write_whole

PAIRS = "pair by pair"
COMPUTED, CACHED = "shared", "shared, user known"
INT8_COMPUTED, INT8_CACHED = "shared, INT8", "shared, INT8, user known"
CACHE_BYTES = 1_000_000_000
TOLERANCE = 1e-4
"""Between scores of FP32 graphs, as far as they are in the thousands; of larger ones the same share."""
REQUESTS = 5
LEAST_GAIN = 4.0

Way = Callable[[RequestTensors], Scores]


@dataclass(frozen=True)
class Timing:
    """One way at one number of candidates."""

    way: str
    candidates: int
    gflop: float
    """per request, on average; of a known user without what is kept"""
    p50_ms: float
    milliseconds: list[float]
    """of single requests"""
    gain: float | None
    """median over requests of the milliseconds pair by pair, by those of this way; None of the pairs themselves"""
    gain_low: float | None
    gain_high: float | None
    """quartiles over the requests"""


@dataclass(frozen=True)
class Geometry:
    """The mean lengths behind a gain."""

    candidates: int
    shared_tokens: float
    candidate_tokens: float
    most: float
    """K(P + C) / (P + KC), which counts tokens alone"""


def sharing(
    artifacts: Annotated[Path, typer.Argument(help="artifacts/<recipe> of a decoder or a shared-context ranker")],
    candidates: Annotated[str, typer.Option(help="numbers of candidates, with commas between")] = "10,100",
    requests: Annotated[int, typer.Option(min=1, help="test users to time, each with all ways")] = REQUESTS,
    least: Annotated[
        float, typer.Option(min=0, help="Exit with 1 when the gain at the most candidates is below this")
    ] = LEAST_GAIN,
    out: Annotated[Path | None, typer.Option(help="Write the figures and the machine as JSON")] = None,
) -> None:
    """Time one network with its user shared among candidates, new or known, against the same network pair by pair."""
    here = describe_machine()
    workspace = Workspace(artifacts)
    try:
        sizes = sorted(_numbers(candidates))
        with TemporaryDirectory(prefix="tritonrank-sharing-") as scratch:
            ranker = _Ranker.opened(workspace, Path(scratch))
            timings, geometry, difference = measure(ranker, _requests(workspace, ranker, sizes, requests))
    except TritonRankError as error:
        fail(str(error))
    _show(timings, geometry, difference)
    gain = next(one.gain for one in reversed(timings) if one.way == COMPUTED and one.gain is not None)
    told = {"passed": gain >= least, "gain": round(gain, 2), "least": least, "candidates": sizes[-1]}
    if out is not None:
        record: dict[str, Any] = {
            "what": f"python -m loadtests sharing {artifacts} --candidates {candidates} --requests {requests}",
            "artifact": ranker.artifact,
            "network": ranker.network,
            "threads": available_cores(),
            "geometry": [asdict(one) for one in geometry],
            "timings": [_rounded(asdict(one)) for one in timings],
            "largest difference of scores": difference,
            "machine": here.model_dump(mode="json"),
        }
        try:
            write_whole(out, json.dumps(record | told, indent=1) + "\n")
        except RunFileError as error:
            fail_plainly(str(error))
    print(json.dumps(told))
    raise typer.Exit(0 if told["passed"] else 1)


@dataclass(frozen=True)
class _Ranker:
    """A built ranker, and the ways to compute it."""

    artifact: str
    config: Any
    names: SplitNames
    tokenizer: RequestTokenizer
    ways: Mapping[str, Way]

    @property
    def network(self) -> dict[str, Any]:
        """What of it decides what it costs."""
        wanted = ("model_type", "num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads",
                  "intermediate_size", "vocab_size")  # fmt: skip
        return {name: getattr(self.config, name) for name in wanted if hasattr(self.config, name)}

    @classmethod
    def opened(cls, workspace: Workspace, scratch: Path) -> "_Ranker":
        """
        Raises:
            ArtifactError: there are no FP32 graphs, or those of a ranker that shares nothing.
        """
        from tritonrank.graphs.batched import export_batched_graph
        from tritonrank.rankers.architectures import split_architecture_of
        from tritonrank.rankers.pretrained import load_any_ranker

        manifest = read_manifest(workspace.onnx)
        network = load_any_ranker(_checkpoint(workspace, manifest.parents.values()))
        names = split_architecture_of(network.config).split_names
        export_batched_graph(network, scratch)
        pairs = _Pairs(names, open_session(next(iter(model_files(scratch)))))
        ways: dict[str, Way] = {PAIRS: pairs.score} | _shared_ways(workspace.onnx, COMPUTED, CACHED)
        if workspace.int8.is_dir():
            ways |= _shared_ways(workspace.int8, INT8_COMPUTED, INT8_CACHED)
        tokenizer = RequestTokenizer.from_folder(workspace.onnx)
        return cls(manifest.artifact, network.config, names, tokenizer, ways)


class _Pairs:
    """The network over whole rows, some to a run, on all cores: rows of similar length together, the longest first."""

    def __init__(self, names: SplitNames, graph: Graph) -> None:
        self._names = names
        self._graph = graph
        self._threads = Threads(available_cores())

    def score(self, request: RequestTensors) -> Scores:
        rows = request[self._names.rows]
        lengths = candidate_lengths(rows)
        order = np.argsort(-lengths, kind="stable")
        logits = np.zeros(len(rows), dtype=np.float32)

        def run(places: Any) -> None:
            pairs = rows[places][:, np.newaxis, : lengths[places].max()]
            shared = np.repeat(request[self._names.shared][np.newaxis], len(places), axis=0)
            (found,) = self._graph.run(["logits"], {self._names.shared: shared, self._names.rows: pairs})
            logits[places] = found[:, 0]

        parts = [order[first : first + ROWS_PER_BATCH] for first in range(0, len(order), ROWS_PER_BATCH)]
        if len(parts) < available_cores():
            parts = [part for part in np.array_split(order, available_cores()) if len(part)]
        self._threads.run([partial(run, part) for part in parts], 0)
        return logits


def measure(
    ranker: _Ranker, lists: Mapping[int, Sequence[RequestTensors]]
) -> tuple[list[Timing], list[Geometry], float]:
    """Time all ways on the same requests, by turns.

    Args:
        ranker: whose ways.
        lists: requests by their number of candidates, each of another user.

    Returns:
        The timings by candidates and way; the lengths; the largest difference between the scores of pairs and shared.

    Raises:
        ArtifactError: the scores of the pairs are others.
    """
    timings, geometry, difference = [], [], 0.0
    for size, requests in lists.items():
        taken: dict[str, list[float]] = {name: [] for name in ranker.ways}
        _timed(ranker, requests[0], [*ranker.ways])  # memory is claimed, kernels are chosen
        for turn, request in enumerate(track(requests, f"  {size} candidates", transient=True)):
            names = [*ranker.ways]
            first = turn % len(names)
            found = _timed(ranker, request, names[first:] + names[:first])
            for name, (seconds, _) in found.items():
                taken[name].append(1e3 * seconds)
            difference = max(difference, _difference(found[PAIRS][1], found[COMPUTED][1]))
        lengths = [_lengths(ranker, request) for request in requests]
        shared, own = (float(np.mean(one)) for one in zip(*lengths, strict=True))
        geometry.append(Geometry(size, shared, own, size * (shared + own) / (shared + size * own)))
        gflop = _gflop(ranker, requests)
        timings += [_timing(name, size, gflop[name], taken[name], taken[PAIRS]) for name in ranker.ways]
    return timings, geometry, difference


def _timed(ranker: _Ranker, request: RequestTensors, names: Sequence[str]) -> dict[str, tuple[float, Scores]]:
    """Seconds and scores by way; a user who is to be known is asked for once before."""
    found = {}
    for name in names:
        score = ranker.ways[name]
        if name in (CACHED, INT8_CACHED):
            score(request | {ranker.names.rows: request[ranker.names.rows][:1]})
        started = time.perf_counter()
        scores = score(request)
        found[name] = time.perf_counter() - started, scores
    return found


def _difference(pairs: Scores, shared: Scores) -> float:
    """Between the scores of the two ways, as a share of those that are above 1.

    Raises:
        ArtifactError: above what FP32 explains; or all candidates have one score, which would always agree.
    """
    if len(pairs) > 1 and not np.ptp(pairs):
        raise ArtifactError("pair by pair all candidates have the same score, so that it says nothing to compare them")
    largest = float(np.max(np.abs(pairs - shared) / np.maximum(1.0, np.abs(pairs))))
    if not largest <= TOLERANCE:
        raise ArtifactError(
            f"pair by pair the scores differ by {largest:.1e} from the shared ones, more than {TOLERANCE:.0e}: "
            "times of two ways that compute different things say nothing"
        )
    return largest


def _timing(name: str, size: int, gflop: float, taken: list[float], pairs: list[float]) -> Timing:
    p50 = statistics.median(taken)
    if name == PAIRS:
        return Timing(name, size, gflop, p50, taken, None, None, None)
    gains = [of_pairs / own for of_pairs, own in zip(pairs, taken, strict=True)]
    low, middle, high = (float(one) for one in np.quantile(gains, (0.25, 0.5, 0.75)))
    return Timing(name, size, gflop, p50, taken, middle, low, high)


def _gflop(ranker: _Ranker, requests: Sequence[RequestTensors]) -> dict[str, float]:
    """Per request, by way."""
    names = ranker.names
    shared = gflop_of(ranker.config, requests)
    known = shared - gflop_of(ranker.config, [request | {names.rows: request[names.rows][:0]} for request in requests])
    pairs = sum(
        gflop_of(ranker.config, [request | {names.rows: request[names.rows][place : place + 1]}])
        for request in requests
        for place in range(len(request[names.rows]))
    ) / len(requests)
    by_way = {PAIRS: pairs, COMPUTED: shared, CACHED: known, INT8_COMPUTED: shared, INT8_CACHED: known}
    return {name: by_way[name] for name in ranker.ways}


def _lengths(ranker: _Ranker, request: RequestTensors) -> tuple[float, float]:
    """Tokens of the shared row, and of a candidate on average."""
    rows = request[ranker.names.rows]
    return float(request[ranker.names.shared].size), float(candidate_lengths(rows).mean())


def _shared_ways(folder: Path, computed: str, cached: str) -> dict[str, Way]:
    """Both around the same graphs: an engine that keeps no user, and one that keeps them."""
    graphs = {path.name: open_session(path) for path in model_files(folder)}

    def way(cache_bytes: int) -> Way:
        engine = engine_of(graphs, EngineOptions(context_cache_bytes=cache_bytes))
        return lambda request: engine.run([request])[0]

    return {computed: way(0), cached: way(CACHE_BYTES)}


def _checkpoint(workspace: Workspace, parents: Any) -> Path:
    """What the graphs were exported from.

    Raises:
        ArtifactError: it is not there any more.
    """
    wanted = {*parents}
    for folder in (workspace.student, workspace.pruned, workspace.teacher):
        if folder.is_dir() and read_manifest(folder).artifact in wanted:
            return folder
    raise ArtifactError(
        f"{workspace.onnx}: the checkpoint that it was made of is not in {workspace.root}; "
        "build the recipe again: tritonrank build RECIPE"
    )


def _requests(
    workspace: Workspace, ranker: _Ranker, sizes: Sequence[int], count: int
) -> dict[int, list[RequestTensors]]:
    """Test users' requests, cut to each number of candidates.

    Raises:
        ArtifactError: they have fewer.
    """
    dataset = Dataset.read(workspace.dataset)
    found = requests_of(dataset, dataset.test[:count], ranker.tokenizer.rules)
    if (most := min((len(one.items) for one in found), default=0)) < sizes[-1]:
        raise ArtifactError(
            f"{workspace.dataset}: its test users have {most} candidates each; lower --candidates, or raise "
            "examples.judged_negatives and build again"
        )
    return {
        size: [tensors_of(Request(one.query, one.history, one.items[:size]), ranker.tokenizer) for one in found]
        for size in sizes
    }


def _numbers(text: str) -> set[int]:
    """
    Raises:
        ArtifactError: not numbers.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) for part in parts):
        raise ArtifactError(f"--candidates {text}: expected numbers above 0 with commas between, such as 10,100")
    return {int(part) for part in parts}


def _rounded(one: dict[str, Any]) -> dict[str, Any]:
    return one | {"milliseconds": [round(value, 2) for value in one["milliseconds"]]}


def _show(timings: Sequence[Timing], geometry: Sequence[Geometry], difference: float) -> None:
    console = Console()
    table = Table("candidates", "", "GFLOP", "p50 ms", "times fewer ms than pair by pair (quartiles)")
    for one in timings:
        gain = "" if one.gain is None else f"{one.gain:.1f} ({one.gain_low:.1f} to {one.gain_high:.1f})"
        table.add_row(str(one.candidates), one.way, f"{one.gflop:.1f}", f"{one.p50_ms:.1f}", gain)
    console.print(table)
    for place in geometry:
        console.print(
            f"{place.candidates} candidates of {place.candidate_tokens:.1f} tokens behind {place.shared_tokens:.1f} "
            f"shared ones: K(P + C) / (P + KC) is {place.most:.1f}",
            highlight=False,
        )
    console.print(f"largest difference of scores between the two ways: {difference:.1e}", highlight=False)
