"""The caller's trace goes on: a request names the span that waits for it, where the caller keeps spans.

OpenTelemetry is not imported. Whoever uses it has it in memory; for everybody else this is one look into a dictionary.
"""

import sys

TRACEPARENT = "traceparent"
"""Header of HTTP, request parameter of Triton."""


def traceparent() -> str:
    """The span in which the caller is now, as https://www.w3.org/TR/trace-context/ writes it; "" where none is kept."""
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return ""
    span = trace.get_current_span()
    context = span.get_span_context()
    # One that has ended is nobody's: what runs in the background still has it.
    if not (span.is_recording() and context.is_valid and context.trace_flags.sampled):
        return ""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
