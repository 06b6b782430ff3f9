"""Two real Tritons behind one gateway, one of them killed under load: nothing that was accepted is lost."""

import asyncio
import itertools
import re
import shutil
import time
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from gateways import RunningGateway, running_gateway
from test_supervisor import serve_command
from tritonrank.artifacts.workspace import Workspace

ITEMS = ["oak desk", "brass lamp", "garden chair", "steel shelf"]
CALLERS = 4
BEFORE_SECONDS = 1.0
BACK_SECONDS = 20.0  # the server itself is back within 5 on a machine that has nothing else to do
USERS = 40
FEWEST = 50


def metric(gateway: RunningGateway, name: str, **labels: str) -> float:
    """A number on the gateway's page of metrics; 0 where it is not there yet."""
    with urllib.request.urlopen(f"{gateway.metrics_url}/metrics", timeout=10) as page:
        lines = page.read().decode().splitlines()
    wanted = [f'{label}="{value}"' for label, value in labels.items()]
    found = [line for line in lines if re.match(rf"{name}[{{ ]", line) and all(one in line for one in wanted)]
    return sum(float(line.rpartition(" ")[2]) for line in found)


@pytest.mark.slow
def test_a_killed_replica_loses_no_request_and_comes_back(workspace: Workspace, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        shutil.copytree(workspace.repository, tmp_path / name / "repository")
    with (
        serve_command(tmp_path / "one" / "repository", tmp_path / "one") as first,
        serve_command(tmp_path / "two" / "repository", tmp_path / "two") as second,
    ):
        addresses = [urlsplit(served.urls["gRPC"]).netloc for served in (first, second)]
        golden = str(workspace.repository / "golden.json")
        flags = ("--golden", golden, "--probe-s", "0.2", "--no-access-log")
        with running_gateway(",".join(addresses), tmp_path / "gateway", *flags) as gateway:
            statuses, answers = asyncio.run(load(gateway, first.triton.kill, addresses[0]))
            assert set(statuses) == {200}, gateway.log[-3_000:]
            assert len(set(answers)) == 1  # whichever replica answered
            assert metric(gateway, "tritonrank_gateway_replica_events_total", event="eject") >= 1
            assert metric(gateway, "tritonrank_gateway_replica_events_total", event="return") >= 1
            # Both have users again.
            before = [requests(served.urls["metrics"]) for served in (first, second)]
            for user in range(USERS):
                rank(gateway, f"u{user}")
            after = [requests(served.urls["metrics"]) for served in (first, second)]
            assert all(now - then >= USERS // 8 for then, now in zip(before, after, strict=True)), (before, after)


async def load(gateway: RunningGateway, kill: object, killed: str) -> tuple[list[int], list[str]]:
    """Callers ask without a pause until the killed replica is back; their status codes and the order of each answer."""
    statuses: list[int] = []
    answers: list[str] = []
    stop = asyncio.Event()
    numbers = itertools.count()

    async def call(client: httpx.AsyncClient) -> None:
        while not stop.is_set():
            user = f"u{next(numbers) % USERS}"
            answer = await client.post("/v1/rank", json={"query": "desk", "items": ITEMS, "user": user})
            statuses.append(answer.status_code)
            answers.append(str([place["index"] for place in answer.json().get("ranking", ())]))

    def is_up() -> bool:
        return metric(gateway, "tritonrank_gateway_replica_up", replica=killed) == 1

    async with httpx.AsyncClient(base_url=gateway.url, timeout=30) as client:
        callers = [asyncio.create_task(call(client)) for _ in range(CALLERS)]
        await asyncio.sleep(BEFORE_SECONDS)
        assert await asyncio.to_thread(is_up)
        kill()  # type: ignore[operator]
        await until(lambda: not is_up(), "the killed replica is still in rotation")
        await until(is_up, "the killed replica did not come back into rotation")
        await until(lambda: len(statuses) > FEWEST, "hardly a request is answered")
        stop.set()
        await asyncio.gather(*callers)
    return statuses, answers


async def until(condition: object, complaint: str) -> None:
    deadline = time.monotonic() + BACK_SECONDS
    while not await asyncio.to_thread(condition):  # type: ignore[arg-type]
        assert time.monotonic() < deadline, complaint
        await asyncio.sleep(0.05)


def rank(gateway: RunningGateway, user: str) -> None:
    answer = httpx.post(f"{gateway.url}/v1/rank", json={"query": "desk", "items": ITEMS}, headers={"X-User-Id": user})
    assert answer.status_code == 200


def requests(metrics_url: str) -> float:
    """Requests that a Triton's ensemble has answered."""
    with urllib.request.urlopen(metrics_url, timeout=10) as page:
        found = re.findall(r'^nv_inference_request_success\{model="rank",[^}]*\} (\d+)', page.read().decode(), re.M)
    return float(found[0])
