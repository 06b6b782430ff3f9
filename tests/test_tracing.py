"""Traces: one request from its caller through gateway and Triton to the model's steps, as a collector receives it."""

import json
import logging
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import add_steps
from gateway_stand_ins import StandIn
from gateways import running_gateway
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased
from otlp_receiver import ReceivedSpan, Receiver, otlp_receiver
from recommend_stand_ins import StandInCatalogue, recommender_of
from tritonrank.artifacts.workspace import Workspace
from tritonrank.recipe import Recipe
from tritonrank.serve.server import LocalTriton
from tritonrank_client import InvalidRequest, Overloaded, RankClient, Unavailable
from tritonrank_client._trace import traceparent
from tritonrank_gateway.app import create_app
from tritonrank_gateway.settings import GatewaySettings
from tritonrank_gateway.tracing import OpenTelemetryTracing
from tritonrank_recommend.engine import Recommender
from tritonrank_runtime.tracing import NO_TRACE, open_model_tracing

KEPT, LEFT = "01", "00"
TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SECRET = "a text of nobody's business"


class Kept:
    """An application whose spans stay here."""

    def __init__(self, sampler: Any = None) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider(sampler=sampler)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))

    @property
    def spans(self) -> dict[str, Any]:
        return {span.name: span for span in self._exporter.get_finished_spans()}


@asynccontextmanager
async def serving(
    kept: Kept, backend: StandIn | None = None, recommender: Recommender | None = None
) -> AsyncIterator[httpx.AsyncClient]:
    settings = GatewaySettings(recommend_deadline_s=5.0)
    app = create_app(settings, backend or StandIn(), None, recommender, OpenTelemetryTracing(kept.provider))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as client,
    ):
        yield client


def from_caller(flags: str) -> dict[str, str]:
    return {"traceparent": f"00-{TRACE}-{CALLER}-{flags}"}


# The gateway


async def test_a_request_goes_on_with_its_callers_trace_and_holds_no_text(caplog: pytest.LogCaptureFixture) -> None:
    kept = Kept()
    with caplog.at_level(logging.INFO, "tritonrank_gateway.access"):
        access = logging.getLogger("tritonrank_gateway.access")
        access.addHandler(caplog.handler)
        async with serving(kept) as http:
            body = {"query": SECRET, "items": [SECRET, "lamp"], "user": SECRET}
            answer = await http.post("/v1/rank", json=body, headers=from_caller(KEPT) | {"X-User-Id": SECRET})
        access.removeHandler(caplog.handler)
    assert answer.status_code == 200
    (span,) = kept.spans.values()
    assert span.name == "POST /v1/rank"
    assert span.kind is trace.SpanKind.SERVER
    assert (f"{span.context.trace_id:032x}", f"{span.parent.span_id:016x}") == (TRACE, CALLER)
    told = span.attributes
    assert (told["http.route"], told["http.response.status_code"]) == ("/v1/rank", 200)
    assert (told["tritonrank.candidates"], told["tritonrank.artifact"]) == (2, "a" * 16)
    assert span.status.is_ok
    assert SECRET not in span.to_json()
    line = json.loads(caplog.records[-1].getMessage())
    assert line["trace_id"] == TRACE


async def test_a_trace_that_its_caller_does_not_keep_is_not_kept_here() -> None:
    kept = Kept()
    async with serving(kept) as http:
        await http.post("/v1/rank", json={"items": ["a"]}, headers=from_caller(LEFT))
        assert kept.spans == {}
        await http.post("/v1/rank", json={"items": ["a"]}, headers={"traceparent": "00-nonsense-is-none"})
    (span,) = kept.spans.values()
    assert span.parent is None, "what is no trace context begins a trace"


async def test_the_sampler_decides_where_no_caller_has() -> None:
    kept = Kept(ParentBased(ALWAYS_OFF))
    async with serving(kept) as http:
        await http.post("/v1/rank", json={"items": ["a"]})
        assert kept.spans == {}
        await http.post("/v1/rank", json={"items": ["a"]}, headers=from_caller(KEPT))
    assert list(kept.spans) == ["POST /v1/rank"]


async def test_a_tracestate_without_end_is_left_out() -> None:
    kept = Kept()
    async with serving(kept) as http:
        for state in ("shop=1", ",".join(f"vendor{number}={'x' * 60}" for number in range(10))):
            await http.post("/v1/rank", json={"items": ["a"]}, headers=from_caller(KEPT) | {"tracestate": state})
            span = kept.spans["POST /v1/rank"]
            assert len(span.context.trace_state.to_header()) == (len(state) if state == "shop=1" else 0)


@pytest.mark.parametrize(
    ("failure", "status", "is_error"), [(Overloaded("full"), 429, False), (Unavailable("gone"), 503, True)]
)
async def test_a_refusal_is_told_and_only_our_own_is_an_error(failure: Any, status: int, is_error: bool) -> None:
    kept, backend = Kept(), StandIn()
    async with serving(kept, backend) as http:
        await http.post("/v1/rank", json={"items": ["a"]})
        backend.failure = lambda: failure
        assert (await http.post("/v1/rank", json={"items": [SECRET]})).status_code == status
    span = kept.spans["POST /v1/rank"]
    assert span.attributes["http.response.status_code"] == status
    assert span.attributes["tritonrank.refused"]
    assert (span.status.status_code is trace.StatusCode.ERROR) is is_error
    assert not span.events, "words and frames of an exception may quote a request"


async def test_a_recommendation_has_its_steps_below_it() -> None:
    kept = Kept()
    async with serving(kept, recommender=recommender_of(StandInCatalogue(), None)) as http:
        answer = await http.post("/v1/recommend", json={"user_id": SECRET, "query": SECRET, "size": 3})
    assert answer.status_code == 200
    spans = kept.spans
    whole = spans.pop("POST /v1/recommend")
    assert {"profile", "retrieve", "rank", "blend"} <= set(spans)
    for span in spans.values():
        assert span.parent.span_id == whole.context.span_id
        assert whole.start_time <= span.start_time <= span.end_time <= whole.end_time
    assert [spans[name].start_time for name in ("profile", "retrieve", "rank", "blend")] == sorted(
        spans[name].start_time for name in ("profile", "retrieve", "rank", "blend")
    )
    assert whole.attributes["tritonrank.items"] == 3
    assert not any(SECRET in span.to_json() for span in (whole, *spans.values()))


@pytest.mark.parametrize("blocked", ["opentelemetry.sdk", "opentelemetry.exporter"])
def test_without_the_package_the_gateway_says_what_to_install(blocked: str) -> None:
    code = f"""
import sys
sys.modules[{blocked!r}] = None
from tritonrank_gateway.tracing import open_tracing
open_tracing(False)
try:
    open_tracing(True)
except ValueError as error:
    assert "--tracing" in str(error) and "pip install 'tritonrank[tracing]'" in str(error), error
else:
    raise SystemExit("opened")
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_nothing_of_it_is_loaded_where_it_is_off() -> None:
    code = """
import sys
from tritonrank_client import RankClient
from tritonrank_gateway.app import create_app
from tritonrank_gateway.compose import compose
from tritonrank_gateway.metrics import Metrics
from tritonrank_gateway.settings import GatewaySettings
from tritonrank_runtime.tracing import open_model_tracing
settings = GatewaySettings()
create_app(settings, compose(settings, Metrics()))
open_model_tracing("ranker").of(None).tell()
assert not any(name.startswith("opentelemetry.sdk") for name in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


# The client


def test_the_client_names_the_span_it_is_called_in_and_no_other() -> None:
    assert traceparent() == ""
    kept = Kept()
    tracer = kept.provider.get_tracer("shop")
    with tracer.start_as_current_span("page") as span:
        named = traceparent()
        context = span.get_span_context()
        assert named == f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
    with trace.use_span(span):
        assert traceparent() == "", "it has ended"
    with Kept(ALWAYS_OFF).provider.get_tracer("shop").start_as_current_span("page"):
        assert traceparent() == "", "nobody keeps it"


# The models


class Parameters:
    """A request of Triton's that has nothing but parameters."""

    def __init__(self, **given: Any) -> None:
        self._given = json.dumps(given)

    def parameters(self) -> str:
        return self._given


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"traceparent": ""},
        {"traceparent": 7},
        {"traceparent": f"00-{TRACE}-{CALLER}-{LEFT}"},
        {"traceparent": f"00-{'0' * 32}-{CALLER}-{KEPT}"},
        {"traceparent": "x" * 10_000},
        {"other": "traceparent"},
    ],
    ids=["none", "empty", "number", "not-kept", "zeros", "long", "elsewhere"],
)
def test_a_request_in_no_trace_costs_a_model_nothing(given: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    with otlp_receiver() as receiver:
        for name, value in receiver.environment.items():
            monkeypatch.setenv(name, value)
        tracing = open_model_tracing("ranker")
        assert tracing.of(Parameters(**given)) is NO_TRACE
        tracing.close()
        assert receiver.spans == []


def test_a_collector_that_fails_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    with otlp_receiver() as receiver:
        for name, value in receiver.environment.items():
            monkeypatch.setenv(name, value)
        receiver.status = 503
        tracing = open_model_tracing("ranker")
        one = tracing.of(Parameters(traceparent=f"00-{TRACE}-{CALLER}-{KEPT}"))
        one.step("score", 1.0, 2.0)
        one.tell(candidates=3)
        tracing.close()
        assert receiver.spans == []


# All of it, live


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with otlp_receiver() as one:
        yield one


@pytest.fixture(scope="module")
def traced_triton(
    workspace: Workspace, tiny_recipe: Recipe, receiver: Receiver, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalTriton]:
    """A Triton of its own whose models keep traces: a ranker in one model, and one with a model for each step."""
    repository = tmp_path_factory.mktemp("traced") / "repository"
    shutil.copytree(workspace.repository, repository)
    add_steps(repository, tiny_recipe, workspace, "")
    with LocalTriton(repository, environment=receiver.environment) as triton:
        yield triton


def check_tree(spans: dict[str, ReceivedSpan], *way: str) -> None:
    """Each of these is the child of the one before it, and within its time."""
    for above, below in pairwise(way):
        parent, child = spans[above], spans[below]
        assert child.parent_id == parent.span_id, (above, below)
        slack = 20_000_000  # a span's two clocks are read one after the other, and the machine may be busy
        assert parent.began - slack <= child.began <= child.ended <= parent.ended + slack, (above, below)


@pytest.mark.slow
def test_one_trace_from_the_caller_to_the_steps_of_the_model(
    traced_triton: LocalTriton, receiver: Receiver, tmp_path: Path
) -> None:
    shop = Kept()
    gateway_only = {name: value for name, value in receiver.environment.items() if name != "OTEL_TRACES_EXPORTER"}
    with running_gateway(traced_triton.grpc_url, tmp_path, "--tracing", environment=gateway_only) as gateway:
        with (
            shop.provider.get_tracer("shop").start_as_current_span("page") as page,
            RankClient(f"gateway+{gateway.url}") as client,
        ):
            client.rank(query=SECRET, items=[SECRET, "lamp", "desk"])
        trace_id = f"{page.get_span_context().trace_id:032x}"
        spans = receiver.wait_for(trace_id, "POST /v1/rank", "triton", "ranker", "tokenize", "wait", "score", "select")
        line = next(json.loads(one) for one in gateway.log.splitlines() if '"/v1/rank"' in one)
    assert line["trace_id"] == trace_id
    assert spans["POST /v1/rank"].parent_id == f"{page.get_span_context().span_id:016x}"
    for step in ("tokenize", "wait", "score", "select"):
        check_tree(spans, "POST /v1/rank", "triton", "ranker", step)
    steps = [spans[name] for name in ("tokenize", "wait", "score", "select")]
    for earlier, later in pairwise(steps):
        assert earlier.ended <= later.began + 1_000
    ranker = spans["ranker"]
    assert sum(step.ended - step.began for step in steps) <= ranker.ended - ranker.began + 1_000
    assert (ranker.service, spans["triton"].service) == ("tritonrank-models", "tritonrank-gateway")
    assert ranker.attributes["tritonrank.candidates"] == 3
    assert ranker.attributes["tritonrank.tokens"] > 0
    assert not any(SECRET.encode() in body for body in receiver.bodies)


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_caller_of_triton_itself_is_followed_through_the_models(
    traced_triton: LocalTriton, receiver: Receiver, protocol: str
) -> None:
    shop = Kept()
    url = traced_triton.grpc_url if protocol == "grpc" else traced_triton.http_url
    for model, names in (("rank", ("ranker", "score", "select")), ("rank_steps", ("tokenize", "score", "select"))):
        with (
            shop.provider.get_tracer("shop").start_as_current_span("page") as page,
            RankClient(url, model=model) as client,
        ):
            client.rank(query="oak", items=["desk", "lamp"])
        context = page.get_span_context()
        spans = receiver.wait_for(f"{context.trace_id:032x}", *names)
        assert spans[names[0]].parent_id == f"{context.span_id:016x}"


@pytest.mark.slow
def test_a_model_tells_what_it_refused_and_nothing_of_what_is_in_no_trace(
    traced_triton: LocalTriton, receiver: Receiver
) -> None:
    shop = Kept()
    with RankClient(traced_triton.grpc_url) as client:
        seen = len(receiver.spans)
        for _ in range(3):
            client.rank(items=["desk"])
        with (
            shop.provider.get_tracer("shop").start_as_current_span("page") as page,
            pytest.raises(InvalidRequest),
        ):
            client.rank(items=["x" * 70_000])
        trace_id = f"{page.get_span_context().trace_id:032x}"
        spans = receiver.wait_for(trace_id, "ranker")
        assert spans["ranker"].is_error
        assert spans["ranker"].attributes["error.type"] == "invalid"
        assert {span.trace_id for span in receiver.spans[seen:]} == {trace_id}
