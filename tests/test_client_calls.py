"""One behaviour, four clients: every test here runs blocking and asyncio, over HTTP and gRPC, against a server that
misbehaves on purpose. What differs by protocol is said in the tables.
"""

import asyncio
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from misbehaving_server import (
    BROKEN,
    DEAD_STUB,
    EXPIRED,
    INVALID,
    QUEUE_FULL,
    RIGHT,
    STOPPING,
    UNKNOWN_MODEL,
    UNLOADED_MODEL,
    Behaviour,
    Drip,
    Fail,
    HangingUp,
    Malformed,
    MisbehavingServer,
    Raw,
    Silent,
    Slow,
)
from refused_ports import refused_address
from tritonrank_client import (
    NO_TEXT_SCORE,
    TLS,
    AsyncRankClient,
    DeadlineExceeded,
    Health,
    InvalidRequest,
    Overloaded,
    RankClient,
    RankedItem,
    RankError,
    Retry,
    ServerFault,
    TensorInfo,
    Unavailable,
)

QUICK = Retry(attempts=3, initial_seconds=0.005, max_seconds=0.01)
PATIENT_SECONDS = 10.0  # a deadline that no test should reach


class Driven:
    """An AsyncRankClient in blocking clothes, so that one test can drive all four clients."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._runner = asyncio.Runner()
        self._client = AsyncRankClient(*arguments, **options)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda **arguments: self._runner.run(getattr(self._client, name)(**arguments))

    def finish(self) -> None:
        self._runner.run(self._client.close())
        self._runner.close()


class Face:
    """One of the four clients: how to open it on a server, or on a bare address."""

    def __init__(self, style: str, protocol: str) -> None:
        self.protocol = protocol
        self._style = style
        self._finish: list[Callable[[], None]] = []

    def open(self, server: MisbehavingServer | str, **options: Any) -> Any:
        url = server.urls[self.protocol] if isinstance(server, MisbehavingServer) else f"{self.protocol}://{server}"
        client: Any = (RankClient if self._style == "sync" else Driven)(
            url, **{"retry": QUICK, "timeout": PATIENT_SECONDS, **options}
        )
        self._finish.append(client.close if self._style == "sync" else client.finish)
        return client

    def close(self) -> None:
        for finish in self._finish:
            finish()


FOUR = [("sync", "http"), ("async", "http"), ("sync", "grpc"), ("async", "grpc")]


@pytest.fixture(params=FOUR, ids="-".join)
def face(request: pytest.FixtureRequest) -> Iterator[Face]:
    face = Face(*request.param)
    yield face
    face.close()


@pytest.fixture
def http_face(request: pytest.FixtureRequest) -> Iterator[Face]:
    face = Face(request.param, "http")
    yield face
    face.close()


@pytest.fixture
def server() -> Iterator[MisbehavingServer]:
    server = MisbehavingServer()
    yield server
    server.close()


# --- answers ---------------------------------------------------------------------------------------------------------


def test_rank_sends_the_contract_and_returns_the_ranking(server: MisbehavingServer, face: Face) -> None:
    items = ["ab", {"title": "Amélie", "year": 2001}, "abcd", "ab"]
    result = face.open(server).rank(
        query="naïve",
        history=["seen", {"title": "Ö"}],
        items=items,
        item_ids=["7", "8", "9", "7"],
        top_k=3,
        request_id="r-1",
    )
    assert result.ranking == (
        RankedItem(1, 34.0, items[1], "8"),
        RankedItem(2, 4.0, "abcd", "9"),
        RankedItem(0, 2.0, "ab", "7"),
    )
    assert (result.indices, result.scores) == ((1, 2, 0), (34.0, 4.0, 2.0))
    assert (result.artifact, result.attempts) == ("fake-1", 1)
    assert 0 < result.seconds < PATIENT_SECONDS

    (asked,) = server.asked
    assert (asked.protocol, asked.model, asked.version, asked.request_id) == (face.protocol, "rank", "", "r-1")
    assert asked.inputs == {
        "query": ["naïve".encode()],
        "history": [b"seen", '{"title": "Ö"}'.encode()],
        "items": [b"ab", '{"title": "Amélie", "year": 2001}'.encode(), b"abcd", b"ab"],
        "item_ids": [b"7", b"8", b"9", b"7"],
        "top_k": [3],
    }
    assert asked.shapes == {"query": [1], "history": [2], "items": [4], "item_ids": [4], "top_k": [1]}


def test_what_is_left_out_stays_out(server: MisbehavingServer, face: Face) -> None:
    result = face.open(server, model_version="2").rank(items=["one"])
    (asked,) = server.asked
    assert asked.version == "2"
    assert asked.inputs == {"query": [b""], "history": [], "items": [b"one"], "top_k": [0]}
    assert asked.shapes["history"] == [0]
    assert result.ranking == (RankedItem(0, 3.0, "one", None),)


def test_a_thousand_long_items_pass_the_message_limits(server: MisbehavingServer, face: Face) -> None:
    items = ["x" * 6000] * 1000  # 6 MB: above gRPC's own limit of 4 MB
    assert face.open(server).rank(items=items).indices == tuple(range(1000))


def test_health_of_a_well_server(server: MisbehavingServer, face: Face) -> None:
    health = face.open(server).health()
    assert health == Health(live=True, ready=True, model_ready=True, reason="")
    assert health


@pytest.mark.parametrize(
    ("field", "expected", "reason"),
    [
        ("live", Health(False, False, False), "it is not live"),
        ("ready", Health(True, False, False), "it is not ready"),
        ("model_ready", Health(True, True, False), "model 'rank' is not ready"),
    ],
)
def test_health_says_what_is_not_ready(
    server: MisbehavingServer, face: Face, field: str, expected: Health, reason: str
) -> None:
    setattr(server, field, False)
    health = face.open(server).health()
    assert (health.live, health.ready, health.model_ready) == (expected.live, expected.ready, expected.model_ready)
    assert reason in health.reason
    assert not health


def test_health_of_an_unknown_model(server: MisbehavingServer, face: Face) -> None:
    health = face.open(server, model="other").health()
    assert (health.live, health.ready, health.model_ready) == (True, True, False)
    assert "other" in health.reason


def test_health_of_no_server_is_told_and_not_raised(face: Face) -> None:
    address = refused_address()
    health = face.open(address).health()
    assert (health.live, health.ready, health.model_ready) == (False, False, False)
    assert address in health.reason
    assert "no connection" in health.reason


def test_model_info_is_the_same_over_both_protocols(server: MisbehavingServer, face: Face) -> None:
    info = face.open(server).model_info()
    assert (info.name, info.versions, info.platform) == ("rank", ("1", "2"), "ensemble")
    assert info.inputs == (TensorInfo("query", "BYTES", (1,)), TensorInfo("items", "BYTES", (-1,)))
    assert info.outputs == (TensorInfo("scores", "FP32", (-1,)),)
    assert info.config["max_batch_size"] == 0
    assert info.config["input"][0]["dims"] == [-1]
    assert info.config["input"][0]["data_type"] == "TYPE_STRING"
    assert info.config["parameters"] == {"artifact": {"string_value": "demo"}}
    assert info.parameters == {"artifact": "demo"}


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("behaviour", "error", "phrase", "attempts"),
    [
        (QUEUE_FULL, Overloaded, "overloaded", 3),
        (EXPIRED, DeadlineExceeded, "in the server's queue", 1),
        (INVALID, InvalidRequest, "items[3]: not a JSON object", 1),
        (BROKEN, ServerFault, "illegal memory access", 1),
        (UNKNOWN_MODEL, Unavailable, "does not serve this model", 1),
        (UNLOADED_MODEL, Unavailable, "model is not ready", 3),
        (DEAD_STUB, Unavailable, "a process of the server has died", 3),
        (STOPPING, Unavailable, "takes no requests now", 3),
        # What a caller wrote must not be taken for the server's state.
        (Fail(400, "INVALID_ARGUMENT", "items[0]: Exceeds maximum queue size"), InvalidRequest, "refused", 1),
    ],
    ids=lambda value: value.message[-30:] if isinstance(value, Fail) else None,
)
def test_errors_of_the_server(
    server: MisbehavingServer, face: Face, behaviour: Fail, error: type[RankError], phrase: str, attempts: int
) -> None:
    server.behave(behaviour)
    client = face.open(server)
    with pytest.raises(RankError) as caught:
        client.rank(items=["a"])
    assert type(caught.value) is error
    assert phrase in str(caught.value)
    assert server.urls[face.protocol] in str(caught.value)
    assert "model 'rank'" in str(caught.value)
    assert caught.value.attempts == len(server.asked) == attempts
    server.behave(RIGHT)
    assert client.rank(items=["a"]).indices == (0,), "the client must serve on after an error"


BREACHES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "indices: missing": lambda outputs: outputs | {"indices": None},
    "scores: missing": lambda outputs: outputs | {"scores": None},
    "artifact: missing": lambda outputs: outputs | {"artifact": None},
    "distinct positions": lambda outputs: outputs | {"indices": ("INT32", [0, 0, 1])},
    "positions among 3 items": lambda outputs: outputs | {"indices": ("INT32", [0, 1, 3])},
    "expected distinct": lambda outputs: outputs | {"indices": ("INT32", [0, 1, -1])},
    "expected 3 for 3 different items, got 2": lambda outputs: outputs | {"indices": ("INT32", [0, 1])},
    "expected 3 for 3 different items, got 0": lambda outputs: outputs | {"indices": ("INT32", [])},
    "one per index (3), got 2": lambda outputs: outputs | {"scores": ("FP32", [2.0, 1.0])},
    "highest first": lambda outputs: outputs | {"scores": ("FP32", [1.0, 2.0, 3.0])},
    "expected numbers": lambda outputs: outputs | {"scores": ("FP32", [float("nan")] * 3)},
    "got int32": lambda outputs: outputs | {"scores": ("INT32", [3, 2, 1])},
    "got float32": lambda outputs: outputs | {"indices": ("FP32", [0.0, 1.0, 2.0])},
    "expected UTF-8": lambda outputs: outputs | {"artifact": ("BYTES", [b"\xff"])},
    "one name, got 2": lambda outputs: outputs | {"artifact": ("BYTES", [b"a", b"b"])},
}
BREACHES_WITH_IDS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "expected 2 for 2 different items, got 1": lambda outputs: (
        outputs | {"indices": ("INT32", [0]), "scores": ("FP32", [1.0])}
    ),
    "each of the item_ids once": lambda outputs: outputs | {"indices": ("INT32", [0, 1])},
}


@pytest.mark.parametrize("phrase", [*BREACHES, *BREACHES_WITH_IDS])
def test_an_answer_that_breaks_the_contract_is_a_server_fault(
    server: MisbehavingServer, face: Face, phrase: str
) -> None:
    server.behave(Malformed((BREACHES | BREACHES_WITH_IDS)[phrase]))
    with pytest.raises(ServerFault, match="breaks the contract") as caught:
        face.open(server).rank(items=["a", "b", "c"], item_ids=["7", "7", "8"] if phrase in BREACHES_WITH_IDS else None)
    assert phrase in str(caught.value)
    assert caught.value.attempts == len(server.asked) == 1


def test_a_single_score_that_is_no_number_is_a_server_fault(server: MisbehavingServer, face: Face) -> None:
    server.behave(Malformed(lambda outputs: outputs | {"scores": ("FP32", [float("nan")])}))
    with pytest.raises(ServerFault, match="scores: expected numbers"):
        face.open(server).rank(items=["a"])


def http_answer(body: bytes, *headers: str, status: str = "200 OK") -> Raw:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
    return Raw("\r\n".join(lines).encode() + body)


@pytest.mark.parametrize("http_face", ["sync", "async"], indirect=True)
@pytest.mark.parametrize(
    ("behaviour", "error", "attempts"),
    [
        (Raw(), Unavailable, 3),
        (Raw(b"HTTP/1.1 200 OK\r\nContent-Le"), Unavailable, 3),
        (Raw(b'HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{"outputs"'), Unavailable, 3),
        (http_answer(b"<html>busy</html>", status="503 Service Unavailable"), Unavailable, 3),
        (http_answer(b"<html>busy</html>", status="429 Too Many Requests"), Overloaded, 3),
        (http_answer(b"<html>slow</html>", status="504 Gateway Timeout"), DeadlineExceeded, 1),
        (http_answer(b"", status="401 Unauthorized"), InvalidRequest, 1),
        (http_answer(b"<html>hello</html>"), ServerFault, 1),
        (http_answer(b""), ServerFault, 1),
        (http_answer(b"[]"), ServerFault, 1),
        (http_answer(b'{"outputs": 3}'), ServerFault, 1),
        (http_answer(b'{"outputs": [{"name": "indices"}]}'), ServerFault, 1),
        (http_answer(b'{"outputs": []}', "Inference-Header-Content-Length: soon"), ServerFault, 1),
        (Raw(b"SSH-2.0-OpenSSH_9.2\r\n"), ServerFault, 1),
    ],
    ids=lambda value: repr(value.sent[:60]) if isinstance(value, Raw) else None,
)
def test_http_answers_that_are_broken(
    server: MisbehavingServer, http_face: Face, behaviour: Raw, error: type[RankError], attempts: int
) -> None:
    server.behave(behaviour)
    client = http_face.open(server)
    with pytest.raises(RankError) as caught:
        client.rank(items=["a"])
    assert type(caught.value) is error
    assert caught.value.attempts == len(server.asked) == attempts
    server.behave(RIGHT)
    assert client.rank(items=["a"]).indices == (0,)


def test_a_refused_connection_is_not_a_timeout(face: Face) -> None:
    address = refused_address()
    started = time.monotonic()
    with pytest.raises(Unavailable, match="no connection") as caught:
        face.open(address).rank(items=["a"])
    assert time.monotonic() - started < 2
    assert address in str(caught.value)
    assert caught.value.attempts == 3
    assert caught.value.__cause__ is not None


def test_an_unknown_host_is_unavailable(face: Face) -> None:
    with pytest.raises(Unavailable, match="no connection"):
        face.open("no-such-host.invalid:8000", retry=Retry(attempts=1)).rank(items=["a"])


def test_a_server_that_hangs_up_is_unavailable(face: Face) -> None:
    hanging_up = HangingUp()
    try:
        with pytest.raises(Unavailable):
            face.open(hanging_up.address).rank(items=["a"])
        assert hanging_up.accepted >= 1
    finally:
        hanging_up.close()


def test_a_silent_server_is_a_timeout(face: Face) -> None:
    silent = Silent()
    try:
        started = time.monotonic()
        with pytest.raises(DeadlineExceeded) as caught:
            face.open(silent.address).rank(items=["a"], timeout=0.2)
        assert 0.15 < time.monotonic() - started < 1
        assert caught.value.attempts == 1
    finally:
        silent.close()


def test_the_other_protocol_on_the_port_is_told(server: MisbehavingServer, face: Face) -> None:
    (other,) = (url for protocol, url in server.urls.items() if protocol != face.protocol)
    with pytest.raises(ServerFault, match="speaks the protocol"):
        face.open(other.partition("://")[2]).rank(items=["a"])


# --- deadlines -------------------------------------------------------------------------------------------------------


def test_a_slow_server_exceeds_the_deadline_once(server: MisbehavingServer, face: Face) -> None:
    server.behave(Slow(1.0), RIGHT)
    client = face.open(server)
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded, match="the deadline passed"):
        client.rank(items=["a"], timeout=0.15)
    assert 0.1 < time.monotonic() - started < 1.0, "before the server's answer"
    assert len(server.asked) == 1
    assert client.rank(items=["b"]).ranking[0].item == "b", "no late answer may reach the next call"


@pytest.mark.parametrize("http_face", ["sync", "async"], indirect=True)
def test_a_dripping_answer_cannot_outlast_the_deadline(server: MisbehavingServer, http_face: Face) -> None:
    server.behave(Drip(0.02))
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        http_face.open(server).rank(items=["a"], timeout=0.2)
    assert time.monotonic() - started < 1


@pytest.mark.parametrize("http_face", ["sync", "async"], indirect=True)
def test_a_deadline_during_the_sending_leaves_the_client_usable(server: MisbehavingServer, http_face: Face) -> None:
    server.reads_bodies = False
    client = http_face.open(server)
    with pytest.raises(DeadlineExceeded):
        client.rank(items=["x" * 20_000_000], timeout=0.2)  # more than the sockets' buffers hold
    server.reads_bodies = True
    assert client.rank(items=["a"], timeout=2).indices == (0,)


def test_the_server_is_told_what_is_left_of_the_deadline(server: MisbehavingServer, face: Face) -> None:
    server.behave(QUEUE_FULL, QUEUE_FULL, RIGHT)
    pause = Retry(attempts=3, initial_seconds=0.05, max_seconds=0.05, jitter=0)
    result = face.open(server, retry=pause).rank(items=["a"], timeout=2.5)
    assert result.attempts == 3
    told = [asked.parameters["timeout"] for asked in server.asked]
    assert all(isinstance(microseconds, int) for microseconds in told)
    assert 2_000_000 < told[0] <= 2_500_000
    assert told[0] - told[1] >= 49_000
    assert told[1] - told[2] >= 49_000


def test_retries_stop_where_the_deadline_would_pass(server: MisbehavingServer, face: Face) -> None:
    """No pause ends near the deadline: an attempt that begins just before it is one that runs out of time."""
    server.behave(QUEUE_FULL)
    pause = Retry(attempts=100, initial_seconds=0.6, max_seconds=0.6, jitter=0)
    started = time.monotonic()
    with pytest.raises(Overloaded, match="no time left") as caught:
        face.open(server, retry=pause).rank(items=["a"], timeout=1.0)
    assert time.monotonic() - started < 10, "a hundred attempts would take a minute"
    assert 1 <= caught.value.attempts == len(server.asked) <= 2


# --- retries ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("behaviour", [QUEUE_FULL, STOPPING], ids=["queue full", "stopping"])
def test_a_passing_trouble_is_retried(server: MisbehavingServer, face: Face, behaviour: Behaviour) -> None:
    server.behave(behaviour, behaviour, RIGHT)
    result = face.open(server).rank(items=["a"])
    assert (result.attempts, len(server.asked)) == (3, 3)
    assert server.asked[0].inputs == server.asked[2].inputs


def test_one_attempt_means_no_retry(server: MisbehavingServer, face: Face) -> None:
    server.behave(QUEUE_FULL)
    with pytest.raises(Overloaded, match="Gave up after 1 attempt "):
        face.open(server, retry=Retry(attempts=1)).rank(items=["a"])
    assert len(server.asked) == 1


def test_the_budget_keeps_retries_from_amplifying_an_overload(server: MisbehavingServer, face: Face) -> None:
    server.behave(QUEUE_FULL)
    thrifty = Retry(attempts=3, initial_seconds=0, max_seconds=0, budget_ratio=0.1, budget_burst=4)
    client = face.open(server, retry=thrifty)
    for _ in range(40):
        with pytest.raises(Overloaded):
            client.rank(items=["a"])
    # 40 first attempts, 4 retries from the burst, and one for every ten calls: not 120.
    assert 40 + 4 <= len(server.asked) <= 40 + 4 + 4
    with pytest.raises(Overloaded, match="budget is spent"):
        client.rank(items=["a"])


def test_a_restarted_server_is_found_again(face: Face) -> None:
    first = MisbehavingServer()
    client = face.open(first, retry=Retry(attempts=8, initial_seconds=0.1, max_seconds=0.5))
    client.rank(items=["a"])
    first.close()
    with pytest.raises((Unavailable, DeadlineExceeded)):  # the latter on a crowded machine
        client.rank(items=["a"], timeout=0.3)
    second = MisbehavingServer(ports=first.ports)
    try:
        assert client.rank(items=["a"]).indices == (0,)
        assert len(second.asked) == 1
    finally:
        second.close()


# --- arguments and lifecycle -----------------------------------------------------------------------------------------


def test_a_wrong_request_is_refused_before_it_is_sent(server: MisbehavingServer, face: Face) -> None:
    client = face.open(server)
    for arguments in ({"items": "a"}, {"items": ["a"], "timeout": 0}, {"items": [], "top_k": -1}):
        with pytest.raises(InvalidRequest) as caught:
            client.rank(**arguments)
        assert caught.value.attempts == 0
    assert server.asked == []


def test_no_items_make_an_empty_ranking_without_a_call(face: Face) -> None:
    client = face.open(refused_address())
    for item_ids in (None, []):
        result = client.rank(items=[], item_ids=item_ids, query="a search without hits", top_k=5)
        assert (result.ranking, result.indices, result.scores, result.artifact, result.attempts) == ((), (), (), "", 0)
    client.close()
    with pytest.raises(RuntimeError, match="closed"):
        client.rank(items=[])


def test_ids_come_back_as_they_were_given(server: MisbehavingServer, face: Face) -> None:
    items, item_ids = ["a", "bb", "ccc", "dddd"], [7, "7", np.int64(9), 2**70]
    result = face.open(server).rank(items=items, item_ids=item_ids)
    assert server.asked[0].inputs["item_ids"] == [b"7", b"7", b"9", b"1180591620717411303424"]
    assert [place.item_id for place in result.ranking] == [2**70, 9, "7"], "7 and '7' are one item"
    assert [type(place.item_id) for place in result.ranking] == [int, np.int64, str]


def test_items_without_text_come_last_and_say_so(server: MisbehavingServer, face: Face) -> None:
    scores = [2.5, NO_TEXT_SCORE, NO_TEXT_SCORE]
    server.behave(Malformed(lambda outputs: outputs | {"scores": ("FP32", scores)}))
    result = face.open(server).rank(items=["lamp", "", {"title": ""}])
    assert [place.has_text for place in result.ranking] == [True, False, False]
    assert result.scores == tuple(scores)


def test_headers_reach_the_server_with_every_request(server: MisbehavingServer, face: Face) -> None:
    client = face.open(server, headers={"Authorization": "Bearer abc", "X-Tenant": "7"})
    client.rank(items=["a"])
    client.rank(items=["a"])
    client.health()
    arrived = [asked.headers for asked in server.asked] + [server.probe_headers[0]]
    assert len(arrived) == 3
    for headers in arrived:
        lowered = {name.lower(): value for name, value in headers.items()}
        assert (lowered["authorization"], lowered["x-tenant"]) == ("Bearer abc", "7")


def test_a_closed_client_says_so(server: MisbehavingServer, face: Face) -> None:
    client = face.open(server)
    client.rank(items=["a"])
    client.close()
    client.close()
    for call in (lambda: client.rank(items=["a"]), client.health, client.model_info):
        with pytest.raises(RuntimeError, match="closed"):
            call()
    assert len(server.asked) == 1


@pytest.mark.parametrize("http_face", ["sync", "async"], indirect=True)
def test_http_connections_are_kept_alive(server: MisbehavingServer, http_face: Face) -> None:
    client = http_face.open(server)
    for _ in range(5):
        client.rank(items=["a"])
    assert client.health()
    assert server.connections == 1


def test_an_http_base_path_is_kept(server: MisbehavingServer) -> None:
    with RankClient(server.urls["http"] + "/no/such/base", retry=QUICK) as client:
        health = client.health()
    assert (health.live, bool(health.reason)) == (False, True)


# --- encryption ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def key_and_certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tls")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    subprocess.run(
        [
            *(
                "openssl",
                "req",
                "-x509",
                "-nodes",
                "-days",
                "2",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
            ),
            *("-keyout", key, "-out", certificate, "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"),
        ],
        check=True,
        capture_output=True,
    )
    return key, certificate


@pytest.fixture
def secure_server(key_and_certificate: tuple[Path, Path]) -> Iterator[MisbehavingServer]:
    server = MisbehavingServer(tls=key_and_certificate)
    yield server
    server.close()


def test_tls_with_a_trusted_certificate(
    secure_server: MisbehavingServer, face: Face, key_and_certificate: tuple[Path, Path]
) -> None:
    client = face.open(secure_server, tls=TLS(root_certificates=key_and_certificate[1]))
    assert client.rank(items=["a"]).indices == (0,)
    assert client.health()


def test_tls_with_an_unknown_certificate_is_refused(secure_server: MisbehavingServer, face: Face) -> None:
    with pytest.raises(Unavailable, match="TLS handshake failed") as caught:
        face.open(secure_server).rank(items=["a"])
    assert caught.value.attempts == 1, "an untrusted certificate stays untrusted"
    assert secure_server.asked == []


@pytest.mark.parametrize("http_face", ["sync", "async"], indirect=True)
def test_https_without_verification(secure_server: MisbehavingServer, http_face: Face) -> None:
    assert http_face.open(secure_server, tls=TLS(verify=False)).rank(items=["a"]).indices == (0,)
