"""Run a fleet in this process until it is told to stop, and show it."""

import asyncio
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from tritonrank.artifacts.builds import BUILDS
from tritonrank.serve.fleet.control import Control
from tritonrank.serve.fleet.fleet import Fleet
from tritonrank.serve.fleet.plan import Plan
from tritonrank.serve.fleet.state_folder import StateFolder
from tritonrank.serve.supervisor import tell


def run_fleet(plan: Plan, folder: StateFolder, ready: Callable[[Fleet], None] = lambda fleet: None) -> None:
    """Until SIGINT, SIGTERM or `tritonrank fleet down`; then everything ends in order.

    Args:
        plan: what it is to be.
        folder: is taken, and given back.
        ready: called once all members are ready.

    Raises:
        TritonRankError: nothing can be served, HAProxy does not start, or another fleet has the folder.
    """
    for name in folder.open():
        tell(f"{name}, which a fleet before left running, was ended")
    try:
        asyncio.run(_run(plan, folder, ready))
    finally:
        folder.close()


async def _run(plan: Plan, folder: StateFolder, ready: Callable[[Fleet], None]) -> None:
    controls: list[Control] = []

    def told(line: str) -> None:
        tell(line)
        for control in controls:
            control.tell(line)

    fleet = Fleet(plan, folder, told)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, fleet.stopping.set)

    async def announce() -> None:
        while not fleet.status()["is_settled"]:
            await asyncio.sleep(0.1)
        ready(fleet)

    async with Control(fleet, folder.control) as control:
        controls.append(control)
        announcing = asyncio.create_task(announce())
        try:
            await fleet.run()
        finally:
            announcing.cancel()


def build_name(repository: str) -> str:
    """Of a build its id, of a repository alone its folder."""
    parts = Path(repository).parts
    return parts[-2] if len(parts) > 2 and parts[-3] == BUILDS else parts[-2 if len(parts) > 2 else -1]


def show_status(status: dict[str, Any], console: Console | None = None) -> None:
    """As a table."""
    console = console or Console(file=sys.stdout, emoji=False, highlight=False)
    table = Table("member", "state", Column("address", no_wrap=True), "revision", "serves", "process", "seconds")
    for one in status["members"]:
        table.add_row(
            one["name"], one["state"], one["address"], str(one["revision"]), build_name(one["repository"]),
            str(one["pid"]), f"{one['seconds']:.0f}",
        )  # fmt: skip
    console.print(table)
    wanted = ", ".join(f"{count} of kind {kind}" for kind, count in status["wanted"].items())
    scale = f"; autoscaled {status['autoscale'][0]} to {status['autoscale'][1]}" if status["autoscale"] else ""
    settled = "all are ready" if status["is_settled"] else "not all are ready"
    console.print(f"{status['url']}  {status['grpc_url']}  wanted: {wanted}{scale}; {settled}", soft_wrap=True)
    for said in status["failures"]:
        console.print(f"failed: {said}", markup=False, soft_wrap=True)
