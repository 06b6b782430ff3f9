"""OpenTelemetry traces of requests: where the time of one of them went, from its caller to the model's steps.

Off by default; then no span is made and OpenTelemetry is not imported. With ``--tracing`` each request is a span, child
of the caller's where the header ``traceparent`` names one (https://www.w3.org/TR/trace-context/), with the steps of a
recommendation and every call of a Triton below it. Our client hands the span of a call on to Triton, whose models add
theirs. Which traces are kept, and where they are sent, say the standard variables ``OTEL_*``.

Spans hold times, counts and names of ours: no text, no id of a user or an item.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from opentelemetry.trace import Span

NAME = "tritonrank"
PREFIX = f"{NAME}."
"""Of attributes of our own."""
LONGEST_STATE = 512
"""Characters of a caller's ``tracestate``; longer ones are not passed on, as the standard allows."""
Value = str | int | float | bool | list[str]


class RequestSpan(Protocol):
    """What is told of one request.

    Attributes:
        trace_id: 32 hexadecimal digits; "" where the trace is not kept.
    """

    trace_id: str

    def tell(self, attributes: Mapping[str, Value], error: str = "") -> None:
        """Add what is known by now; ``error`` is the kind of a failure of ours."""


class Tracing(Protocol):
    """Makes spans."""

    def request(self, method: str, route: str, headers: Mapping[str, str]) -> AbstractContextManager[RequestSpan]:
        """The span of one HTTP request, which is the current one inside the block."""

    def step(self, name: str, attributes: Mapping[str, Value] | None = None) -> AbstractContextManager[object]:
        """A part of the current request; with attributes, a call of another server."""

    def close(self) -> None:
        """Send what is left."""


def open_tracing(is_wanted: bool) -> Tracing:
    """Traces as the environment says.

    Raises:
        ValueError: they are wanted, and OpenTelemetry is not installed.
    """
    if not is_wanted:
        return NoTracing()
    from tritonrank_runtime.tracing import open_provider

    try:
        return OpenTelemetryTracing(open_provider(f"{NAME}-gateway"))
    except ModuleNotFoundError as error:
        raise ValueError(f"--tracing: {error.name} is not installed: pip install 'tritonrank[tracing]'") from error


class NoRequestSpan:
    """Nobody keeps it."""

    trace_id = ""

    def tell(self, attributes: Mapping[str, Value], error: str = "") -> None:
        pass


NO_REQUEST_SPAN = NoRequestSpan()


class NoTracing:
    """See `Tracing`; makes nothing."""

    def __init__(self) -> None:
        self._nothing: AbstractContextManager[Any] = nullcontext(NO_REQUEST_SPAN)

    def request(self, method: str, route: str, headers: Mapping[str, str]) -> AbstractContextManager[RequestSpan]:
        return self._nothing

    def step(self, name: str, attributes: Mapping[str, Value] | None = None) -> AbstractContextManager[object]:
        return self._nothing

    def close(self) -> None:
        pass


NO_TRACING = NoTracing()


class OpenTelemetryTracing:
    """See `Tracing`.

    Args:
        provider: a TracerProvider of OpenTelemetry's SDK; it is shut down with this.
    """

    def __init__(self, provider: Any) -> None:
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._api, self._provider = trace, provider
        self._tracer = provider.get_tracer(NAME)
        self._propagator = TraceContextTextMapPropagator()

    @contextmanager
    def request(self, method: str, route: str, headers: Mapping[str, str]) -> Iterator[RequestSpan]:
        carrier = {name: given for name in ("traceparent", "tracestate") if (given := headers.get(name))}
        if len(carrier.get("tracestate", "")) > LONGEST_STATE:
            del carrier["tracestate"]
        span = self._tracer.start_span(
            f"{method} {route}",
            self._propagator.extract(carrier) if carrier else None,
            kind=self._api.SpanKind.SERVER,
            attributes={"http.request.method": method, "http.route": route},
        )
        with self._current(span):
            yield _Told(span, self._api.StatusCode.ERROR) if span.is_recording() else NO_REQUEST_SPAN

    @contextmanager
    def step(self, name: str, attributes: Mapping[str, Value] | None = None) -> Iterator[None]:
        if not self._api.get_current_span().is_recording():
            yield  # of a trace that is not kept, and what runs on behind a request that has ended
            return
        kind = self._api.SpanKind.INTERNAL if attributes is None else self._api.SpanKind.CLIENT
        with self._current(self._tracer.start_span(name, kind=kind, attributes=attributes)):
            yield

    def close(self) -> None:
        from tritonrank_runtime.tracing import close_provider

        close_provider(self._provider)

    @contextmanager
    def _current(self, span: "Span") -> Iterator[None]:
        # OpenTelemetry would write down the words and frames of an exception, which may quote a request.
        with self._api.use_span(span, end_on_exit=True, record_exception=False, set_status_on_exception=False):
            try:
                yield
            except BaseException as error:
                span.set_attribute("error.type", type(error).__name__)
                span.set_status(self._api.StatusCode.ERROR)
                raise


class _Told:
    def __init__(self, span: "Span", error_status: Any) -> None:
        self._span, self._error_status = span, error_status
        self.trace_id = f"{span.get_span_context().trace_id:032x}"

    def tell(self, attributes: Mapping[str, Value], error: str = "") -> None:
        for name, value in attributes.items():
            self._span.set_attribute(name if "." in name else f"{PREFIX}{name}", value)
        if error:
            self._span.set_attribute("error.type", error)
            self._span.set_status(self._error_status)
