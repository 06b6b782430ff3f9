"""A recommendation while a part is really gone: Triton stopped or killed, Valkey killed, files removed.

There is always a list and never a 500; it says what was missing; and all is well again by itself.
"""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
import valkeys
from gateways import RunningGateway, running_gateway
from test_supervisor import ServeCommand, serve_command
from tiny_catalogue import tiny_catalogue
from tritonrank.artifacts.workspace import Workspace

pytestmark = pytest.mark.slow
BACK_SECONDS = 60.0
HISTORY = ["item-00", "item-04"]
ASKED = {"user_id": "u", "recent": HISTORY, "query": "red lamp", "size": 5}


@pytest.fixture(scope="module")
def triton(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeCommand]:
    root = tmp_path_factory.mktemp("triton")
    shutil.copytree(workspace.repository, root / "repository")
    with serve_command(root / "repository", root) as served:
        yield served


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[valkeys.Valkey]:
    with valkeys.running(tmp_path_factory.mktemp("v")) as server:
        yield server


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_catalogue(tmp_path_factory.mktemp("catalogue") / "catalogue")


def gateway_of(triton: ServeCommand, folder: Path, catalogue: Path, *flags: str) -> Any:
    address = urlsplit(triton.urls["gRPC"]).netloc
    own = ("--catalogue", str(catalogue), "--recommend-deadline-s", "1.5", "--no-playground")
    return running_gateway(address, folder, *own, *flags)


@pytest.fixture(scope="module")
def gateway(
    triton: ServeCommand, store: valkeys.Valkey, catalogue: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningGateway]:
    with gateway_of(triton, tmp_path_factory.mktemp("gateway"), catalogue, "--store", store.url) as running:
        wait_for(running, lambda told: not told["reasons"])
        yield running


def recommend(gateway: RunningGateway, **changes: Any) -> dict[str, Any]:
    began = time.monotonic()
    answer = httpx.post(f"{gateway.url}/v1/recommend", json=ASKED | changes, timeout=20)
    assert answer.status_code == 200, (answer.text, gateway.log[-2_000:])
    told: dict[str, Any] = answer.json()
    assert told["items"]
    reasons = told.get("degraded_reasons", [])
    assert bool(reasons) == told.get("degraded", False)
    return told | {"reasons": reasons, "seconds": time.monotonic() - began}


def wait_for(gateway: RunningGateway, is_so: Callable[[dict[str, Any]], bool], **changes: Any) -> dict[str, Any]:
    deadline = time.monotonic() + BACK_SECONDS
    while not is_so(told := recommend(gateway, **changes)):
        assert time.monotonic() < deadline, (told, gateway.log[-2_000:])
        time.sleep(0.05)
    return told


def ids(told: dict[str, Any]) -> list[str]:
    return [item["item_id"] for item in told["items"]]


@pytest.mark.parametrize("end", ["stopped", "killed"])
def test_without_triton_the_fused_order_is_shown(gateway: RunningGateway, triton: ServeCommand, end: str) -> None:
    whole = wait_for(gateway, lambda told: not told["reasons"])
    assert all("logit" in item for item in whole["items"])
    fused = ids(recommend(gateway, order="retrieval"))
    victims = [triton.triton, *triton.triton.children(recursive=True)]
    # Whoever looks after it would wake it at once, or start another within a second or two.
    keepers = [psutil.Process(triton.program.pid), triton.keeper]
    for keeper in keepers:
        keeper.suspend()
    parts = [*victims, *reversed(keepers)]
    for part in victims:
        with suppress(psutil.NoSuchProcess):
            part.suspend() if end == "stopped" else part.kill()  # stopped: it takes connections and answers nothing
    try:
        # A signal may take a moment to arrive. (On a busy machine the store may be slow as well.)
        told = wait_for(gateway, lambda told: any(one.startswith("ranker: ") for one in told["reasons"]))
        assert told["seconds"] < 5
        assert {"ranker: too slow", "ranker: unavailable"} & set(told["reasons"])
        assert ids(told) == fused
        assert all("logit" not in item for item in told["items"])
    finally:
        for part in parts:
            with suppress(psutil.NoSuchProcess):
                part.resume()
    assert ids(wait_for(gateway, lambda told: not told["reasons"])) == ids(whole)


def test_without_the_store_the_request_itself_is_the_history(gateway: RunningGateway, store: valkeys.Valkey) -> None:
    event = {"type": "purchase", "user_id": "u2", "item_id": "item-08", "event_id": "e1"}
    assert httpx.post(f"{gateway.url}/v1/events", json=event, timeout=20).status_code == 200
    known = recommend(gateway, user_id="u2", recent=[])
    assert (known.get("cold", False), known["reasons"]) == (False, [])
    store.kill()
    try:
        told = recommend(gateway, user_id="u2", recent=HISTORY)
        assert any(reason.startswith("store:") for reason in told["reasons"])
        assert told["seconds"] < 5
        nobody = recommend(gateway, user_id="u2", recent=[])
        assert nobody["cold"]
        # A list that was begun now goes on, and one from before is made anew and says so.
        second = recommend(gateway, user_id="u2", cursor=told["cursor"])
        assert not set(ids(told)) & set(ids(second))
        before = recommend(gateway, user_id="u2", cursor=known["cursor"])
        assert "page: made anew" in before["reasons"]
        refused = httpx.post(f"{gateway.url}/v1/events", json=event | {"event_id": "e2"}, timeout=20)
        assert refused.status_code == 503
    finally:
        store.start()
    back = wait_for(gateway, lambda told: not told["reasons"], user_id="u2", recent=[])
    assert not back.get("cold", False)


def test_without_the_catalogue_what_was_popular_is_shown(
    triton: ServeCommand, store: valkeys.Valkey, catalogue: Path, tmp_path: Path
) -> None:
    own = tmp_path / "catalogue"
    shutil.copytree(catalogue, own)
    flags = ("--store", f"sqlite:{tmp_path / 'store.db'}")
    with gateway_of(triton, tmp_path / "gateway", own, *flags) as running:
        whole = wait_for(running, lambda told: not told["reasons"])
    (own / "vectors.npy").unlink()
    with gateway_of(triton, tmp_path / "gateway", own, *flags) as running:
        told = recommend(running)
        assert any(reason.startswith("catalogue.two-tower: ") for reason in told["reasons"])
    shutil.rmtree(own)
    with gateway_of(triton, tmp_path / "gateway", own, *flags) as running:
        told = recommend(running)
        assert "catalogue: missing" in told["reasons"]
        assert all(item["fields"]["title"] for item in told["items"])
        assert httpx.get(f"{running.url}/v1/similar/item-00", timeout=20).status_code == 503
        # The next artifact is taken when it is published.
        shutil.copytree(catalogue, tmp_path / "next")
        (tmp_path / "next").rename(own)
        assert ids(wait_for(running, lambda told: not told["reasons"])) == ids(whole)
        # Files that vanish under a catalogue that is open take nothing from those who look.
        shutil.rmtree(own)
        assert ids(recommend(running)) == ids(whole)
