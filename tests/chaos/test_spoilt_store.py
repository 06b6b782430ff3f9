"""A store's file that was overwritten: nobody meets a 500, pages come without it, and health goes on."""

from pathlib import Path

import httpx
import pytest
from gateways import running_gateway
from tiny_catalogue import tiny_catalogue

EVENT = {"user_id": "u1", "type": "click", "item_id": "item-00"}
GARBAGE = b"\xa5" * 8_192


@pytest.mark.slow
def test_a_store_that_is_overwritten_is_told_and_pages_go_on(tmp_path: Path) -> None:
    tiny_catalogue(tmp_path / "catalogue")
    store = f"sqlite:{tmp_path / 'store.db'}"
    flags = ("--catalogue", str(tmp_path / "catalogue"), "--store", store, "--no-access-log")
    with running_gateway("127.0.0.1:1", tmp_path / "gateway", *flags) as gateway:
        assert httpx.post(f"{gateway.url}/v1/events", json=EVENT, timeout=20).status_code == 200
        _overwrite(tmp_path)
        for number in range(6):
            taken = httpx.post(f"{gateway.url}/v1/events", json=EVENT | {"event_id": str(number)}, timeout=20)
            assert taken.status_code == 503, (taken.status_code, taken.text)
            assert "/" not in taken.json()["error"]["message"], "no path"
            page = httpx.post(f"{gateway.url}/v1/recommend", json={"user_id": "u1", "size": 5}, timeout=20)
            assert page.status_code == 200, page.text
            assert len(page.json()["items"]) == 5
            assert "store: unavailable" in page.json()["degraded_reasons"]
        assert httpx.get(f"{gateway.url}/v1/users/u1", timeout=20).status_code == 503


def _overwrite(folder: Path) -> None:
    for path in folder.glob("store.db*"):
        with path.open("r+b") as file:
            size = path.stat().st_size
            for start in range(0, size, len(GARBAGE)):
                file.seek(start)
                file.write(GARBAGE[: size - start])
