"""NVIDIA's perf_analyzer on the whole ensemble, fed with real requests of the dataset.

Many different requests are sent in turn, so that caches are not flattered by one request repeated.
"""

import json
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from tritonrank.errors import ServerError
from tritonrank.prepare import Dataset
from tritonrank.scorers import Request, requests_of
from tritonrank.serve import repository_of, serving
from tritonrank.text import TextRules

REQUESTS = 50

console = Console()


def perf(artifacts: Path, perf_analyzer: Path, concurrency: str = "1:4", protocol: str = "grpc") -> None:
    """Serve the artifacts on free ports and measure.

    Args:
        artifacts: ``artifacts/<recipe>``: the dataset is needed for the requests.
        perf_analyzer: the launcher that ``make tools`` writes.
        concurrency: requests in flight, ``start:end`` or one number.
        protocol: grpc or http.

    Raises:
        ServerError: the server or perf_analyzer failed.
    """
    dataset = Dataset.read(artifacts / "dataset")
    rules = TextRules.load(repository_of(artifacts) / "tokenize" / "1")
    # perf_analyzer cannot send a tensor without elements, so users without a history are left out.
    examples = [example for example in dataset.test if example.history][:REQUESTS]
    with tempfile.TemporaryDirectory() as scratch, serving(artifacts) as server:
        data = Path(scratch) / "requests.json"
        data.write_text(json.dumps(input_data(requests_of(dataset, examples, rules))), encoding="utf-8")
        url = server.grpc_url if protocol == "grpc" else server.http_url
        command = [str(perf_analyzer), "-m", "rank", "-i", protocol, "-u", url.split("://")[1]]
        command += ["--input-data", str(data), "--concurrency-range", concurrency]
        command += ["--measurement-mode", "count_windows", "--measurement-request-count", "20", "-s", "30"]
        command += ["--percentile", "99"]
        console.print(" ".join(command), style="dim", soft_wrap=True, highlight=False)
        if subprocess.run(command, check=False).returncode:
            raise ServerError(f"perf_analyzer failed; its output is above. Server log:\n{server.log_tail()}")


def input_data(requests: Sequence[Request]) -> dict[str, list[dict[str, dict[str, list[object]]]]]:
    """perf_analyzer's JSON: one entry per request, each tensor with its shape."""

    def tensor(values: Sequence[object]) -> dict[str, list[object]]:
        return {"content": list(values), "shape": [len(values)]}

    return {
        "data": [
            {
                "query": tensor([request.query]),
                "history": tensor(request.history),
                "items": tensor(request.items),
                "item_ids": tensor([str(place) for place in range(len(request.items))]),
                "top_k": tensor([0]),
            }
            for request in requests
        ]
    }
