"""Alerts with their causes really produced: a gateway before a real Triton, a store, and Prometheus with its rules.

One story, in which one thing after the other goes wrong. Before each part the alerts that it is about are silent.
"""

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import psutil
import pytest
import valkeys
from alerting import Alerting, running_alerting
from gateways import RunningGateway, running_gateway
from tiny_catalogue import tiny_catalogue
from tritonrank.artifacts.workspace import Workspace
from tritonrank.serve.server import LocalTriton
from tritonrank_client import RankClient
from tritonrank_gateway.quality.reference import ReferenceFile, Spread

pytestmark = [pytest.mark.slow, pytest.mark.alone, pytest.mark.patient]
SECONDS = 40.0
"""That a cause may take until its alert fires."""
WORDS = ("oak", "desk", "lamp", "red", "steel", "kettle", "quiet", "large", "kitchen")
CANDIDATES = 6
SHORT, LONG = (1, 2, 3, 4), (24, 28)
"""Words of a candidate."""
CAUSED = {
    "RerankSlow", "RerankErrors", "Queue", "Degraded", "Drift", "EventsStale", "StoreDown", "NoTriton", "NoGateway",
    "ServerDown",
}  # fmt: skip


class Callers:
    """Who rank, look at pages and tell of clicks, all the time.

    Attributes:
        words: how many words a candidate has.
        tells_events: whether clicks are told.
    """

    def __init__(self, url: str) -> None:
        self.words = SHORT
        self.tells_events = True
        self._url = url
        self._ended = threading.Event()

    def __enter__(self) -> "Callers":
        tasks = [*[self._rank] * 8, *[self._look] * 3, self._tell]
        self._threads = [threading.Thread(target=self._keep_on, args=(task, seed)) for seed, task in enumerate(tasks)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _keep_on(self, task: Any, seed: int) -> None:
        dice = random.Random(seed)
        with httpx.Client(base_url=self._url, timeout=10) as client:
            while not self._ended.wait(0.08):
                with suppress(httpx.HTTPError):  # at the end there is no gateway
                    task(client, dice)

    def _rank(self, client: httpx.Client, dice: random.Random) -> None:
        items = candidates(dice, self.words)
        client.post("/v1/rank", json={"query": "red lamp", "items": items}, headers={"X-Deadline-Ms": "4000"})

    def _look(self, client: httpx.Client, dice: random.Random) -> None:
        client.post("/v1/recommend", json={"user_id": f"u{dice.randrange(9)}", "query": "red lamp", "size": 5})

    def _tell(self, client: httpx.Client, dice: random.Random) -> None:
        if self.tells_events:
            event = {"type": "click", "user_id": f"u{dice.randrange(9)}", "item_id": "item-04"}
            client.post("/v1/events", json=event)


def candidates(dice: random.Random, words: tuple[int, ...]) -> list[str]:
    return [" ".join(dice.choices(WORDS, k=dice.choice(words))) for _ in range(CANDIDATES)]


def write_reference(triton: LocalTriton, path: Path) -> None:
    """What the ranker was judged on: short candidates, as it counts their tokens."""
    dice = random.Random(99)
    with RankClient(triton.grpc_url) as client:
        answers = [
            client.rank(query="red lamp", items=candidates(dice, SHORT), want=["item_tokens"]) for _ in range(200)
        ]
    edges = [4.0, 6.0, 8.0, 10.0, 12.0, 16.0, 24.0]
    counts = np.bincount(np.searchsorted(edges, [n for one in answers for n in one.item_tokens or ()]), minlength=8)
    spread = Spread(edges, (counts / counts.sum()).tolist(), len(answers))
    reference = ReferenceFile(
        answers[0].artifact, {"rank": {"item_tokens": spread}}, {"rank": (CANDIDATES, CANDIDATES)}
    )
    path.write_bytes(msgspec.json.encode(reference))


@contextmanager
def slow_server(pid: int) -> Iterator[None]:
    """A server that stands still for 1.3 seconds of every 1.4."""
    ended, server = threading.Event(), psutil.Process(pid)

    def stop_and_go() -> None:
        while not ended.is_set():
            server.suspend()
            ended.wait(1.3)
            server.resume()
            ended.wait(0.1)

    thread = threading.Thread(target=stop_and_go)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def test_each_cause_is_told_and_nothing_else(workspace: Workspace, tmp_path: Path, tmp_path_factory: Any) -> None:
    catalogue = tiny_catalogue(tmp_path / "catalogue")
    reference = tmp_path / "reference.json"
    with LocalTriton(workspace.repository) as triton, valkeys.running(tmp_path_factory.mktemp("v")) as store:
        write_reference(triton, reference)
        flags = ("--catalogue", str(catalogue), "--store", store.url, "--reference", str(reference), "--no-access-log")
        with (
            running_gateway(triton.grpc_url, tmp_path / "gateway", *flags) as gateway,
            running_alerting(tmp_path / "alerting", gateway.metrics_url, triton.metrics_url) as alerting,
            Callers(gateway.url) as callers,
        ):
            well(alerting)
            callers.words, callers.tells_events = LONG, False
            fires(alerting, {"Drift", "EventsStale"})
            callers.tells_events = True
            with slow_server(triton.pid):
                fires(alerting, {"RerankSlow", "Queue", "Degraded"})
            triton.kill()
            store.kill()
            fires(alerting, {"RerankErrors", "NoTriton", "ServerDown", "StoreDown"})
            told_people(alerting)
            assert alerting.faults() == []
            still_serves(gateway)
            gateway.process.kill()
            fires(alerting, {"NoGateway"})


def well(alerting: Alerting) -> None:
    """A while of requests that find everything as it should be: all is counted, and nobody is told."""
    deadline = time.monotonic() + SECONDS
    counted = 'sum(rate(tritonrank_gateway_requests_total{outcome="answered"}[5s])) > 5'
    while not (alerting.value(counted) and alerting.value("tritonrank_quality_drift_psi")):
        assert time.monotonic() < deadline, "the requests are not counted"
        time.sleep(0.5)
    alerting.wait_for({"Watchdog"}, SECONDS)
    assert alerting.firing() & CAUSED == set()


def fires(alerting: Alerting, wanted: set[str]) -> None:
    assert alerting.firing() & wanted == set(), "before its cause"
    began = time.monotonic()
    firing = alerting.wait_for(wanted, SECONDS)
    print(f"{', '.join(sorted(wanted))}: {time.monotonic() - began:.1f} s; firing: {', '.join(sorted(firing))}")


def told_people(alerting: Alerting) -> None:
    """Alertmanager has them, and has told who is to be told."""
    alerting.wait_for({"RerankErrors", "StoreDown"}, SECONDS, alerting.arrived)
    alerting.wait_for({"RerankErrors", "StoreDown", "NoTriton"}, SECONDS, lambda: {*alerting.told.get("/pager", ())})
    alerting.wait_for({"Drift"}, SECONDS, lambda: {*alerting.told.get("/tickets", ())})
    assert "Drift" not in alerting.told["/pager"]
    assert {*alerting.told["/watchdog"]} == {"Watchdog"}


def still_serves(gateway: RunningGateway) -> None:
    """That people are woken changes nothing for users: without ranker and store there is a page."""
    page = httpx.post(f"{gateway.url}/v1/recommend", json={"user_id": "u", "query": "red lamp", "size": 5}, timeout=20)
    assert page.status_code == 200
    assert page.json()["degraded"]
