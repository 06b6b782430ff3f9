"""OpenTelemetry spans of what a model does for a request, where its caller keeps a trace of that request.

Off unless the server's environment has ``OTEL_TRACES_EXPORTER=otlp``; then nothing but one look at a request's
parameters is done for a request that is in no trace. A caller names the span that it waits in, in the request
parameter ``traceparent`` (https://www.w3.org/TR/trace-context/); an ensemble hands it on to its models. Each model
tells a span of its own with its steps below it, after it has answered, to the collector that the variables
``OTEL_EXPORTER_OTLP_*`` name. Spans hold times and counts, no texts.
"""

import json
import os
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

EXPORTER_VARIABLE = "OTEL_TRACES_EXPORTER"
PARAMETER = "traceparent"
NAME = "tritonrank"
PREFIX = f"{NAME}."
"""Of our own attributes."""
CLOSE_SECONDS = 3.0
"""For the last spans, when a collector does not answer."""
NOT_INSTALLED = (
    "traces are asked for and {} is not installed: pip install 'tritonrank[tracing]' in the Python of {}, "
    "or take {}=otlp from its environment"
)


class RequestTrace(Protocol):
    """What is kept of one request until it has been answered. Seconds are those of ``time.monotonic()``."""

    def step(self, name: str, began: float, ended: float) -> None:
        """One step is done."""

    def answered(self, error: str = "") -> None:
        """The answer is on its way; ``error`` is the kind of its failure."""

    def tell(self, error: str = "", **attributes: float) -> None:
        """Make the spans, which may take longer than an answer should wait.

        Args:
            error: kind of the failure, where ``answered`` has not said it.
            attributes: counts, such as candidates.
        """


class ModelTracing(Protocol):
    """Makes the traces of one model's requests."""

    def of(self, request: Any) -> RequestTrace:
        """The trace that a request of Triton's belongs to, from now on."""

    def traced(self, request: Any, answer: Callable[[Any], Any]) -> Any:
        """The answer to a request by ``answer``, which is all that is done for it."""

    def close(self) -> None:
        """Send what is left."""


def open_model_tracing(model: str) -> ModelTracing:
    """What this process is to tell of a model's requests; nothing unless the environment asks for it."""
    if os.environ.get(EXPORTER_VARIABLE, "") != "otlp":
        return NoModelTracing()
    try:
        return _Tracing(model)
    except ModuleNotFoundError as error:
        import sys

        import triton_python_backend_utils as pb_utils  # only inside Triton

        said = NOT_INSTALLED.format(error.name, sys.prefix, EXPORTER_VARIABLE)
        pb_utils.Logger.log_error(f"{model}: {said}")  # it serves; a collector is no reason not to
        return NoModelTracing()


class NoTrace:
    """Of a request that is in no trace."""

    def step(self, name: str, began: float, ended: float) -> None:
        pass

    def answered(self, error: str = "") -> None:
        pass

    def tell(self, error: str = "", **attributes: float) -> None:
        pass


NO_TRACE = NoTrace()


class NoModelTracing:
    """Tells nothing."""

    def of(self, request: Any) -> RequestTrace:
        return NO_TRACE

    def traced(self, request: Any, answer: Callable[[Any], Any]) -> Any:
        return answer(request)

    def close(self) -> None:
        pass


class _Tracing:
    def __init__(self, model: str) -> None:
        from opentelemetry.sdk.trace.sampling import ALWAYS_ON
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._model = model
        self._propagator = TraceContextTextMapPropagator()
        # Whether a trace is kept was decided where it began; only requests of kept ones get here.
        self._provider = open_provider(f"{NAME}-models", ALWAYS_ON)
        self._tracer = self._provider.get_tracer(NAME)

    def of(self, request: Any) -> RequestTrace:
        parameters = request.parameters()  # JSON
        if PARAMETER not in parameters:
            return NO_TRACE
        from opentelemetry import trace

        given = json.loads(parameters)
        parent = self._propagator.extract({PARAMETER: str(given.get(PARAMETER, ""))})
        span = trace.get_current_span(parent).get_span_context()
        return _Trace(self._tracer, self._model, parent) if span.is_valid and span.trace_flags.sampled else NO_TRACE

    def traced(self, request: Any, answer: Callable[[Any], Any]) -> Any:
        of_request = self.of(request)
        response = answer(request)
        of_request.answered("failed" if response.has_error() else "")
        of_request.tell()
        return response

    def close(self) -> None:
        close_provider(self._provider)


class _Trace:
    def __init__(self, tracer: Any, model: str, parent: Any) -> None:
        self._tracer, self._model, self._parent = tracer, model, parent
        self._began = time.monotonic()
        self._ended = 0.0
        self._error = ""
        self._steps: list[tuple[str, float, float]] = []

    def step(self, name: str, began: float, ended: float) -> None:
        self._steps.append((name, began, ended))

    def answered(self, error: str = "") -> None:
        self._ended, self._error = time.monotonic(), error

    def tell(self, error: str = "", **attributes: float) -> None:
        from opentelemetry import trace

        if not self._ended:
            self.answered(error)
        # Spans are in the time of day, which may be set meanwhile; what is measured is not.
        start_of_clock_ns = time.time_ns() - time.monotonic_ns()

        def at(moment: float) -> int:
            return start_of_clock_ns + round(moment * 1e9)

        told: dict[str, Any] = {f"{PREFIX}{name}": value for name, value in attributes.items()}
        if self._error:
            told["error.type"] = self._error
        span = self._tracer.start_span(
            self._model, self._parent, kind=trace.SpanKind.SERVER, attributes=told, start_time=at(self._began)
        )
        if self._error:
            span.set_status(trace.StatusCode.ERROR)
        below = trace.set_span_in_context(span)
        for name, began, ended in self._steps:
            self._tracer.start_span(name, below, start_time=at(began)).end(at(ended))
        span.end(at(self._ended))


def open_provider(service: str, sampler: Any = None) -> Any:
    """A TracerProvider that sends spans over OTLP/HTTP from a thread of its own, set by the ``OTEL_*`` variables.

    Args:
        service: what the process is called, unless OTEL_SERVICE_NAME says it.
        sampler: None is the one that OTEL_TRACES_SAMPLER names.

    Raises:
        ModuleNotFoundError: OpenTelemetry is not installed.
    """
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.environment_variables import OTEL_SERVICE_NAME
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource.create({SERVICE_NAME: os.environ.get(OTEL_SERVICE_NAME, "") or service})
    provider = TracerProvider(sampler=sampler, resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


def close_provider(provider: Any) -> None:
    """Send what is left, as far as that takes no longer than a collector may."""
    closing = threading.Thread(target=provider.shutdown, name="spans", daemon=True)
    closing.start()
    closing.join(CLOSE_SECONDS)
