"""What goes to a gateway: every route that its own OpenAPI page names, with bodies, paths and headers gone wrong.

A bad request is answered with 4xx, in JSON where a route was reached. 500 is a fault of the gateway, whatever was sent.
"""

import copy
import http.client
import json
import secrets
import socket
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any
from urllib.parse import quote

from loadtests.fuzz.http_requests import RAW_BODIES, RAW_LINES, RAW_SHARE, SHOWN_BYTES
from loadtests.fuzz.record import NO_ANSWER, Answer
from loadtests.fuzz.values import FLOATS, INTEGERS, TEXTS

ANSWER_SECONDS = 12.0
KEPT_BYTES = 20_000
ADMIN_KEY = {"TRITONRANK_ADMIN_KEY": secrets.token_urlsafe(24)}
"""Of the gateway that is fuzzed: a door that is closed keeps whatever is behind it from being tried."""
PAGES = ("/", "/docs", "/openapi.json", "/playground/", "/storefront/", "/models", "/nothing")
"""The OpenAPI page does not name them: pages for people, and a second name of a route."""
TUNING = "/adapt"
SIDE_PATHS = ("/metrics", "/health/live", "/health/ready", "/reference", TUNING, "/nothing")
"""Of the port for those who run it."""
METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE", "X" * 40)
PARTS: Sequence[str] = (
    "item-00", "u1", "", "..", "../../secret", "a/b/c", "%", "%00", "\0", "\n", " ", "\u202e", "\U0001f98a", "x" * 257,
    "x" * 6_000, '"', "'; DROP TABLE events;--", "{}", "%2e%2e%2f", "-1", "nan",
)  # fmt: skip
"""Of a path."""
QUERIES: Sequence[str] = (
    "", "size=5", "size=-1", "size=1e9", "size=", "size=5&size=6", "filters={", "filters={}", 'filters={"brand":[[]]}',
    "log=true", "log=1", "x=1", "=", "&&&", "%", "%ff=%fe", "filters=" + "%5B" * 1_500, "size=\u0665",
)  # fmt: skip
HEADERS: Sequence[tuple[str, str]] = (
    ("X-Deadline-Ms", "1"), ("X-Deadline-Ms", "0"), ("X-Deadline-Ms", "-5"), ("X-Deadline-Ms", "1e3"),
    ("X-Deadline-Ms", "9" * 400), ("X-Deadline-Ms", "\xb2"), ("X-Request-Id", "x" * 5_000), ("X-Request-Id", "\xff"),
    ("X-User-Id", ""), ("X-User-Id", "\xff\xfe"), ("X-User-Id", "x" * 9_000), ("Content-Type", "text/plain"),
    ("Content-Type", ""), ("Content-Type", "application/json; charset=utf-16"), ("Content-Encoding", "gzip"),
    ("Authorization", "Bearer"), ("Authorization", "Bearer " + "x" * 8_000), ("Accept", "\xff"),
    ("traceparent", "00-" + "0" * 32 + "-" + "0" * 16 + "-01"), ("traceparent", "x" * 300), ("Expect", "100-continue"),
    ("Origin", "http://elsewhere.example"), ("Range", "bytes=0-"), ("If-None-Match", "*"),
    ("Cookie", "a=" + "b" * 4_000), ("Content-Length", "x"), ("Content-Length", "-1"),
    ("Content-Length", "99999999999999999999"),    ("Transfer-Encoding", "chunked"),
)  # fmt: skip
LONG_LIST = 1_500
FAULTS = (500, 424)
"""Of the gateway's own; the second is what the dialect of TEI says for it."""


@dataclass(frozen=True)
class Operation:
    """A route as the OpenAPI page has it."""

    method: str
    path: str
    examples: tuple[Any, ...]
    is_lines: bool
    """the body is JSON lines, not JSON"""


def operations_of(page: Mapping[str, Any]) -> list[Operation]:
    """Every route of an OpenAPI page."""
    found = []
    for path, methods in page["paths"].items():
        for method, said in methods.items():
            content = said.get("requestBody", {}).get("content", {})
            examples = [one["value"] for body in content.values() for one in body["examples"].values()]
            is_lines = "application/x-ndjson" in content
            found.append(Operation(method.upper(), path, tuple(one for one in examples if one is not None), is_lines))
    return found


class GatewayFuzz:
    """Sends to one gateway.

    Args:
        address: (host, port) of its dialects.
        side: (host, port) of its metrics and health.
    """

    def __init__(self, address: tuple[str, int], side: tuple[str, int]) -> None:
        self._address, self._side = address, side
        page = _send(address, "GET", "/openapi.json", b"", {}, "", most=2**24)
        self._operations = operations_of(json.loads(page.text))
        self._settings = json.loads(_send(side, "GET", TUNING, b"", {}, "").text)["settings"]
        self._with_bodies = [one for one in self._operations if one.examples]

    @property
    def operations(self) -> Sequence[Operation]:
        return self._operations

    def json(self, random: Random) -> Answer:
        """A body that is right but for up to three things, or bytes that are none."""
        one = random.choice(self._with_bodies)
        path = _filled(random, one.path, is_hostile=False)
        if random.random() < RAW_SHARE:
            body = random.choice(RAW_BODIES)
            return self._send(one.method, path, body, {}, f"raw {body[:60]!r} of {len(body)} bytes")
        value = copy.deepcopy(random.choice(one.examples))
        changes = [mutate_json(random, value) for _ in range(random.choice([0, 1, 1, 2, 3]))]
        body = json.dumps(value).encode()
        if one.is_lines:
            body = b"\n".join([body] * random.choice([1, 3, 200])) + random.choice([b"", b"\n{", b"\n\n\xff"])
        return self._send(one.method, path, body, _some_headers(random, 0.1), f"[{', '.join(changes)}] {_cut(body)}")

    def tuning(self, random: Random) -> Answer:
        """Settings that change while it serves, gone wrong; what was taken of them is taken back."""
        value = copy.deepcopy(self._settings)
        changes = [mutate_json(random, value) for _ in range(random.choice([1, 2, 3]))]
        body = random.choice(RAW_BODIES) if random.random() < RAW_SHARE else json.dumps(value).encode()
        answer = _send(self._side, "PUT", TUNING, body, {}, f"[{', '.join(changes)}] {_cut(body)}")
        _send(self._side, "PUT", TUNING, json.dumps(self._settings).encode(), {}, "")
        return answer

    def paths(self, random: Random) -> Answer:
        """Other methods, paths and queries than a route has; pages and what lies on the private port, too."""
        if random.random() < 0.15:
            path, address = random.choice(SIDE_PATHS), self._side
        elif random.random() < 0.2:
            path, address = random.choice(PAGES) + random.choice(["", quote(random.choice(PARTS))]), self._address
        else:
            path, address = _filled(random, random.choice(self._operations).path, is_hostile=True), self._address
        if random.random() < 0.5:
            path += "?" + quote(random.choice(QUERIES), safe="=&%{}[]")
        method = random.choice(METHODS)
        body = random.choice([b"", b"", b"{}", b"[]", b"{"])
        return _send(address, method, path, body, _some_headers(random, 0.2), _cut(body))

    def headers(self, random: Random) -> Answer:
        """A right body under wrong headers."""
        one = random.choice(self._operations)
        body = json.dumps(random.choice(one.examples)).encode() if one.examples else b""
        path = _filled(random, one.path, is_hostile=False)
        return self._send(one.method, path, body, _some_headers(random, 1.0), _cut(body))

    def raw(self, random: Random) -> Answer:
        """Bytes that are hardly HTTP."""
        line = random.choice(RAW_LINES)
        with socket.create_connection(random.choice([self._address, self._side]), timeout=2) as connection:
            try:
                connection.sendall(line)
                answer = connection.recv(KEPT_BYTES)
            except TimeoutError:
                return Answer("left open", "", repr(line[:SHOWN_BYTES]))
        words = answer.split(b" ", 2)
        status = words[1].decode("latin-1") if len(words) > 1 and words[0].startswith(b"HTTP/") else "closed"
        return Answer(status, answer.decode("utf-8", "replace"), repr(line[:SHOWN_BYTES]), status != "500")

    def hang_up(self, random: Random) -> Answer:
        """A right request whose client goes in the middle of it, or before it is answered."""
        one = random.choice(self._with_bodies)
        body = json.dumps(random.choice(one.examples)).encode()
        path = _filled(random, one.path, is_hostile=False)
        sent = f"{one.method} {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
        with socket.create_connection(self._address, timeout=3) as connection:
            connection.sendall(sent[: random.choice([len(sent), len(sent), len(sent) // 2])])
            if random.random() < 0.5:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.settimeout(random.choice([0.001, 0.005, 0.015]))
            try:
                answer = connection.recv(KEPT_BYTES)
            except TimeoutError:
                answer = b""
        return Answer("hung up", answer.decode("utf-8", "replace"), f"{one.method} {path} hung up")

    def _send(self, method: str, path: str, body: bytes, headers: Mapping[str, str], shown: str) -> Answer:
        return _send(self._address, method, path, body, headers, shown)


def mutate_json(random: Random, value: Any) -> str:
    """Change one place of a value, somewhere inside; the name of the change."""
    holder = value
    while True:
        inner = [one for one in (holder.values() if isinstance(holder, dict) else holder) if one and _holds(one)]
        if not inner or random.random() < 0.4:
            break
        holder = random.choice(inner)
    keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
    change = random.choice(["replace", "replace", "replace", "drop", "add", "many", "nest", "rename"])
    if not keys or change == "add":
        change = "add"
        if isinstance(holder, dict):
            holder[random.choice(["x", "", "__class__", "items", "user_id", "a" * 70_000])] = _hostile(random)
        else:
            holder.append(_hostile(random))
        return change
    key = random.choice(keys)
    if change == "replace":
        holder[key] = _hostile(random)
    elif change == "drop":
        del holder[key]
    elif change == "many":
        holder[key] = [holder[key]] * random.choice([0, 2, 3] if _holds(holder[key]) else [0, 2, 101, LONG_LIST])
    elif change == "nest":
        for _ in range(random.choice([1, 30, 250])):
            holder[key] = random.choice([[holder[key]], {"a": holder[key]}])
    elif isinstance(holder, dict):
        holder[f"{key} "] = holder.pop(key)
    return change


def _holds(value: Any) -> bool:
    return isinstance(value, dict | list)


def _hostile(random: Random) -> Any:
    kind = random.choice(["text", "text", "integer", "float", "shape"])
    if kind == "text":
        return random.choice(TEXTS)
    if kind == "integer":
        return random.choice(INTEGERS)
    return random.choice(FLOATS) if kind == "float" else random.choice([[], {}, [[]], [None], {"": {}}, True, [{}] * 3])


def _filled(random: Random, path: str, *, is_hostile: bool) -> str:
    """A route's path with something in its place for a part."""
    parts = []
    for part in path.split("/"):
        given = random.choice(PARTS) if is_hostile else random.choice(PARTS[:2])
        parts.append(quote(given, safe="/%" if random.random() < 0.5 else "") if part.startswith("{") else part)
    return "/".join(parts)


def _some_headers(random: Random, share: float) -> dict[str, str]:
    return dict(random.sample(HEADERS, random.choice([1, 1, 2]))) if random.random() < share else {}


def _cut(body: bytes) -> str:
    return body[:SHOWN_BYTES].decode("utf-8", "replace")


def _send(
    address: tuple[str, int],
    method: str,
    path: str,
    body: bytes,
    headers: Mapping[str, str],
    shown: str,
    most: int = KEPT_BYTES,
) -> Answer:
    told = f"{method} {path[:80]} {dict(headers)} {shown}"
    connection = http.client.HTTPConnection(*address, timeout=ANSWER_SECONDS)
    try:
        own = {"Content-Length": str(len(body)), "X-API-Key": ADMIN_KEY["TRITONRANK_ADMIN_KEY"]}
        connection.putrequest(method, path, skip_accept_encoding=True)
        for name, value in (own | dict(headers)).items():
            connection.putheader(name, value.encode("latin-1", "replace"))
        connection.endheaders()
        connection.send(body)
        answer = connection.getresponse()
        text = answer.read(most).decode("utf-8", "replace")
        is_expected = answer.status not in FAULTS and (answer.status < 400 or not text or _is_told(answer, text))
        return Answer(str(answer.status), text, told, is_expected)
    except (OSError, http.client.HTTPException) as error:
        return Answer(NO_ANSWER, f"{type(error).__name__}: {error}", told)
    finally:
        connection.close()


def _is_told(answer: http.client.HTTPResponse, text: str) -> bool:
    """Whether an error is worded for programs, or at least for people."""
    return "json" in answer.headers.get("Content-Type", "") or "text/plain" in answer.headers.get("Content-Type", "")
