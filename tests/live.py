"""For the tests of a live server: its statistics, a scorer that is kept busy, and requests without our client."""

import re
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import numpy as np
import tritonclient.grpc
import tritonclient.http
import tritonclient.utils
from conftest import Served
from numpy.typing import NDArray
from tritonrank.rankers.scorers import Request
from tritonrank_client import AsyncRankClient, RankClient, RankResult
from tritonrank_runtime.backend import EVERY_SECONDS as TOLD_EVERY_SECONDS

PROTOCOLS = ("http", "grpc")
ENSEMBLES = ("rank", "rank_fp32", "rank_joint", "rank_joint_fp32")
INT8_ENSEMBLES = ("rank", "rank_joint")
STEP_ENSEMBLES = ("rank_steps", "rank_joint_steps")
"""Those with a model for each step."""
TENSOR_CLIENTS: Mapping[str, ModuleType] = {"http": tritonclient.http, "grpc": tritonclient.grpc}
PATIENCE_SECONDS = 30.0

# The batcher keeps requests with deadline and ticket and those without apart; those of an ensemble have both.
NO_DEADLINE = {"deadline": np.full((1, 1), 2**62, dtype=np.int64), "ticket": np.zeros((1, 1), dtype=np.int64)}

LEAK = re.compile(r"Traceback|File \"|\w/\w+/|\w\.py\b|\.onnx|\.cc:\d|node:", re.IGNORECASE)
"""What no answer may hold: Python's frames, paths, names inside a graph."""

Scores = NDArray[np.float32]
Read = TypeVar("Read")


@dataclass(frozen=True)
class Statistics:
    """What Triton counted for one model since it started.

    Its unit is the batch dimension: the rows of a joint ranker, the requests of a shared-context one.
    """

    inferences: int
    executions: int
    batches: Counter[int]
    """batch size -> executions"""
    answered: int
    refused: int
    """requests, each"""

    def __sub__(self, earlier: "Statistics") -> "Statistics":
        batches = self.batches - earlier.batches
        inferences, executions = self.inferences - earlier.inferences, self.executions - earlier.executions
        answered, refused = self.answered - earlier.answered, self.refused - earlier.refused
        return Statistics(inferences, executions, batches, answered, refused)


def is_joint(ensemble: str) -> bool:
    return "joint" in ensemble


def scorer_of(ensemble: str) -> str:
    """The ensemble's model that computes logits."""
    if ensemble in STEP_ENSEMBLES:
        return ensemble.replace("rank", "score").removesuffix("_steps")
    return ensemble.replace("rank", "ranker")


def tokenizer_of(ensemble: str) -> str:
    """The ensemble's model that makes token ids."""
    return scorer_of(ensemble).replace("score", "tokenize")


def runs(served: Served, ensemble: str) -> int:
    """How often the engine of a ``ranker`` has run, when it is done."""
    return int(settled(lambda: metric(served, "tritonrank_runs_total", model=scorer_of(ensemble))))


def settled(read: Callable[[], Read]) -> Read:
    """What the metrics page says when everything that was answered before is on it."""
    time.sleep(3 * TOLD_EVERY_SECONDS)
    return read()


def statistics(served: Served, model: str) -> Statistics:
    """What Triton has counted when it is done counting: an execution is counted a moment after its answers are sent."""
    found = _statistics(served, model)
    for _ in range(100):
        time.sleep(0.02)
        earlier, found = found, _statistics(served, model)
        if found == earlier:
            break
    return found


def _statistics(served: Served, model: str) -> Statistics:
    with tritonclient.http.InferenceServerClient(served.triton.http_url.removeprefix("http://")) as client:
        (found,) = client.get_inference_statistics(model)["model_stats"]
    batches = {int(one["batch_size"]): int(one["compute_infer"]["count"]) for one in found.get("batch_stats", ())}
    inferences, executions = (int(found.get(f"{name}_count", 0)) for name in ("inference", "execution"))
    answered, refused = (int(found["inference_stats"][outcome].get("count", 0)) for outcome in ("success", "fail"))
    return Statistics(inferences, executions, Counter(batches), answered, refused)


def metric(served: Served, name: str, **labels: str) -> float:
    """One value of the /metrics page."""
    with urllib.request.urlopen(served.triton.metrics_url, timeout=PATIENCE_SECONDS) as page:
        lines = page.read().decode().splitlines()
    wanted = {f'{label}="{value}"' for label, value in labels.items()}
    values = [
        float(line.rsplit(" ", 1)[1])
        for line in lines
        if line.startswith(f"{name}{{") and wanted <= set(line[line.index("{") + 1 : line.rindex("}")].split(","))
    ]
    assert len(values) == 1, f"{name} {labels}: {len(values)} lines on the metrics page"
    return values[0]


def wait_until(condition: Callable[[], bool], what: str, seconds: float = PATIENCE_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.01)


@contextmanager
def busy_scorer(served: Served, model: str = "rank") -> Iterator[None]:
    """Inside the block the scorer works on one small request and is not done with it, so that all others have to queue.

    Whatever waits for an answer of the scorer must end outside.
    """
    door = served.doors / scorer_of(model)
    (door / "shut").touch()
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(_send_small, served, model)
        try:
            wait_until((door / "waiting").exists, "the scorer takes the small request")
            yield
        finally:
            (door / "shut").unlink()
            wait([held])
            (door / "waiting").unlink()
        held.result()


def _send_small(served: Served, model: str) -> None:
    with RankClient(served.triton.grpc_url, model=model, timeout=60) as client:
        client.rank(items=["desk", "lamp"], history=["oak"])


def wait_until_queued(
    served: Served, model: str, before: Statistics, requests: int, *, or_refused: bool = False
) -> None:
    """Wait until so many more requests have left the ensemble's tokenizer, which puts them into the scorer's queue.

    Args:
        before: the tokenizer's statistics.
        or_refused: those count too that it refused.
    """

    def left() -> int:
        since = _statistics(served, tokenizer_of(model)) - before
        return since.answered + or_refused * since.refused

    wait_until(lambda: left() >= requests, f"{requests} requests are tokenized")


def counter_files(served: Served, scorer: str) -> list[Path]:
    """What each instance of a scorer tells the gate (``admission.py``)."""
    return [*Path(tempfile.gettempdir()).glob(f"*/tritonrank-queue-{served.triton.pid}/*/{scorer}_[0-9]*")]


def ask(client: RankClient, request: Request) -> Scores:
    """Scores in the order of the candidates."""
    result = client.rank(query=request.query, history=request.history, items=request.items)
    return in_request_order(result, len(request.items))


async def ask_async(client: AsyncRankClient, request: Request) -> Scores:
    result = await client.rank(query=request.query, history=request.history, items=request.items)
    return in_request_order(result, len(request.items))


def in_request_order(result: RankResult, candidates: int) -> Scores:
    scores = np.full(candidates, np.nan, dtype=np.float32)
    scores[list(result.indices)] = result.scores
    return scores


def largest_difference(found: list[Scores], expected: list[Scores]) -> float:
    """Over all requests; NaN where a candidate is missing, which no tolerance admits."""
    return float(np.max([np.abs(one - other).max() for one, other in zip(found, expected, strict=True)]))


def infer(
    served: Served, protocol: str, model: str, tensors: Mapping[str, Any], timeout_us: int | None = None
) -> dict[str, NDArray[Any]]:
    """A request through tritonclient alone, so that nothing is checked before it is sent.

    Args:
        tensors: by name; a list of bytes is a BYTES tensor, bytes are the raw content of one that claims an element.

    Raises:
        InferenceServerException: the server's own words.
    """
    library = TENSOR_CLIENTS[protocol]
    inputs = [_input(library, name, value) for name, value in tensors.items()]
    with library.InferenceServerClient(served.urls[protocol].split("://")[1]) as client:
        result = client.infer(model, inputs, timeout=timeout_us)
    response = result.get_response()
    outputs = response["outputs"] if isinstance(response, dict) else [{"name": one.name} for one in response.outputs]
    return {one["name"]: result.as_numpy(one["name"]) for one in outputs}


def _input(library: ModuleType, name: str, value: Any) -> Any:
    if isinstance(value, bytes):
        tensor = library.InferInput(name, [1], "BYTES")
        tensor.set_data_from_numpy(np.array([b""], dtype=np.object_))
        if library is tritonclient.http:
            tensor._raw_data = value
            tensor._parameters["binary_data_size"] = len(value)
        else:
            tensor._raw_content = value
        return tensor
    if isinstance(value, list):
        texts = np.empty(len(value), dtype=np.object_)
        texts[:] = value
        value = texts
    datatype = "BYTES" if value.dtype.kind == "O" else tritonclient.utils.np_to_triton_dtype(value.dtype)
    tensor = library.InferInput(name, list(value.shape), datatype)
    tensor.set_data_from_numpy(value)
    return tensor


def is_healthy(served: Served) -> bool:
    """Process alive, and both protocols say that the models are ready."""
    served.triton.check()
    for url in served.urls.values():
        for model in ENSEMBLES:
            with RankClient(url, model=model) as client:
                if not client.health():
                    return False
    return True
