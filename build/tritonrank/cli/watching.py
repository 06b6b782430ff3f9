"""The verb that shows what servers on this machine do now."""

from typing import Annotated

import typer
from rich.console import Console

from tritonrank.cli.options import app
from tritonrank.cli.panels import Panel


@app.command("watch", rich_help_panel=Panel.SERVE)
def watch_command(
    urls: Annotated[
        list[str] | None,
        typer.Argument(
            help="Metrics pages of gateways and Tritons; by default those on the usual ports, 8081 and 8002",
            metavar="URL",
            show_default=False,
        ),
    ] = None,
    every: Annotated[float, typer.Option(help="Seconds between two looks", min=0.1)] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Print one page, and end")] = False,
) -> None:
    """Show live what servers do now: rates, latency, queue, caches, drift, the level of adapting, the last alerts.

    It needs no Prometheus. Ctrl+C ends it.
    """
    from tritonrank.serve.watch.watching import watch

    watch(urls or [], every, once=once, console=Console(emoji=False, highlight=False))
