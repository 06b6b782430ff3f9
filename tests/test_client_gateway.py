"""`tritonrank_client.open` of a gateway's URL: the answers of the Triton behind it, through the same methods."""

import asyncio
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
import tritonrank_client
from conftest import Served
from gateways import RunningGateway, running_gateway
from refused_ports import refused_address
from tritonrank_client import (
    AsyncRankClient,
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    RankClient,
    Retry,
    Unavailable,
)

KEY = "a-secret-of-16-characters"
AWKWARD = [
    "oak desk",
    "",
    {"title": "Brass lamp", "genres": ["light", "metal"]},
    '{"title": "a text that looks like fields"}',
    {"text": "fields that a gateway could take for a text"},
    " \t",
    "oak desk",
    "x" * 5_000,
    "漢字 and Ümläute",
]
OPTIONS = [
    {},
    {"top_k": 3, "want": ["item_tokens", "truncated", "context_tokens"]},
    {"item_ids": [1, 2, 3, "1", "e", "f", 1, 8, 9], "want": ["truncated"]},
    {"max_item_tokens": 3, "truncate_left": True, "want": ["item_tokens"]},
    {"request_id": "r-1", "user": "Ünal"},
    {"request_id": "ü 漢" * 100},
]


@pytest.fixture(scope="module")
def gateway(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    with running_gateway(served.urls["grpc"], tmp_path_factory.mktemp("gateway")) as running:
        yield running


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_answers_of_the_triton_behind_it(
    served: Served, gateway: RunningGateway, options: dict[str, object]
) -> None:
    asked = {"query": "a desk", "history": ["lamp", {"title": "chair"}, ""], "items": AWKWARD, **options}
    with RankClient(served.urls["grpc"]) as triton, tritonrank_client.open(gateway.url) as client:
        there, here = triton.rank(**asked), client.rank(**asked)  # type: ignore[arg-type]
    assert here.indices == there.indices
    np.testing.assert_allclose(here.scores, there.scores, atol=1e-5)
    for name in ("artifact", "item_tokens", "truncated", "context_tokens"):
        assert getattr(here, name) == getattr(there, name)
    assert [place.has_text for place in here.ranking] == [place.has_text for place in there.ranking]
    assert [place.item_id for place in here.ranking] == [place.item_id for place in there.ranking]

    async def ask() -> tuple[float, ...]:
        async with await tritonrank_client.open_async(gateway.url) as asking:
            return (await asking.rank(**asked)).scores  # type: ignore[arg-type]

    assert asyncio.run(ask()) == here.scores


def test_http_is_asked_once_what_it_is(served: Served, gateway: RunningGateway) -> None:
    with (
        tritonrank_client.open(served.urls["http"]) as triton,
        tritonrank_client.open(gateway.url) as client,
        RankClient(served.urls["grpc"]) as behind,
    ):
        assert client.model_info() == behind.model_info()
        assert client.rank(items=["desk"]).scores == pytest.approx(triton.rank(items=["desk"]).scores, abs=1e-5)
        assert triton.health()
        assert client.health()
    named = gateway.url.replace("http://", "gateway+http://")
    with tritonrank_client.open(named) as client:
        assert client.rank(items=["desk"]).attempts == 1


def test_nobody_there() -> None:
    address = refused_address()
    with pytest.raises(Unavailable):
        tritonrank_client.open(f"http://{address}", retry=Retry(attempts=2))
    with tritonrank_client.open(f"gateway+http://{address}", retry=Retry(attempts=1)) as client:
        assert not client.health().live
        with pytest.raises(Unavailable):
            client.rank(items=["desk"])


def test_a_gateway_without_a_triton(tmp_path_factory: pytest.TempPathFactory) -> None:
    with (
        running_gateway(f"grpc://{refused_address()}", tmp_path_factory.mktemp("alone")) as running,
        tritonrank_client.open(running.url, timeout=1.0) as client,
    ):
        state = client.health()
        assert (state.live, state.ready) == (True, False)
        with pytest.raises((Unavailable, DeadlineExceeded)):
            client.rank(items=["desk"])


@pytest.mark.parametrize(
    ("asked", "error", "said"),
    [
        ({"items": ["a"] * 2_000}, InvalidRequest, "1000"),
        ({"items": ["a", {"title": {"nested": 1}}]}, InvalidRequest, r"items\[1\]"),
        ({"items": ["a"], "timeout": 0.002}, DeadlineExceeded, "deadline"),
    ],
    ids=["candidates", "fields", "deadline"],
)
def test_errors_are_the_same(
    gateway: RunningGateway, asked: dict[str, object], error: type[Exception], said: str
) -> None:
    with tritonrank_client.open(gateway.url) as client, pytest.raises(error, match=said):
        client.rank(**asked)  # type: ignore[arg-type]


def test_a_key_goes_into_the_headers(served: Served, tmp_path_factory: pytest.TempPathFactory) -> None:
    environment = {"TRITONRANK_GATEWAY_KEYS": f"test={KEY}"}
    with running_gateway(served.urls["grpc"], tmp_path_factory.mktemp("keyed"), environment=environment) as keyed:
        with tritonrank_client.open(keyed.url) as client, pytest.raises(InvalidRequest, match="headers="):
            client.rank(items=["desk"])
        with tritonrank_client.open(keyed.url, headers={"Authorization": f"Bearer {KEY}"}) as client:
            assert client.rank(items=["desk"]).attempts == 1
            assert client.model_info().name == "rank"
        assert httpx.get(f"{keyed.url}/v1/rank").status_code == 401


def test_a_full_gateway_is_overloaded(served: Served, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("narrow")

    async def crowd(url: str) -> list[object]:
        async with AsyncRankClient(f"gateway+{url}", retry=Retry(attempts=1)) as client:
            items = [f"desk number {number}" for number in range(500)]
            calls = (client.rank(query=str(number), items=items) for number in range(8))
            return await asyncio.gather(*calls, return_exceptions=True)

    with running_gateway(served.urls["grpc"], folder, "--max-in-flight", "1") as narrow:
        answers = asyncio.run(crowd(narrow.url))
    assert any(isinstance(answer, Overloaded) for answer in answers)
    assert any(not isinstance(answer, Exception) for answer in answers)


def test_what_is_the_gateways_own_choice() -> None:
    with pytest.raises(ValueError, match="model"):
        RankClient("gateway+http://127.0.0.1:8080", model="another")
    with pytest.raises(ValueError, match="threads"):
        RankClient("gateway+http://127.0.0.1:8080", threads=2)
