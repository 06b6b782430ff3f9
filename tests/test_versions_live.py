"""Versions in one real Triton behind a real gateway: shadowed, given to users, swapped under load."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from conftest import Served
from gateways import RunningGateway, running_gateway
from tritonrank.artifacts.workspace import Workspace

KEY = "an-admin-key-for-tests"
ITEMS = ["oak desk", "lamp", "oak chair with arms", "a desk of glass", "shelf", "rug", "sofa", "bed", "stool", "pine"]
ITEMS += ["desk lamp", "a wardrobe of pine"]
USERS, CALLERS = 40, 4
SWAPS = 12
WARM_SWAPS = 4
"""After which a gateway has opened whatever it keeps."""
PATIENCE_SECONDS = 60

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def gateway(served: Served, workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    folder = tmp_path_factory.mktemp("gateway")
    golden = str(workspace.repository / "golden.json")
    flags = ("--no-access-log", "--golden", golden)
    environment = {"TRITONRANK_ADMIN_KEY": KEY}
    with running_gateway(served.urls["grpc"], folder, *flags, environment=environment) as running:
        yield running


@asynccontextmanager
async def clients(gateway: RunningGateway) -> AsyncIterator[tuple[httpx.AsyncClient, httpx.AsyncClient]]:
    """For callers and for the private port."""
    shown = {"Authorization": f"Bearer {KEY}"}
    async with (
        httpx.AsyncClient(base_url=gateway.url, timeout=60) as http,
        httpx.AsyncClient(base_url=gateway.metrics_url, timeout=60, headers=shown) as own,
    ):
        yield http, own


def version(served: Served, model: str, share: float = 1.0, **said: Any) -> dict[str, Any]:
    name = model.replace("_", "-")
    return {"name": name, "triton": [urlsplit(served.urls["grpc"]).netloc], "model": model, "share": share} | said


async def rank(http: httpx.AsyncClient, user: str) -> httpx.Response:
    return await http.post("/v1/rank", json={"query": "a desk of oak", "items": ITEMS, "user": user})


@pytest.mark.parametrize(("model", "is_alike"), [("rank_fp32", True), ("rank_joint", False)])
async def test_a_shadow_tells_a_version_like_live_from_another(
    served: Served, gateway: RunningGateway, model: str, is_alike: bool
) -> None:
    async with clients(gateway) as (http, own):
        live = (await rank(http, "u")).headers["x-artifact"]
        assert (await own.put("/versions/shadow", json=version(served, model))).status_code == 200
        numbers = itertools.count()
        async with asyncio.timeout(PATIENCE_SECONDS):
            while (shadow := (await own.get("/versions/comparison")).json()["shadow"])["pairs"]["count"] < 20:
                answer = await rank(http, f"u{next(numbers)}")
                assert (answer.status_code, answer.headers["x-artifact"]) == (200, live)
        pairs = shadow["pairs"]
        overlap, drift = pairs["rbo"] / pairs["count"], pairs["drift"] / pairs["drift_count"]
        assert (overlap > 0.9 and drift < 0.3) if is_alike else (overlap < 0.9 and drift > 0.3), (overlap, drift)
        assert shadow["version"]["failed"] == 0
        assert (await own.delete("/versions/shadow")).status_code == 200


async def test_a_canary_of_several_replicas_has_its_own(served: Served, gateway: RunningGateway) -> None:
    address = urlsplit(served.urls["grpc"]).netloc
    both = [address, f"localhost:{address.rpartition(':')[2]}"]
    async with clients(gateway) as (http, own):
        answer = await own.put("/versions/canary", json=version(served, "rank_joint", 0.5, triton=both))
        assert answer.status_code == 200, answer.text
        given = {(answer := await rank(http, f"u{number}")).headers["x-artifact"] for number in range(12)}
        assert len(given) == 2
        up = [line for line in (await own.get("/metrics")).text.splitlines() if "replica_up{" in line]
        assert sorted(line.rpartition(" ")[0] for line in up) == [
            f'tritonrank_gateway_replica_up{{replica="{name}",version="canary"}}' for name in sorted(both)
        ]
        assert (await own.delete("/versions/canary")).status_code == 200
        assert "replica_up{" not in (await own.get("/metrics")).text


async def test_versions_are_swapped_under_load_and_nobody_notices(served: Served, gateway: RunningGateway) -> None:
    answers: list[tuple[int, str]] = []
    stop = asyncio.Event()
    numbers = itertools.count()

    async def call(http: httpx.AsyncClient) -> None:
        while not stop.is_set():
            answer = await rank(http, f"u{next(numbers) % USERS}")
            answers.append((answer.status_code, answer.headers.get("x-artifact", answer.text)))

    async with clients(gateway) as (http, own):
        callers = [asyncio.create_task(call(http)) for _ in range(CALLERS)]
        open_files = []
        for model in itertools.islice(itertools.cycle(["rank_joint", "rank"]), SWAPS):
            for role, share in (("canary", 0.2), ("canary", 0.6), ("live", 0.0)):
                answer = await own.put(f"/versions/{role}", json=version(served, model, share))
                assert answer.status_code == 200, answer.text
            assert (await own.delete("/versions/canary")).status_code == 200
            open_files.append(len(list(Path(f"/proc/{gateway.process.pid}/fd").iterdir())))
        stop.set()
        await asyncio.gather(*callers)
    assert {status for status, _ in answers} == {200}, [answer for answer in answers if answer[0] != 200][:3]
    assert len({artifact for _, artifact in answers}) == 2
    assert len(answers) > SWAPS
    assert max(open_files[WARM_SWAPS:]) <= open_files[WARM_SWAPS - 1] + CALLERS, open_files
    assert "Traceback" not in gateway.log
