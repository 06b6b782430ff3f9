"""The product's own client, on its four transports: whatever it is given, it answers with a ranking or a RankError."""

import asyncio
from collections.abc import Mapping
from random import Random
from typing import Any

from tritonrank_client import AsyncRankClient, RankClient, RankError, Retry

from loadtests.fuzz.record import Answer
from loadtests.fuzz.values import COUNTS, TEXTS

TIMEOUTS = (0.001, 0.01, 0.1, 2.0, 2.0, 2.0)
"""Of a call, in seconds; the short ones are given up while the server works."""
SHOWN = 300
ITEMS: tuple[Any, ...] = (*TEXTS, {"title": "x"}, {"title": None}, {"": "x"}, {}, {"title": [1, {"a": "b"}]})


class ClientFuzz:
    """Calls one server.

    Args:
        urls: by protocol.
    """

    def __init__(self, urls: Mapping[str, str]) -> None:
        self._urls = urls
        self._clients = {name: RankClient(url, retry=Retry(attempts=1)) for name, url in urls.items()}

    def close(self) -> None:
        for client in self._clients.values():
            client.close()

    def call(self, random: Random) -> Answer:
        """One call with arguments of which some are hostile."""
        arguments = hostile_arguments(random)
        protocol, is_async = random.choice(list(self._urls)), random.random() < 0.5
        shown = f"{protocol}{', async' if is_async else ''}: {str(arguments)[:SHOWN]}"
        try:
            if is_async:
                asyncio.run(self._call_async(protocol, arguments))
            else:
                self._clients[protocol].rank(**arguments)
        except RankError as error:
            return Answer(type(error).__name__, str(error), shown)
        except Exception as error:  # noqa: BLE001 - that there is no other kind is what is looked at
            return Answer(type(error).__name__, str(error), shown, is_expected=False)
        return Answer("OK", "", shown)

    async def _call_async(self, protocol: str, arguments: Mapping[str, Any]) -> None:
        async with AsyncRankClient(self._urls[protocol], retry=Retry(attempts=1)) as client:
            await client.rank(**arguments)


def hostile_arguments(random: Random) -> dict[str, Any]:
    count = random.choice(COUNTS[:4]) if random.random() < 0.05 else random.choice([0, 1, 2, 5])
    arguments: dict[str, Any] = {
        "query": random.choice([*TEXTS, 5, None]),
        "history": [random.choice(ITEMS) for _ in range(random.choice([0, 1, 3]))],
        "items": [random.choice(ITEMS) if random.random() < 0.3 else f"lamp {place}" for place in range(count)],
        "timeout": random.choice(TIMEOUTS),
    }
    if random.random() < 0.2:
        arguments["item_ids"] = [str(place) for place in range(random.choice([count, count + 1]))]
    if random.random() < 0.2:
        arguments["top_k"] = random.choice([0, 1, count, -1, 2**31, 2**63, "1"])
    return arguments
