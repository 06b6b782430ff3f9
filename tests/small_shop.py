"""A shop for tests of what people see: the tiny build's items in a catalogue, its users with their past in SQLite."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import polars as pl
from gateways import RunningGateway, running_gateway
from tiny_catalogue import tiny_catalogue
from tritonrank.artifacts.workspace import Workspace
from tritonrank.serve.first_history import give_first_history
from tritonrank.serve.recommending import Recommending

TEMPLATE = "{title}, {attributes}"
"""of tiny.yaml"""


def make_shop(workspace: Workspace, root: Path) -> list[str]:
    """Lay out what a gateway recommends from; its flags.

    Args:
        workspace: the tiny build.
        root: of the shop, as ``artifacts/<recipe>``.
    """
    root.mkdir(parents=True)
    (root / "dataset").symlink_to(workspace.dataset)
    rows = pl.read_parquet(workspace.dataset / "items.parquet", glob=False).to_dicts()
    items = [row | {"price": float(row["price"])} for row in rows]
    events = pl.read_parquet(workspace.dataset / "events.parquet", glob=False)
    told = [tuple(row) for row in events.select("user_id", "item_id", "timestamp", "label").rows()]
    tiny_catalogue(root / "catalogue", items, told, template=TEMPLATE)
    recommends = Recommending(root)
    with ThreadPoolExecutor(1) as pool:  # Playwright's own loop may run in this thread
        pool.submit(give_first_history, root, recommends.store_file).result()
    return recommends.flags(root / "repository")


@contextmanager
def running_shop(workspace: Workspace, triton: str, root: Path, *more: str) -> Iterator[RunningGateway]:
    """A gateway in front of a Triton that ranks, with the shop of the tiny build."""
    # The machine of tests is busy; a list that came late would be shown without the ranker.
    flags = [*make_shop(workspace, root), "--recommend-deadline-s", "10", *more]
    with running_gateway(triton, root / "gateway", *flags) as running:
        yield running
