"""What goes over HTTP: JSON, the binary extension, generate endpoints, bytes that are no request, and hang-ups."""

import http.client
import json
import math
import socket
import struct
from collections.abc import Mapping
from random import Random
from typing import Any

from loadtests.fuzz.mutations import mutate
from loadtests.fuzz.record import NO_ANSWER, Answer
from loadtests.fuzz.values import TEXTS, JsonObject, hostile_data, right_request

ANSWER_SECONDS = 12.0
KEPT_BYTES = 20_000
SHOWN_BYTES = 300
RAW_SHARE = 0.05
RAW_BODIES = (
    b"", b"{", b"null", b"[]", b'{"inputs":[]}', b"\xff\xfe", b'{"inputs":' + b"[" * 50_000, b'{"a":' * 50_000,
    b"[" * 1_000_000, b'{"inputs":[{"name":"query","shape":[1],"datatype":"BYTES","data":["\xff\xfe"]}]}',
    b'{"id":"\\ud800","inputs":[]}', b'{"inputs":[{"name":"a","shape":[NaN],"datatype":"FP32","data":[Infinity]}]}',
    b'{"inputs":[{"name":"query","shape":[1e400],"datatype":"BYTES","data":["a"]}]}',
    b'{"inputs":' + b"9" * 1_000_000 + b"}", b"\0" * 1_000, b'{"inputs":[],"inputs":[]}', b" " * 3_000_000,
)  # fmt: skip
TENSOR_SIZES: tuple[Any, ...] = (0, 1, -1, 2**31, 2**32, 2**63 - 1, 2**64 - 1, "7", 1.5, None)
HEADER_SIZES: tuple[Any, ...] = (0, -1, 1, 2**31, 2**63, 2**64, "x", "")
RAW_LINES = (
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"POST /v2/models/rank/infer HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0" * 50, b"\0\1\2\3" * 100, b"GET " + b"/" * 60_000 + b" HTTP/1.1\r\n\r\n",
    b"POST /v2/models/rank/infer HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n\r\n",
    b"POST /v2/models/rank/infer HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 9\r\n\r\n12345",
    b"TRACE /v2 HTTP/1.1\r\nHost: a\r\n\r\n", b"GET /v2/models/..%2f..%2fsecret HTTP/1.1\r\nHost: a\r\n\r\n",
)  # fmt: skip


class HttpFuzz:
    """Sends to one server.

    Args:
        address: (host, port) of its HTTP.
    """

    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address

    def json(self, random: Random) -> Answer:
        """A mutated request in JSON, or bytes that are none."""
        request = right_request(random)
        if random.random() < RAW_SHARE:
            body = random.choice(RAW_BODIES)
            return self._post(_path(request.model), body, {}, f"raw {body[:60]!r} of {len(body)} bytes")
        values = request.json()
        changes = [mutate(random, values) for _ in range(random.choice([1, 1, 2, 3]))]
        body = json.dumps(values).encode()
        headers = {}
        if random.random() < 0.02:
            headers["Content-Encoding"] = random.choice(["gzip", "deflate", "br", "x"])
        if random.random() < 0.02:
            headers["Content-Length"] = str(len(body) - random.choice([1, 5]))
        return self._post(_path(request.model), body, headers, _shown(request.model, changes, body))

    def binary(self, random: Random) -> Answer:
        """A request whose tensors follow its JSON, with sizes that lie now and then."""
        request = right_request(random)
        values = request.json()
        changes = [mutate(random, values) for _ in range(random.choice([0, 0, 1]))]
        inputs = values.get("inputs")
        blob = b"".join(_take_tensor(random, one) for one in (inputs if isinstance(inputs, list) else []))
        head = json.dumps(values).encode()
        claimed: Any = len(head)
        if random.random() < 0.1:
            claimed = random.choice((*HEADER_SIZES, len(head) - 1, len(head) + 1, len(head) + len(blob)))
        headers = {"Inference-Header-Content-Length": str(claimed)}
        if random.random() < 0.02:
            headers["Content-Encoding"] = random.choice(["gzip", "deflate"])
        return self._post(_path(request.model), head + blob, headers, _shown(request.model, changes, head))

    def generate(self, random: Random) -> Answer:
        """The endpoints for one flat object, streamed or not."""
        keys = ["query", "history", "items", "item_ids", "top_k", "id", "parameters", "text_input", ""]
        values: JsonObject = {
            key: random.choice([random.choice(TEXTS), list(TEXTS[:3]), 1, None, {}, [[]], True])
            for key in random.sample(keys, random.randint(0, 5))
        }
        if random.random() < 0.5:
            values |= {"query": "lamp", "history": ["lamp 0"], "items": ["lamp 0", "lamp 1"]}
        body = json.dumps(values).encode()
        path = f"/v2/models/{random.choice(['rank', 'ranker'])}/{random.choice(['generate', 'generate_stream'])}"
        return self._post(path, body, {}, _shown(path, [], body))

    def raw(self, random: Random) -> Answer:
        """Bytes that are hardly HTTP."""
        line = random.choice(RAW_LINES)
        with socket.create_connection(self._address, timeout=2) as connection:
            try:
                connection.sendall(line)
                answer = connection.recv(KEPT_BYTES)
            except TimeoutError:
                return Answer("left open", "", repr(line[:SHOWN_BYTES]))
        words = answer.split(b" ", 2)
        status = words[1].decode("latin-1") if len(words) > 1 and words[0].startswith(b"HTTP/") else "closed"
        return Answer(status, answer.decode("utf-8", "replace"), repr(line[:SHOWN_BYTES]))

    def hang_up(self, random: Random) -> Answer:
        """A right request whose client goes before it is answered, in order or not."""
        request = right_request(random)
        body = json.dumps(request.json()).encode()
        head = f"POST {_path(request.model)} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        sent = head + body
        with socket.create_connection(self._address, timeout=3) as connection:
            connection.sendall(sent[: random.choice([len(sent), len(sent), len(sent) // 2])])
            if random.random() < 0.5:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.settimeout(random.choice([0.001, 0.005, 0.015]))
            try:
                answer = connection.recv(KEPT_BYTES)
            except TimeoutError:
                answer = b""
        return Answer("hung up", answer.decode("utf-8", "replace"), f"{request.model} hung up")

    def _post(self, path: str, body: bytes, headers: Mapping[str, str], shown: str) -> Answer:
        connection = http.client.HTTPConnection(*self._address, timeout=ANSWER_SECONDS)
        try:
            connection.putrequest("POST", path)
            for name, value in ({"Content-Length": str(len(body))} | dict(headers)).items():
                connection.putheader(name, value)
            connection.endheaders()
            connection.send(body)
            answer = connection.getresponse()
            return Answer(str(answer.status), answer.read(KEPT_BYTES).decode("utf-8", "replace"), shown)
        except (OSError, http.client.HTTPException) as error:
            return Answer(NO_ANSWER, f"{type(error).__name__}: {error}", shown)
        finally:
            connection.close()


def packed(values: Any, datatype: Any) -> bytes:
    """Elements as raw bytes; one that does not fit is replaced by an edge of its type."""
    if not isinstance(values, list):
        return b""
    return b"".join(_packed_element(value, datatype) for value in values)


def _packed_element(value: Any, datatype: Any) -> bytes:
    if datatype == "BYTES":
        text = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else b"?"
        return struct.pack("<I", len(text)) + text
    number = value if isinstance(value, int | float) and math.isfinite(value) else 0
    if datatype == "BOOL":
        return bytes([bool(number)])
    if datatype == "FP32":
        return struct.pack("<f", max(-3e38, min(3e38, number)))
    kind, bits = ("<q", 63) if datatype == "INT64" else ("<i", 31)
    return struct.pack(kind, max(-(2**bits), min(2**bits - 1, int(number))))


def _take_tensor(random: Random, one: Any) -> bytes:
    """An input's data, moved out of its JSON."""
    if not isinstance(one, dict):
        return b""
    values = one.pop("data", [])
    if isinstance(values, list) and random.random() < 0.3:
        values = hostile_data(random, one.get("datatype"), len(values))
    content = packed(values, one.get("datatype"))
    size: Any = len(content)
    if random.random() < 0.12:
        size = random.choice((*TENSOR_SIZES, size + 1, max(0, size - 1), 2 * size))
    if random.random() < 0.05:
        content = content[: len(content) // 2]
    if random.random() < 0.05 and content:
        content = struct.pack("<I", random.choice([0, 2**31, 2**32 - 1])) + content[4:]
    if random.random() < 0.03:
        content += random.randbytes(40)
    parameters = one.get("parameters")
    one["parameters"] = (parameters if isinstance(parameters, dict) else {}) | {"binary_data_size": size}
    return content


def _path(model: str) -> str:
    return f"/v2/models/{model}/infer"


def _shown(what: str, changes: list[str], body: bytes) -> str:
    return f"{what} [{', '.join(changes)}] {body[:SHOWN_BYTES].decode('utf-8', 'replace')}"
