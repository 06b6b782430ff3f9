"""Systems with a server of their own: Infinity over HTTP, Triton over gRPC.

All listen on the loopback address at free ports. The client is part of the system: what its users would take, one
connection per client thread (HTTP) or one for all (gRPC).
"""

import http.client
import json
import re
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import tritonclient.grpc
from tritonrank_client import RankClient, Retry

from loadtests.peers.cases import Case
from loadtests.peers.environments import Environment, own_environment
from loadtests.peers.system import REQUEST_SECONDS
from loadtests.processes import LOOPBACK, Process, SystemFaultError, free_port, resident_bytes

TRITON_PROCESS = "tritonserver"
TRITON_PACKAGES = ("nvidia-pytriton", "onnxruntime", "transformers", "tokenizers", "numpy", "tritonclient")
GATEWAY_PACKAGES = ("fastapi", "uvicorn", "msgspec")
SERVED_MODEL = "ranker"
KEPT_SECONDS = 2.0
"""Longer, and the server may have closed the connection: while the others had their turns."""


class InfinitySystem:
    """Infinity's ``/rerank``.

    Args:
        name, settings: as in System.
        environment: gives the environment with infinity-emb.
        model: gives the checkpoint's folder; called by prepare.
        arguments: of ``infinity_emb v2``, beside model, host and port.
        log: the server's log file.
        cache: a folder for what it keeps between starts.
    """

    kind = "peer"

    def __init__(
        self,
        *,
        name: str,
        settings: dict[str, str],
        environment: Callable[[], Environment],
        model: Callable[[], Path],
        arguments: Sequence[str],
        log: Path,
        cache: Path,
    ) -> None:
        self.name, self.settings = name, settings
        self._find_environment = environment
        self._find_model = model
        self._arguments = arguments
        self._log = log
        self._cache = cache
        self._environment: Environment | None = None
        self._model: Path | None = None
        self._process: Process | None = None
        self._port = 0
        self._connections = threading.local()

    def prepare(self) -> None:
        self._environment = self._find_environment()
        self._model = self._find_model()

    def versions(self) -> dict[str, str]:
        assert self._environment is not None
        packages = ("infinity-emb", "torch", "transformers", "optimum", "optimum-onnx", "onnxruntime", "numpy")
        return self._environment.versions(packages)

    def start(self) -> None:
        assert self._environment is not None
        assert self._model is not None
        self._port = free_port()
        self._connections = threading.local()
        # The folder is the working directory and "." the model: given any other local folder, its ONNX engine asks
        # optimum for a file by its whole path, which optimum 2 does not find.
        command = [str(self._environment.command("infinity_emb")), "v2", "--model-id", ".", "--device", "cpu"]
        command += ["--served-model-name", SERVED_MODEL, "--host", LOOPBACK, "--port", str(self._port)]
        variables = {"HF_HOME": str(self._cache), "INFINITY_ANONYMOUS_USAGE_STATS": "0"}
        self._process = Process([*command, *self._arguments], self._log, environment=variables, folder=self._model)
        self._process.wait_until(self._is_healthy, self.name)

    def rank(self, case: Case) -> Sequence[float]:
        body = {"model": SERVED_MODEL, "query": case.context, "documents": case.documents, "raw_scores": True}
        status, answer = self._post("/rerank", json.dumps(body).encode())
        if status != http.client.OK:
            raise SystemFaultError(f"{self.name}: HTTP {status}: {answer[:200].decode(errors='replace')}")
        scores = [float("nan")] * len(case.items)
        for result in json.loads(answer)["results"]:
            scores[result["index"]] = result["relevance_score"]
        return scores

    def memory_bytes(self) -> int:
        assert self._process is not None
        return resident_bytes(self._process.pid)

    def stop(self) -> None:
        if self._process is not None:
            self._process.stop()
            self._process = None

    def _post(self, path: str, body: bytes) -> tuple[int, bytes]:
        connection = getattr(self._connections, "kept", None)
        if connection is not None and time.monotonic() - self._connections.used_at > KEPT_SECONDS:
            connection.close()
            connection = None
        if connection is None:
            connection = http.client.HTTPConnection(LOOPBACK, self._port, timeout=REQUEST_SECONDS)
            self._connections.kept = connection
        try:
            connection.request("POST", path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            answer = response.read()
            self._connections.used_at = time.monotonic()
            return response.status, answer
        except (OSError, http.client.HTTPException):
            connection.close()
            self._connections.kept = None
            raise

    def _is_healthy(self) -> bool:
        connection = http.client.HTTPConnection(LOOPBACK, self._port, timeout=5)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == http.client.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


class _BehindTriton:
    """What systems behind Triton share: a server process, and a client that is open while it runs."""

    def __init__(self, name: str, settings: dict[str, str], log: Path) -> None:
        self.name, self.settings = name, settings
        self._server = _TritonProcess(name, log)
        self._close_client: Callable[[], None] = _nothing

    def memory_bytes(self) -> int:
        return self._server.memory_bytes()

    def stop(self) -> None:
        self._close_client()
        self._close_client = _nothing
        self._server.stop()


class PlainTritonSystem(_BehindTriton):
    """Tokenizer and ONNX Runtime in one Python model, the way deployment tutorials put them into Triton.

    Args:
        name, settings: as in System.
        model: gives a folder with model.onnx and the tokenizer; called by prepare.
        log: the server's log file.
    """

    kind = "peer"

    def __init__(self, *, name: str, settings: dict[str, str], model: Callable[[], Path], log: Path) -> None:
        super().__init__(name, settings, log)
        self._find_model = model
        self._model: Path | None = None
        self._client: tritonclient.grpc.InferenceServerClient | None = None

    def prepare(self) -> None:
        self._model = self._find_model()

    def versions(self) -> dict[str, str]:
        return own_environment().versions(TRITON_PACKAGES)

    def start(self) -> None:
        module = "loadtests.peers.workers.plain_triton"
        url = self._server.start([str(own_environment().python), "-m", module, str(self._model)])
        self._client = tritonclient.grpc.InferenceServerClient(url.removeprefix("grpc://"))
        self._close_client = self._client.close

    def rank(self, case: Case) -> Sequence[float]:
        assert self._client is not None
        inputs = [_texts_input("query", [case.context]), _texts_input("documents", case.documents)]
        answer = self._client.infer("plain", inputs, client_timeout=REQUEST_SECONDS)
        return [float(score) for score in answer.as_numpy("scores")]


class OursSystem(_BehindTriton):
    """Our repository, served by ``tritonrank serve`` and asked through our client.

    Args:
        name, settings: as in System.
        artifacts: artifacts/<recipe> or a repository folder.
        log: the server's log file.
    """

    kind = "ours"

    def __init__(self, *, name: str, settings: dict[str, str], artifacts: Path, log: Path) -> None:
        super().__init__(name, settings, log)
        self._artifacts = artifacts
        self._client: RankClient | None = None
        self.url = ""
        """grpc://... of the Triton that was started."""
        self.metrics_url = ""

    def prepare(self) -> None:
        if not self._artifacts.is_dir():
            raise SystemFaultError(f"{self._artifacts}: no such folder; build it: tritonrank build RECIPE")

    def versions(self) -> dict[str, str]:
        return own_environment().versions(("tritonrank", *TRITON_PACKAGES))

    def start(self) -> None:
        metrics_port = free_port()
        self.metrics_url = f"http://{LOOPBACK}:{metrics_port}/metrics"
        ports = ["--http-port", "0", "--grpc-port", "0", "--metrics-port", str(metrics_port)]
        url = self._server.start(
            [str(own_environment().python), "-m", "tritonrank", "serve", str(self._artifacts.resolve()), *ports]
        )
        self.url = url
        self._client = self.open_client(url)
        self._close_client = self._client.close

    def open_client(self, url: str) -> RankClient:
        """The client for the server at this URL."""
        # One attempt: a refusal is a result, and a retry would hide it.
        return RankClient(url, timeout=REQUEST_SECONDS, retry=Retry(attempts=1))

    def rank(self, case: Case) -> Sequence[float]:
        assert self._client is not None
        result = self._client.rank(query=case.query, history=case.history, items=case.items)
        self.settings["artifact"] = result.artifact
        scores = [float("nan")] * len(case.items)
        for ranked in result.ranking:
            scores[ranked.index] = ranked.score
        return scores


class OurGatewaySystem(OursSystem):
    """The same behind our gateway: ``POST /v1/rank`` over HTTP, asked through our client.

    Its difference to ``OursSystem`` is what the gateway costs.
    """

    def __init__(self, *, name: str, settings: dict[str, str], artifacts: Path, log: Path) -> None:
        super().__init__(name=name, settings=settings, artifacts=artifacts, log=log)
        self._gateway_log = log.with_suffix(".gateway.log")
        self._gateway: Process | None = None

    def versions(self) -> dict[str, str]:
        return super().versions() | own_environment().versions(GATEWAY_PACKAGES)

    def open_client(self, url: str) -> RankClient:
        command = [str(own_environment().python), "-m", "tritonrank_gateway", "--triton", url.removeprefix("grpc://")]
        command += ["--port", "0", "--metrics-port", "0", "--no-access-log"]
        self._gateway = Process(command, self._gateway_log)
        found: list[str] = []

        def has_printed_url() -> bool:
            text = self._gateway_log.read_text(encoding="utf-8", errors="replace")
            found.extend(re.findall(r'"url": "(http://[\w.]+:\d+)"', text)[:1])
            return bool(found)

        self._gateway.wait_until(has_printed_url, self.name)
        return super().open_client(f"gateway+{found[0]}")

    def memory_bytes(self) -> int:
        assert self._gateway is not None
        return super().memory_bytes() + resident_bytes(self._gateway.pid)

    def stop(self) -> None:
        if self._gateway is not None:
            self._gateway.stop()
            self._gateway = None
        super().stop()


def _nothing() -> None:
    """No client is open."""


class _TritonProcess:
    """A launcher that prints the gRPC URL when its tritonserver is ready, and stops it when told to end."""

    def __init__(self, name: str, log: Path) -> None:
        self._name = name
        self._log = log
        self._process: Process | None = None

    def start(self, command: Sequence[str]) -> str:
        self._process = Process(command, self._log)
        url: list[str] = []

        def has_printed_url() -> bool:
            found = re.search(r"grpc://[\w.]+:\d+", self._log.read_text(encoding="utf-8", errors="replace"))
            url.extend([found[0]] if found else [])
            return bool(found)

        self._process.wait_until(has_printed_url, self._name)
        return url[0]

    def memory_bytes(self) -> int:
        assert self._process is not None
        return resident_bytes(self._process.pid, below=TRITON_PROCESS)

    def stop(self) -> None:
        if self._process is not None:
            self._process.stop()
            self._process = None


def _texts_input(name: str, texts: Sequence[str]) -> tritonclient.grpc.InferInput:
    tensor = tritonclient.grpc.InferInput(name, [len(texts)], "BYTES")
    tensor.set_data_from_numpy(np.array([text.encode() for text in texts], dtype=np.object_))
    return tensor
