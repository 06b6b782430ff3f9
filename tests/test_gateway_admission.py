"""What the gateway takes and refuses, before a Triton that misbehaves on purpose."""

import json
import re
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPResponse
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from gateways import RunningGateway, running_gateway
from misbehaving_server import (
    BROKEN,
    DEAD_STUB,
    EXPIRED,
    QUEUE_FULL,
    RIGHT,
    UNKNOWN_MODEL,
    Fail,
    MisbehavingServer,
    Slow,
)

MOST_IN_FLIGHT = 4
SECRET = "a text that nobody may log"
BODIES: dict[str, dict[str, Any]] = {
    "/v1/rank": {"items": ["a", "bb"]},
    "/rerank": {"query": "q", "texts": ["a", "bb"]},
    "/v1/rerank": {"query": "q", "documents": ["a", "bb"]},
    "/v2/rerank": {"query": "q", "documents": ["a", "bb"]},
    "/score": {"text_1": "q", "text_2": ["a", "bb"]},
    "/v1/ranking": {"query": {"text": "q"}, "passages": [{"text": "a"}, {"text": "bb"}]},
}


@pytest.fixture(scope="module")
def triton() -> Iterator[MisbehavingServer]:
    server = MisbehavingServer()
    yield server
    server.close()


@pytest.fixture(scope="module")
def gateway(triton: MisbehavingServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    flags = (
        "--deadline-s", "5", "--max-in-flight", str(MOST_IN_FLIGHT), "--max-documents", "50",
        "--max-body-bytes", "20000", "--max-characters", "5000", "--cors", "http://shop.example",
    )  # fmt: skip
    with running_gateway(triton.urls["grpc"], tmp_path_factory.mktemp("gateway"), *flags) as running:
        yield running


@pytest.fixture
def http(gateway: RunningGateway, triton: MisbehavingServer) -> Iterator[httpx.Client]:
    triton.behave(RIGHT)
    triton.asked.clear()
    with httpx.Client(base_url=gateway.url, timeout=20) as client:
        yield client


def metric(gateway: RunningGateway, name: str, **labels: str) -> float:
    """The sum of a metric's values with these labels."""
    page = httpx.get(gateway.metrics_url + "/metrics").text
    wanted = {f'{label}="{value}"' for label, value in labels.items()}
    lines = re.findall(rf"^tritonrank_gateway_{name}(?:\{{(.*)\}})? (\S+)$", page, re.MULTILINE)
    return sum(float(value) for told, value in lines if wanted <= set(told.split(",")))


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(
    ("fault", "status", "others", "may_retry"),
    [
        (QUEUE_FULL, 429, {"/score": 503}, True),
        (EXPIRED, 504, {}, False),
        (UNKNOWN_MODEL, 503, {}, True),
        (BROKEN, 500, {"/rerank": 424}, False),
        (
            Fail(400, "INVALID_ARGUMENT", "items[1]: 70000 bytes; the limit is 65536"),
            422,
            {"/score": 400, "/v2/rerank": 400},
            False,
        ),
    ],
    ids=["full", "expired", "unknown", "broken", "invalid"],
)
def test_each_dialect_says_what_the_server_said(
    http: httpx.Client,
    triton: MisbehavingServer,
    path: str,
    fault: Fail,
    status: int,
    others: dict[str, int],
    may_retry: bool,
) -> None:
    triton.behave(fault)
    answer = http.post(path, json=BODIES[path])
    assert answer.status_code == others.get(path, status)
    assert len(triton.asked) == 1, "a refusal is passed on, not asked again"
    assert ("retry-after" in answer.headers) == may_retry
    if may_retry:
        assert int(answer.headers["retry-after"]) >= 1
    told = answer.text
    assert not any(inside in told for inside in ("CUDA", "127.0.0.1", "ensemble", "INVALID_ARGUMENT", "Traceback"))
    if status == 422:
        field = next(name for name in ("items", "texts", "documents", "text_2", "passages") if name in BODIES[path])
        assert f"{field}[1]: 70000 bytes" in told


def test_an_outage_is_waited_out(http: httpx.Client, triton: MisbehavingServer) -> None:
    triton.behave(DEAD_STUB, DEAD_STUB, RIGHT)
    assert http.post("/v1/rank", json=BODIES["/v1/rank"]).status_code == 200
    assert len(triton.asked) == 3


@pytest.mark.parametrize("header", ["X-Deadline-Ms", "x-envoy-expected-rq-timeout-ms"])
def test_the_callers_deadline_is_handed_on(http: httpx.Client, triton: MisbehavingServer, header: str) -> None:
    triton.behave(Slow(1.5))
    began = time.monotonic()
    answer = http.post("/v1/rank", json=BODIES["/v1/rank"], headers={header: "300"})
    assert answer.status_code == 504
    assert time.monotonic() - began < 1.4
    assert 0 < triton.asked[0].parameters["timeout"] <= 300_000


@pytest.mark.parametrize(
    "value",
    [
        "0",
        "-5",
        "soon",
        "1.5",
        "",
        pytest.param("\xb2", id="superscript"),
        pytest.param("9" * 400, id="no float"),
        pytest.param("9" * 5_000, id="no int"),
    ],
)
def test_a_wrong_deadline_is_named(http: httpx.Client, triton: MisbehavingServer, value: str) -> None:
    answer = http.post("/v1/rank", json=BODIES["/v1/rank"], headers={b"X-Deadline-Ms": value.encode("latin-1")})
    assert answer.status_code == 422
    assert "x-deadline-ms" in answer.json()["error"]["message"]
    assert not triton.asked


def test_more_than_fit_are_refused_at_once(
    http: httpx.Client, triton: MisbehavingServer, gateway: RunningGateway
) -> None:
    triton.behave(Slow(1.5))
    http.get("/health")
    before = metric(gateway, "refused_total", reason="overloaded")

    def ask(_: int) -> tuple[int, float]:
        began = time.monotonic()
        answer = httpx.post(gateway.url + "/v1/rank", json=BODIES["/v1/rank"], timeout=20)
        return answer.status_code, time.monotonic() - began

    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(ask, range(10)))
    assert sorted(status for status, _ in answers) == [200] * MOST_IN_FLIGHT + [429] * (10 - MOST_IN_FLIGHT)
    assert max(seconds for status, seconds in answers if status == 429) < 1.4
    assert metric(gateway, "refused_total", reason="overloaded") - before == 10 - MOST_IN_FLIGHT


def test_a_caller_who_hangs_up_frees_the_place(
    http: httpx.Client, triton: MisbehavingServer, gateway: RunningGateway
) -> None:
    triton.behave(Slow(3.0))
    before = metric(gateway, "refused_total", reason="hung_up")
    address = urlsplit(gateway.url)
    body = json.dumps(BODIES["/v1/rank"]).encode()
    head = f"POST /v1/rank HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    callers = [socket.create_connection((str(address.hostname), address.port)) for _ in range(MOST_IN_FLIGHT)]
    for caller in callers:
        caller.sendall(head + body)
    wait_until(lambda: metric(gateway, "in_flight") == MOST_IN_FLIGHT)
    for caller in callers:
        caller.close()
    began = time.monotonic()
    wait_until(lambda: metric(gateway, "in_flight") == 0)
    assert time.monotonic() - began < 1.5
    wait_until(lambda: metric(gateway, "refused_total", reason="hung_up") == before + MOST_IN_FLIGHT)


def test_a_given_up_call_is_cancelled_on_the_wire_where_wanted(triton: MisbehavingServer, tmp_path: Any) -> None:
    seconds = 2.0
    for flags, cancelled in ((("--cancel-on-hang-up",), 1), ((), 0)):
        triton.behave(Slow(seconds))
        triton.gave_up = 0
        with running_gateway(triton.urls["grpc"], tmp_path / str(cancelled), *flags) as own:
            with pytest.raises(httpx.ReadTimeout):
                # Long enough for it to reach Triton on a busy machine, too.
                httpx.post(own.url + "/v1/rank", json=BODIES["/v1/rank"], timeout=1.0)
            if cancelled:
                wait_until(lambda: triton.gave_up == 1)
            else:  # calls that other tests gave up may end meanwhile, so their number says nothing
                time.sleep(seconds)
                assert not triton.gave_up


def test_a_body_that_does_not_come_is_not_waited_for(triton: MisbehavingServer, tmp_path: Any) -> None:
    with running_gateway(triton.urls["grpc"], tmp_path, "--deadline-s", "0.5") as own:
        address = urlsplit(own.url)
        with socket.create_connection((str(address.hostname), address.port), timeout=5) as caller:
            caller.sendall(b"POST /v1/rank HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
            began = time.monotonic()
            answer = HTTPResponse(caller)  # a single recv may end before the body
            answer.begin()
            told = answer.read().decode()
        assert answer.status == 400
        assert "did not come within 0.5 s" in told
        assert 0.4 < time.monotonic() - began < 4


def wait_until(is_so: Any, seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("path", BODIES)
def test_what_is_too_large_is_refused_and_never_sent(http: httpx.Client, triton: MisbehavingServer, path: str) -> None:
    field = next(name for name in ("items", "texts", "documents", "text_2", "passages") if name in BODIES[path])
    http.post(path, json=BODIES[path])
    triton.asked.clear()
    status = {400, 413}
    many = http.post(path, json=BODIES[path] | {field: ["a"] * 51})
    assert many.status_code in status
    assert "51 documents; at most 50" in many.text
    long = http.post(path, json=BODIES[path] | {field: ["a" * 6_000]})
    assert long.status_code in status
    assert "at most 5000" in long.text
    body = http.post(path, content=b"x" * 20_001)
    assert body.status_code in status
    in_pieces = http.post(path, content=iter([b"x" * 10_000] * 3))
    assert in_pieces.status_code in status
    assert "20000 bytes" in in_pieces.text
    assert not triton.asked


def test_the_log_has_a_line_per_request_and_no_text(http: httpx.Client, gateway: RunningGateway) -> None:
    request_id = "log-test-1"
    answer = http.post(
        "/v1/rerank", json={"query": SECRET, "documents": [SECRET, "b"]}, headers={"X-Request-Id": request_id}
    )
    assert answer.headers["x-request-id"] == request_id
    http.post("/v1/rerank", json={"query": SECRET, "documents": [SECRET, None]}, headers={"X-Request-Id": "log-test-2"})
    wait_until(lambda: "log-test-2" in gateway.log)
    lines = {
        line["request_id"]: line for text in gateway.log.splitlines() if (line := json.loads(text)).get("request_id")
    }
    good, bad = lines[request_id], lines["log-test-2"]
    assert (good["route"], good["dialect"], good["status"], good["candidates"]) == ("/v1/rerank", "jina", 200, 2)
    assert (bad["status"], bad["reason"]) == (422, "invalid")
    assert good["ms"] > 0
    assert SECRET not in gateway.log


def test_metrics_count_by_route_artifact_and_candidates(http: httpx.Client, gateway: RunningGateway) -> None:
    labels = {"route": "/score", "artifact": "fake-1", "candidates": "<=10"}
    before = metric(gateway, "request_seconds_count", **labels)
    http.post("/score", json=BODIES["/score"])
    assert metric(gateway, "request_seconds_count", **labels) == before + 1
    assert metric(gateway, "documents_total", **labels) >= 2
    assert metric(gateway, "queue_seconds_count", **labels) == before + 1
    assert metric(gateway, "queued_seconds") == 0


def test_health_is_that_of_the_ranker(http: httpx.Client, gateway: RunningGateway, triton: MisbehavingServer) -> None:
    ready, live = f"{gateway.metrics_url}/health/ready", f"{gateway.metrics_url}/health/live"
    assert (httpx.get(ready).status_code, http.get("/health").status_code) == (200, 200)
    triton.model_ready = False
    try:
        assert (httpx.get(ready).status_code, http.get("/health").status_code) == (503, 503)
        assert httpx.get(live).status_code == 200
    finally:
        triton.model_ready = True


def test_only_named_origins_may_call_from_a_page(http: httpx.Client) -> None:
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    allowed = http.options("/v1/rank", headers={"Origin": "http://shop.example", **asked})
    assert allowed.headers["access-control-allow-origin"] == "http://shop.example"
    other = http.options("/v1/rank", headers={"Origin": "http://other.example", **asked})
    assert "access-control-allow-origin" not in other.headers


def test_no_answer_waits_for_an_acknowledgement(http: httpx.Client) -> None:
    """With Nagle's algorithm on the gateway's side each answer on a kept connection would take 40 ms."""
    taken = []
    for _ in range(30):
        began = time.monotonic()
        assert http.post("/v1/rank", json=BODIES["/v1/rank"]).status_code == 200
        taken.append(time.monotonic() - began)
    assert min(taken[1:]) < 0.03


def test_what_runs_is_finished_when_the_gateway_stops(triton: MisbehavingServer, tmp_path: Any) -> None:
    triton.behave(Slow(0.8))
    with running_gateway(triton.urls["grpc"], tmp_path) as own, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(httpx.post, own.url + "/v1/rank", json=BODIES["/v1/rank"], timeout=20)
        wait_until(lambda: metric(own, "in_flight") == 1)
        own.process.terminate()
        assert asked.result().status_code == 200
        assert own.process.wait(10) == 0


def test_a_server_of_before_the_details_still_ranks(http: httpx.Client, triton: MisbehavingServer) -> None:
    answer = http.post("/v1/rank", json=BODIES["/v1/rank"]).json()
    assert answer["truncated"] is None
    assert answer["usage"]["total_tokens"] is None
    assert "max_item_tokens" not in triton.asked[-1].inputs
