"""A stand-in for Triton that ranks by text length and misbehaves on purpose, over HTTP and gRPC.

One `MisbehavingServer` listens on two free loopback ports and answers both protocols from one script: a list of
behaviours, one per inference request, of which the last one stays. It keeps what it was asked, so that a test can
look at the tensors, the parameters and the headers that really crossed the wire. Everything ends with `close()`.
"""

import contextlib
import gzip
import json
import socket
import ssl
import struct
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from google.protobuf import json_format
from refused_ports import hold_port
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

DATATYPES = {"INT32": np.int32, "INT64": np.int64, "FP32": np.float32}

METADATA = {
    "name": "rank",
    "versions": ["1", "2"],
    "platform": "ensemble",
    "inputs": [
        {"name": "query", "datatype": "BYTES", "shape": [1]},
        {"name": "items", "datatype": "BYTES", "shape": [-1]},
    ],
    "outputs": [{"name": "scores", "datatype": "FP32", "shape": [-1]}],
}
CONFIG = {
    "name": "rank",
    "platform": "ensemble",
    "max_batch_size": 0,
    "input": [{"name": "items", "data_type": "TYPE_STRING", "dims": [-1]}],
    "parameters": {"artifact": {"string_value": "demo"}},
}


@dataclass(frozen=True)
class Asked:
    """An inference request as it arrived."""

    protocol: str
    model: str
    version: str
    request_id: str
    inputs: dict[str, list[Any]]
    shapes: dict[str, list[int]]
    parameters: dict[str, Any]
    headers: dict[str, str]
    seconds: float = field(default_factory=time.monotonic)
    wire_seconds: float | None = None
    """gRPC only: what is left of the deadline that the call itself carries"""

    def rank(self) -> dict[str, tuple[str, list[Any]]]:
        """The right answer of this server: longest item first, ties in the order given."""
        texts = self.inputs["items"]
        order = sorted(range(len(texts)), key=lambda index: -len(texts[index]))
        if "item_ids" in self.inputs:
            seen: set[bytes] = set()
            ids = self.inputs["item_ids"]
            order = [index for index in order if not (ids[index] in seen or seen.add(ids[index]))]
        order = order[: self.inputs["top_k"][0] or None]
        return {
            "indices": ("INT32", order),
            "scores": ("FP32", [float(len(texts[index])) for index in order]),
            "artifact": ("BYTES", [b"fake-1"]),
        }


class Behaviour:
    """Answers right; the others override a part."""

    def outputs(self, asked: Asked) -> "dict[str, tuple[str, list[Any]]] | Fail":
        return asked.rank()

    def answer_id(self, asked: Asked) -> str:
        return asked.request_id


@dataclass(frozen=True)
class Slow(Behaviour):
    """Answers right, after a while."""

    delay_seconds: float

    def outputs(self, asked: Asked) -> dict[str, tuple[str, list[Any]]]:
        time.sleep(self.delay_seconds)
        return asked.rank()


@dataclass(frozen=True)
class Foreign(Behaviour):
    """Answers right, under the id of another request."""

    other_id: str

    def answer_id(self, asked: Asked) -> str:
        return self.other_id


class Compressed(Behaviour):
    """Answers right, and packs the answer though nobody asked for it."""


@dataclass(frozen=True)
class Endless(Behaviour):
    """HTTP only: sends `head`, and then `piece` again and again until the client hangs up."""

    head: bytes
    piece: bytes


class Echo(Behaviour):
    """Answers right, and names the first item as the artifact: whoever gets the answer sees whose it is."""

    def outputs(self, asked: Asked) -> dict[str, tuple[str, list[Any]]]:
        return asked.rank() | {"artifact": ("BYTES", [asked.inputs["items"][0]])}


class Stall(Behaviour):
    """Answers right, but for a while nothing at all: what comes in then is answered at its end.

    The clock starts with the first request.
    """

    def __init__(self, after_seconds: float, for_seconds: float) -> None:
        self._after_seconds = after_seconds
        self._for_seconds = for_seconds
        self.began: float | None = None
        """time.monotonic() of the stall's beginning; None: no request came yet"""

    def outputs(self, asked: Asked) -> dict[str, tuple[str, list[Any]]]:
        if self.began is None:
            self.began = asked.seconds + self._after_seconds
        if 0 <= asked.seconds - self.began < self._for_seconds:
            time.sleep(max(0.0, self.began + self._for_seconds - time.monotonic()))
        return asked.rank()


@dataclass(frozen=True)
class Fail(Behaviour):
    """Answers with an error as Triton reports it."""

    http: int
    grpc: str
    message: str


class Limited(Behaviour):
    """Has so many workers, each busy for so long with a request, and refuses more than so many that wait for one."""

    def __init__(self, workers: int, seconds: float, most_waiting: int) -> None:
        self._free = threading.Semaphore(workers)
        self._seconds = seconds
        self._most = workers + most_waiting
        self._inside = 0
        self._lock = threading.Lock()

    def outputs(self, asked: Asked) -> dict[str, tuple[str, list[Any]]] | Fail:
        with self._lock:
            if self._inside >= self._most:
                return QUEUE_FULL
            self._inside += 1
        with self._free:
            time.sleep(self._seconds)
        with self._lock:
            self._inside -= 1
        return asked.rank()


@dataclass(frozen=True)
class Malformed(Behaviour):
    """Answers with outputs changed by `change`; an output set to None is left out."""

    change: Callable[[dict[str, Any]], dict[str, Any]]

    def outputs(self, asked: Asked) -> dict[str, tuple[str, list[Any]]]:
        return {name: output for name, output in self.change(asked.rank()).items() if output is not None}


@dataclass(frozen=True)
class Raw(Behaviour):
    """HTTP only: sends these bytes and closes the connection. No bytes: hangs up."""

    sent: bytes = b""


@dataclass(frozen=True)
class Drip(Behaviour):
    """HTTP only: sends a byte of the answer now and then, so no single read ever times out."""

    pause_seconds: float


RIGHT = Behaviour()
QUEUE_FULL = Fail(503, "UNAVAILABLE", "in ensemble 'rank', [request id: <id_unknown>] Exceeds maximum queue size")
EXPIRED = Fail(503, "UNAVAILABLE", "in ensemble 'rank', [request id: <id_unknown>] Request timeout expired")
INVALID = Fail(400, "INVALID_ARGUMENT", "items[3]: not a JSON object")
BROKEN = Fail(500, "INTERNAL", "CUDA error: an illegal memory access")
UNKNOWN_MODEL = Fail(404, "NOT_FOUND", "Request for unknown model: 'rank' is not found")
DEAD_STUB = Fail(500, "INTERNAL", "in ensemble 'rank', Stub process 'score_0_1' is not healthy.")
UNLOADED_MODEL = Fail(503, "UNAVAILABLE", "Request for unknown model: 'rank' version 1 is not at ready state")
STOPPING = Fail(
    503, "UNAVAILABLE", "Server is stopping, scheduler for model 'rank' has stopped accepting new inference requests"
)


class MisbehavingServer:
    """Serves HTTP and gRPC on loopback until `close()`.

    `tls` is (private key, certificate), as PEM files; `ports` are those of HTTP and gRPC, 0 for a free one. They stay
    its own after `close()`, as long as it is referred to: who connects is refused, and meets no other test's server.
    """

    def __init__(self, tls: tuple[Path, Path] | None = None, ports: tuple[int, int] = (0, 0)) -> None:
        self.script: list[Behaviour] = [RIGHT]
        self.asked: list[Asked] = []
        self.keeps_asked = True
        self.probe_headers: list[dict[str, str]] = []
        self.live = self.ready = self.model_ready = True
        self.reads_bodies = True
        self.page: bytes | None = None
        """sent in place of every HTTP page that is asked for with GET"""
        self.page_seconds = 0.0
        """how long gRPC's health and metadata take"""
        self.answered = 0
        """gRPC calls that were answered, or would have been"""
        self.grpc_peers: set[str] = set()
        """gRPC connections on which a call came"""
        self.gave_up = 0
        """gRPC calls that had been cancelled, or had passed their own deadline, when they were to be answered"""
        self.connections = 0
        self.open_sockets: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._secure = "s" if tls else ""
        self.ports = hold_port(ports[0], of=self), hold_port(ports[1], of=self)
        self._http = _start_http(self, tls, self.ports[0])
        self._grpc = _start_grpc(self, tls, self.ports[1])

    @property
    def urls(self) -> dict[str, str]:
        return {
            "http": f"http{self._secure}://127.0.0.1:{self.ports[0]}",
            "grpc": f"grpc{self._secure}://127.0.0.1:{self.ports[1]}",
        }

    def behave(self, *script: Behaviour) -> None:
        """Set what the next inference requests meet; the last behaviour stays."""
        self.script = list(script)

    def next_behaviour(self, asked: Asked) -> Behaviour:
        with self._lock:
            if self.keeps_asked:
                self.asked.append(asked)
            return self.script.pop(0) if len(self.script) > 1 else self.script[0]

    def close(self) -> None:
        self._grpc.stop(0).wait()
        self._http.shutdown()
        self._http.server_close()
        for kept_alive in list(self.open_sockets):
            with contextlib.suppress(OSError):
                kept_alive.shutdown(socket.SHUT_RDWR)


class HangingUp:
    """A TCP server that accepts and at once hangs up, as a crashing server or a broken proxy does."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self.accepted = 0
        threading.Thread(target=self._hang_up, daemon=True).start()

    def _hang_up(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.accepted += 1
            connection.close()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


class Silent(HangingUp):
    """A TCP server that accepts and says nothing."""

    def _hang_up(self) -> None:
        self._kept: list[socket.socket] = []
        while True:
            try:
                self._kept.append(self._socket.accept()[0])
            except OSError:
                break
        for connection in self._kept:
            connection.close()


def _start_http(server: MisbehavingServer, tls: tuple[Path, Path] | None, port: int) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def setup(self) -> None:
            super().setup()
            server.connections += 1
            server.open_sockets.add(self.connection)

        def finish(self) -> None:
            server.open_sockets.discard(self.connection)
            super().finish()

        def do_GET(self) -> None:
            server.probe_headers.append(dict(self.headers))
            if server.page is not None:
                self.wfile.write(server.page)
                self.close_connection = True
                return
            answers: dict[str, tuple[bool, Any]] = {
                "/v2/health/live": (server.live, None),
                "/v2/health/ready": (server.ready, None),
                "/v2/models/rank/ready": (server.model_ready, None),
                "/v2/models/rank": (True, METADATA),
                "/v2/models/rank/config": (True, CONFIG),
            }
            fits, body = answers.get(self.path, (False, {"error": f"no such page: {self.path}"}))
            self._send(200 if fits else 400, b"" if body is None else json.dumps(body).encode())

        def do_POST(self) -> None:
            if not server.reads_bodies:
                time.sleep(0.5)
                self.close_connection = True
                return
            body = self.rfile.read(int(self.headers["Content-Length"]))
            asked = _read_http(self.path, dict(self.headers), body)
            behaviour = server.next_behaviour(asked)
            if isinstance(behaviour, Raw):
                self.wfile.write(behaviour.sent)
                self.close_connection = True
            elif isinstance(behaviour, Fail):
                self._send(behaviour.http, json.dumps({"error": behaviour.message}).encode())
            elif isinstance(behaviour, Drip):
                self._drip(behaviour.pause_seconds)
            elif isinstance(behaviour, Endless):
                self._flood(behaviour)
            elif isinstance(outputs := behaviour.outputs(asked), Fail):
                self._send(outputs.http, json.dumps({"error": outputs.message}).encode())
            else:
                header, data = _write_http(asked, outputs, behaviour.answer_id(asked))
                body, headers = header + data, {"Inference-Header-Content-Length": str(len(header))}
                if isinstance(behaviour, Compressed):
                    body, headers = gzip.compress(body), headers | {"Content-Encoding": "gzip"}
                self._send(200, body, headers)

        def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def _drip(self, pause_seconds: float) -> None:
            self.close_connection = True
            with contextlib.suppress(OSError):  # the client gives up, as it should
                for byte in b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b" " * 1000:
                    self.wfile.write(bytes([byte]))
                    time.sleep(pause_seconds)

        def _flood(self, behaviour: Endless) -> None:
            self.close_connection = True
            with contextlib.suppress(OSError):  # the client hangs up, as it should
                self.wfile.write(behaviour.head)
                while True:
                    self.wfile.write(behaviour.piece)

        def log_message(self, format: str, *arguments: Any) -> None:
            """Say nothing: a test that fails shows what the client saw."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False
        request_queue_size = 64

        def handle_error(self, request: Any, client_address: Any) -> None:
            """Clients that hang up are expected here."""

    listener = Server(("127.0.0.1", port), Handler)
    if tls is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tls[1], tls[0])
        listener.socket = context.wrap_socket(listener.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    return listener


def _start_grpc(server: MisbehavingServer, tls: tuple[Path, Path] | None, port: int) -> grpc.Server:
    def _end(context: Any) -> None:
        with server._lock:
            server.grpc_peers.add(context.peer())
            server.gave_up += not context.is_active()
            server.answered += 1

    def _page(context: Any) -> None:
        if server.page_seconds:
            time.sleep(server.page_seconds)
            _end(context)

    class Servicer(service_pb2_grpc.GRPCInferenceServiceServicer):
        def ServerLive(self, request: Any, context: Any) -> Any:  # noqa: N802 - names of the protocol
            server.probe_headers.append(_metadata(context))
            _page(context)
            return service_pb2.ServerLiveResponse(live=server.live)

        def ServerReady(self, request: Any, context: Any) -> Any:  # noqa: N802
            return service_pb2.ServerReadyResponse(ready=server.ready)

        def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802
            _check_model(request.name, context)
            return service_pb2.ModelReadyResponse(ready=server.model_ready)

        def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
            _check_model(request.name, context)
            _page(context)
            return json_format.ParseDict(METADATA, service_pb2.ModelMetadataResponse())

        def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: N802
            _check_model(request.name, context)
            config = json_format.ParseDict(CONFIG, model_config_pb2.ModelConfig())
            return service_pb2.ModelConfigResponse(config=config)

        def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
            asked = _read_grpc(request, context)
            behaviour = server.next_behaviour(asked)
            answer = behaviour if isinstance(behaviour, Fail) else behaviour.outputs(asked)
            _end(context)
            if isinstance(answer, Fail):
                context.abort(grpc.StatusCode[answer.grpc], answer.message)
            if isinstance(behaviour, Compressed):
                context.set_compression(grpc.Compression.Gzip)
            return _write_grpc(asked, answer, behaviour.answer_id(asked))

    def _check_model(name: str, context: Any) -> None:
        if name != "rank":
            context.abort(grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{name}' is not found")

    listener = grpc.server(ThreadPoolExecutor(64), options=[("grpc.max_receive_message_length", -1)])
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Servicer(), listener)
    if tls is None:
        listener.add_insecure_port(f"127.0.0.1:{port}")
    else:
        pair = (tls[0].read_bytes(), tls[1].read_bytes())
        listener.add_secure_port(f"127.0.0.1:{port}", grpc.ssl_server_credentials([pair]))
    listener.start()
    return listener


def _metadata(context: Any) -> dict[str, str]:
    return {entry.key: entry.value for entry in context.invocation_metadata()}


def _read_http(path: str, headers: dict[str, str], body: bytes) -> Asked:
    header_length = int(headers["Inference-Header-Content-Length"])
    header = json.loads(body[:header_length])
    offset = header_length
    inputs, shapes = {}, {}
    for tensor in header["inputs"]:
        size = tensor["parameters"]["binary_data_size"]
        inputs[tensor["name"]] = _values(tensor["datatype"], body[offset : offset + size])
        shapes[tensor["name"]] = tensor["shape"]
        offset += size
    parts = path.split("/")  # /v2/models/NAME[/versions/VERSION]/infer
    version = parts[5] if "versions" in parts else ""
    parameters = header.get("parameters", {})
    return Asked("http", parts[3], version, header.get("id", ""), inputs, shapes, parameters, headers)


def _write_http(asked: Asked, outputs: dict[str, tuple[str, list[Any]]], answer_id: str) -> tuple[bytes, bytes]:
    described, buffers = [], []
    for name, (datatype, values) in outputs.items():
        buffer = _buffer(datatype, values)
        parameters = {"binary_data_size": len(buffer)}
        described.append({"name": name, "datatype": datatype, "shape": [len(values)], "parameters": parameters})
        buffers.append(buffer)
    header = {"id": answer_id, "model_name": asked.model, "outputs": described}
    return json.dumps(header).encode(), b"".join(buffers)


def _read_grpc(request: Any, context: Any) -> Asked:
    inputs, shapes = {}, {}
    for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True):
        inputs[tensor.name] = _values(tensor.datatype, raw)
        shapes[tensor.name] = list(tensor.shape)
    parameters = {
        name: getattr(value, value.WhichOneof("parameter_choice")) for name, value in request.parameters.items()
    }
    return Asked(
        "grpc",
        request.model_name,
        request.model_version,
        request.id,
        inputs,
        shapes,
        parameters,
        _metadata(context),
        wire_seconds=context.time_remaining(),
    )


def _write_grpc(asked: Asked, outputs: dict[str, tuple[str, list[Any]]], answer_id: str) -> Any:
    response = service_pb2.ModelInferResponse(model_name=asked.model, model_version="1", id=answer_id)
    for name, (datatype, values) in outputs.items():
        response.outputs.add(name=name, datatype=datatype, shape=[len(values)])
        response.raw_output_contents.append(_buffer(datatype, values))
    return response


def _values(datatype: str, raw: bytes) -> list[Any]:
    if datatype != "BYTES":
        return list(np.frombuffer(raw, dtype=DATATYPES[datatype]).tolist())
    values = []
    while raw:
        (length,) = struct.unpack_from("<I", raw)
        values.append(raw[4 : 4 + length])
        raw = raw[4 + length :]
    return values


def _buffer(datatype: str, values: Sequence[Any]) -> bytes:
    if datatype != "BYTES":
        return np.array(values, dtype=DATATYPES[datatype]).tobytes()
    return b"".join(struct.pack("<I", len(value)) + value for value in values)


def main() -> None:
    """Serve on two free ports, which are printed, until standard input ends: for callers that fork."""
    server = MisbehavingServer()
    server.behave(Echo())
    server.keeps_asked = False
    print(json.dumps(server.urls), flush=True)
    sys.stdin.read()
    server.close()


if __name__ == "__main__":
    main()
