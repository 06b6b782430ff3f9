"""A real Triton, a real gateway and a controller of rollouts as processes, and callers that put them under load."""

import json
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from gateways import RunningGateway, running_gateway
from test_supervisor import serve_command
from tritonrank.serve.versions.admin_client import PrivateApi

KEY = "an-admin-key-for-tests"
CALLERS, PAUSE_SECONDS = 3, 0.005
PATIENCE_SECONDS = 150.0
COLOURS, THINGS = ("oak", "pine", "glass", "steel", "red", "blue"), ("desk", "lamp", "chair", "shelf", "sofa")
ITEMS = [f"{colour} {thing} number {place}" for place, colour in enumerate(COLOURS) for thing in THINGS]


@dataclass
class Callers:
    """What callers saw that go on to call."""

    by_status: Counter[str] = field(default_factory=Counter)
    by_artifact: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Served:
    """Everything that runs."""

    gateway: RunningGateway
    controller: PrivateApi
    tritons: PrivateApi
    folder: Path


@contextmanager
def rollouts(repository: Path, folder: Path, rules: str) -> Iterator[Served]:
    """Serve a repository, and let a controller wait for rollouts that go by these rules; ends with the block.

    Inside, TRITONRANK_ADMIN_KEY is KEY.
    """
    (folder / "rules.toml").write_text(rules)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITONRANK_ADMIN_KEY", KEY)
        with serve_command(repository, folder, "--admin-port", "0") as triton:
            assert triton.program.stdout is not None
            admin = triton.program.stdout.readline().split()[-1]
            flags = ("--no-access-log", "--golden", str(repository / "golden.json"))
            with running_gateway(triton.urls["gRPC"], folder / "gateway", *flags) as gateway:
                command = [sys.executable, "-m", "tritonrank", "rollout", "run", "--gateway", gateway.metrics_url]
                command += ["--triton-admin", admin, "--state", str(folder / "state"), "--port", "0"]
                command += ["--metrics-port", "0", "--rules", str(folder / "rules.toml")]
                with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ) as controller:
                    try:
                        assert controller.stdout is not None
                        url = json.loads(controller.stdout.readline())["url"]
                        yield Served(gateway, PrivateApi(url, KEY), PrivateApi(admin, KEY), folder)
                    finally:
                        controller.terminate()


@contextmanager
def load(gateway: RunningGateway) -> Iterator[Callers]:
    """Call again and again, as many users."""
    callers, stop = Callers(), threading.Event()

    def call(first: int) -> None:
        number = first
        with httpx.Client(base_url=gateway.url, timeout=60) as http:
            while not stop.wait(PAUSE_SECONDS):
                number += CALLERS
                asked = {
                    "query": f"a {COLOURS[number % 6]} desk {number % 17}",
                    "items": ITEMS,
                    "user": f"u{number % 200}",
                }
                try:
                    answer = http.post("/v1/rank", json=asked)
                    callers.by_status[str(answer.status_code)] += 1
                    callers.by_artifact[answer.headers.get("x-artifact", "")] += 1
                except httpx.HTTPError as error:
                    callers.by_status[repr(error)] += 1

    threads = [threading.Thread(target=call, args=(first,)) for first in range(CALLERS)]
    for thread in threads:
        thread.start()
    try:
        yield callers
    finally:
        stop.set()
        for thread in threads:
            thread.join(PATIENCE_SECONDS)
