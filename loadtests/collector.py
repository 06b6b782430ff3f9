"""A collector of traces that keeps none: it takes what is sent over OTLP/HTTP and counts it.

For measuring what traces cost, which need somebody who takes them.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SAMPLED_SHARE = 0.01


class Collector:
    """Listens on a free port of loopback.

    Attributes:
        exports: that came.
        bytes: of them.
    """

    def __init__(self) -> None:
        self.exports = self.bytes = 0
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                collector.bytes += len(self.rfile.read(int(self.headers["Content-Length"])))
                collector.exports += 1
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, name="collector", daemon=True).start()

    @property
    def environment(self) -> dict[str, str]:
        """What lets a service send a hundredth of its traces here."""
        return {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self._server.server_port}",
            "OTEL_TRACES_EXPORTER": "otlp",
            "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
            "OTEL_TRACES_SAMPLER_ARG": str(SAMPLED_SHARE),
        }

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector that ends with the block."""
    collector = Collector()
    try:
        yield collector
    finally:
        collector.close()
