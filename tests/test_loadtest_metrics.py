"""The sampler counts what the server did, and nothing that the server does can break it.

The pages in tests/server_pages are those of a real server, before and after 297 requests.
"""

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import Served
from tritonrank.rankers.scorers import Request
from tritonrank_client import RankClient

from loadtests import server_metrics
from loadtests.results import ServerSecond
from loadtests.server_metrics import (
    ServerSampler,
    composing_models,
    fetch,
    model_growth,
    read_counters,
    served_settings,
)
from loadtests.target import LiveServer, server_process

SAVED = Path(__file__).parent / "server_pages"
CONFIG = {"name": "rank", "ensemble_scheduling": {"step": [{"model_name": n} for n in ("tokenize", "score", "select")]}}


class FakeServer:
    """Shows saved pages; a page can be replaced, made slow, or taken away."""

    def __init__(self) -> None:
        self.pages: dict[str, bytes] = {"/v2/models/rank/config": json.dumps(CONFIG).encode()}
        self.pause_seconds = 0.0
        self.show("before")
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                time.sleep(fake.pause_seconds)
                body = fake.pages.get(self.path)
                self.send_response(200 if body is not None else 404)
                self.end_headers()
                with contextlib.suppress(ConnectionError):  # whoever asked has given up
                    self.wfile.write(body or b"")

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def show(self, which: str) -> None:
        self.pages["/v2/models/stats"] = (SAVED / f"stats_{which}.json").read_bytes()
        self.pages["/metrics"] = (SAVED / f"metrics_{which}.txt").read_bytes()

    def live(self, pid: int | None = None) -> LiveServer:
        return LiveServer("", self.url, f"{self.url}/metrics", pid)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    server = FakeServer()
    yield server
    server.close()


def sampled(sampler: ServerSampler) -> list[ServerSecond]:
    return sampler.seconds(time.monotonic())


def growth_of(seconds: list[ServerSecond], model: str) -> int:
    return sum(one.requests for second in seconds for one in second.models if one.model == model)


def test_a_sample_is_the_growth_since_the_last(fake: FakeServer) -> None:
    sampler = ServerSampler(fake.live(), interval_seconds=60).start()
    fake.show("after")
    sampler.stop()
    (second,) = sampled(sampler)
    before, after = (
        json.loads((SAVED / f"stats_{which}.json").read_text())["model_stats"] for which in ("before", "after")
    )
    assert [model.model for model in second.models] == ["rank", "tokenize", "score", "select"]
    for model in second.models:
        old, new = (next(one for one in page if one["name"] == model.model) for page in (before, after))
        assert model.requests == new["inference_stats"]["success"]["count"] - old["inference_stats"]["success"]["count"]
        assert model.executions == new["execution_count"] - old["execution_count"]
        for field, name in (("queue_us", "queue"), ("compute_us", "compute_infer"), ("duration_us", "success")):
            expected = (new["inference_stats"][name]["ns"] - old["inference_stats"][name]["ns"]) / 1_000
            assert getattr(model, field) == pytest.approx(expected)
        assert sum(model.batch_sizes.values()) == model.executions
    assert second.context_cache_hits + second.context_cache_misses == 297
    assert second.counters["tritonrank_tokens_computed_total"] > second.counters["tritonrank_tokens_needed_total"] > 0
    assert not sampler.faults


def test_counters_of_all_instances_are_added_up() -> None:
    page = (SAVED / "metrics_after.txt").read_text()
    counters = read_counters(page)
    assert counters["tritonrank_context_cache_hits_total"] == 121 + 85
    assert counters["tritonrank_requests_rejected_total"] == 0
    assert "tritonrank_context_cache_bytes" not in counters  # a gauge does not grow
    assert not read_counters(page, ["another"])


def test_a_restarted_server_counts_from_nothing(fake: FakeServer) -> None:
    fake.show("after")
    sampler = ServerSampler(fake.live(), interval_seconds=60).start()
    fake.show("before")
    sampler.stop()
    (second,) = sampled(sampler)
    assert all(model.requests >= 0 and model.queue_us >= 0 for model in second.models)
    stats = json.loads((SAVED / "stats_before.json").read_text())["model_stats"]
    score = next(one for one in stats if one["name"] == "score")
    assert growth_of([second], "score") == score["inference_stats"]["success"]["count"]
    assert min(second.counters.values()) >= 0


def test_a_model_without_earlier_figures_counts_whole() -> None:
    (one, *_) = json.loads((SAVED / "stats_after.json").read_text())["model_stats"]
    assert model_growth("rank", None, one).requests == one["inference_stats"]["success"]["count"]
    assert model_growth("rank", one, one).requests == 0
    assert model_growth("new", None, {"name": "new"}).executions == 0


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/metrics", None),
        ("/metrics", b"not a { metrics page"),
        ("/metrics", b"\xff\xfe"),
        ("/v2/models/stats", None),
        ("/v2/models/stats", b"[]"),
        ("/v2/models/stats", b'{"model_stats": [{}]}'),
        ("/v2/models/stats", b'{"model_stats": [{"name": "rank", "inference_stats": {"success": {"count": "many"}}}]}'),
    ],
)
def test_a_broken_source_leaves_the_other_alone(path: str, body: bytes | None, fake: FakeServer) -> None:
    sampler = ServerSampler(fake.live(), interval_seconds=60).start()
    fake.show("after")
    whole = fake.pages.pop(path)
    if body is not None:
        fake.pages[path] = body
    sampler.look()
    fake.pages[path] = whole
    sampler.stop()
    first, second = sampled(sampler)
    if path == "/metrics":
        assert growth_of([first], "score") > 0
        assert not first.counters
        assert second.counters["tritonrank_tokens_needed_total"] > 0  # caught up
    else:
        assert first.counters["tritonrank_tokens_needed_total"] > 0
        assert not first.models
        assert growth_of([second], "score") == 297
    assert len(sampler.faults) == 1


def test_a_slow_server_does_not_hold_the_run_up(fake: FakeServer) -> None:
    sampler = ServerSampler(fake.live(), interval_seconds=0.05, answer_seconds=0.1).start()
    fake.pause_seconds = 1.0
    time.sleep(0.2)
    started = time.monotonic()
    sampler.stop()
    assert time.monotonic() - started < 1.5
    assert any("timed out" in fault for fault in sampler.faults)


def test_a_server_that_dies_leaves_what_was_seen(fake: FakeServer) -> None:
    program = subprocess.Popen([sys.executable, "-c", "while True: sum(range(1000))"])
    try:
        sampler = ServerSampler(fake.live(program.pid), interval_seconds=0.1).start()
        fake.show("after")
        time.sleep(0.5)
    finally:
        program.kill()
        program.wait()
    fake.close()
    time.sleep(0.2)
    sampler.stop()
    seconds = sampled(sampler)
    assert growth_of(seconds, "score") == 297
    assert sum(second.cpu_seconds or 0 for second in seconds) > 0.02
    assert seconds[0].rss_bytes
    assert seconds[-1].rss_bytes is None
    assert any("NoSuchProcess" in fault for fault in sampler.faults)


def test_time_counts_from_the_moment_that_is_named(fake: FakeServer) -> None:
    origin = time.monotonic() + 10
    with ServerSampler(fake.live(), interval_seconds=0.05) as sampler:
        time.sleep(0.2)
    seconds = sampler.seconds(origin)
    assert len(seconds) >= 2
    assert all(-10.5 < second.second < -9 for second in seconds)
    assert all(0 < second.interval_seconds < 1 for second in seconds)
    sampler.stop()  # again


def test_nothing_is_known_of_a_server_without_addresses() -> None:
    with ServerSampler(LiveServer("", "", "", None), interval_seconds=60) as sampler:
        pass
    (second,) = sampled(sampler)
    assert (second.models, second.counters, second.cpu_seconds, second.rss_bytes) == ([], {}, None, None)
    assert not sampler.faults
    assert served_settings("http://127.0.0.1:1") == {}


def test_pages_are_bounded(fake: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_metrics, "MOST_BYTES", 100)
    with pytest.raises(OSError, match="more than 100 bytes"):
        fetch(f"{fake.url}/metrics")
    with pytest.raises(OSError, match="HTTP 404"):
        fetch(f"{fake.url}/nothing")


def test_the_real_server_is_seen(served: Served, held_out: list[Request]) -> None:
    triton = served.triton
    live = LiveServer(triton.grpc_url, triton.http_url, triton.metrics_url, triton.pid)
    with ServerSampler(live, interval_seconds=0.2) as sampler, RankClient(triton.grpc_url) as client:
        for request in held_out[:12]:
            client.rank(query=request.query, history=request.history, items=request.items)
        time.sleep(0.3)  # an execution is counted a moment after its answers are sent
    seconds = sampled(sampler)
    assert not sampler.faults
    for model in ("rank", "ranker"):
        assert growth_of(seconds, model) == 12
    assert sum(second.context_cache_hits + second.context_cache_misses for second in seconds) == 12
    assert sum(second.cpu_seconds or 0 for second in seconds) > 0
    assert all(second.rss_bytes and second.rss_bytes > 50e6 for second in seconds)
    assert composing_models(triton.http_url, "rank") == ["rank", "ranker"]
    settings = served_settings(triton.http_url)
    assert settings["ranker.instances"] == "1"
    assert int(settings["ranker.queue_requests"]) == 8
    assert server_process(int(triton.grpc_url.rsplit(":", 1)[1])) == triton.pid
