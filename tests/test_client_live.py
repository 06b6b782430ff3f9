"""What the client relies on in a real Triton, which a stand-in could only repeat."""

import asyncio
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import Served
from tritonrank_client import AsyncRankClient, DeadlineExceeded, Overloaded, RankClient, Retry

PROTOCOLS = pytest.mark.parametrize("protocol", ["http", "grpc"])
ITEMS = ["oak desk", "brass lamp"]


@PROTOCOLS
@pytest.mark.parametrize("request_id", ["", "r-1", 'Ü "quoted" \\ / 漢 <b>', "x" * 2_000], ids=lambda value: value[:8])
def test_an_answer_bears_the_id_of_its_request(served: Served, protocol: str, request_id: str) -> None:
    """The client checks the id; Triton hands it through the ensemble and back as it was."""
    with RankClient(served.urls[protocol]) as client:
        expected = client.rank(items=ITEMS, request_id=request_id)
        assert expected.attempts == 1

    async def ask() -> None:
        async with AsyncRankClient(served.urls[protocol]) as client:
            result = await client.rank(items=ITEMS, request_id=request_id)
            assert (result.attempts, result.indices) == (1, expected.indices)

    asyncio.run(ask())


def test_short_deadlines_over_grpc_leave_the_server_alive(served: Served) -> None:
    """A short form of the load that ends tritonserver 2.51 when clients cancel (issue 7368 of triton's server)."""

    def work(seed: int) -> Counter[str]:
        chance, counts = random.Random(seed), Counter[str]()
        with RankClient(served.urls["grpc"], retry=Retry(attempts=1)) as client:
            for _ in range(300):
                try:
                    client.rank(items=ITEMS, query=str(seed), timeout=chance.uniform(0.001, 0.05))
                    counts["answered"] += 1
                except (DeadlineExceeded, Overloaded) as error:
                    counts[type(error).__name__] += 1
        return counts

    with ThreadPoolExecutor(4) as pool:
        counts = sum(pool.map(work, range(4)), Counter[str]())
    assert counts["DeadlineExceeded"] > 10
    served.triton.check()
    with RankClient(served.urls["grpc"]) as client:
        assert client.health()
        assert client.rank(items=ITEMS).attempts <= 3
