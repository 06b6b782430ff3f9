"""What the demo shows of recommending: a list, a click, the list that follows, in one small table."""

import os
import socket
import sys
import time

from rich.console import Console
from rich.table import Table
from tritonrank_client import RankClient, RecommendedItem

from tritonrank.serve.gateway_child import GatewayChild

SHOWN_ITEMS = 5
CLICKED = 2
"""Place in the list of the item that is clicked."""
PORT = 8080
PATIENCE_SECONDS = 30.0
"""For a list on a busy machine; one that came in time says its own milliseconds."""

console = Console()


def show_shop(gateway: GatewayChild, query: str) -> None:
    """Recommend to a visitor before and after a click, and with a search, and print what came."""
    visitor = f"visitor-{time.time_ns()}"
    with RankClient(f"gateway+{gateway.url}", timeout=PATIENCE_SECONDS) as client:
        before = client.recommend(visitor, size=SHOWN_ITEMS)
        if not before.items:
            return
        clicked = before.items[min(CLICKED, len(before.items) - 1)]
        began = time.monotonic()
        client.send_events([{"user_id": visitor, "type": "click", "item_id": clicked.item_id, "page": before.page}])
        after = client.recommend(visitor, size=SHOWN_ITEMS)
        seconds = time.monotonic() - began
        searched = client.recommend(visitor, query=query, size=SHOWN_ITEMS, explain=True)
    table = Table("", "a new visitor", f"after a click on “{_name(clicked)}”", f"and a search for “{query}”")
    lists = [[_name(item) for item in one.items] for one in (before, after, searched)]
    for place in range(SHOWN_ITEMS):
        table.add_row(str(place + 1), *(names[place] if place < len(names) else "" for names in lists))
    console.print("\n[bold]Recommend and search[/], out of the whole catalogue:")
    console.print(table)
    times = ", ".join(f"{step} {value:.1f}" for step, value in after.milliseconds.items())
    console.print(
        f"  the click was known, and the next list there, after {1e3 * seconds:.0f} ms ({times} ms in the gateway)",
        highlight=False,
    )
    if searched.items and (explanation := searched.items[0].explanation):
        console.print(f"  why “{_name(searched.items[0])}”: {explanation.sentence}", highlight=False, markup=False)


def is_watched() -> bool:
    """Whether somebody sits at a terminal, who can end what would go on for ever."""
    return sys.stdin.isatty() and sys.stdout.isatty() and not os.environ.get("CI")


def free_port() -> int:
    """The usual one, where nobody listens there; else 0, any free one."""
    with socket.socket() as tried:
        return 0 if tried.connect_ex(("127.0.0.1", PORT)) == 0 else PORT


def _name(item: RecommendedItem) -> str:
    from tritonrank_recommend.engine.sentences import name_of

    return name_of(str(item.item_id), dict(item.fields))
