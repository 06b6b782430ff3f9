"""The verb that writes requests of a dataset, for benchmarks and load tests."""

from pathlib import Path
from typing import Annotated

import typer

from tritonrank.cli.options import app
from tritonrank.cli.panels import Panel
from tritonrank.data.workload_options import OPTIONS


def _workload_option(setting: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(help=OPTIONS[setting].meaning)
    return option


@app.command(rich_help_panel=Panel.SERVE)
def workload(
    artifacts: Annotated[Path, typer.Argument(metavar="ARTIFACTS", help="artifacts/<recipe>")],
    out: Annotated[
        Path | None, typer.Option(help="The file to write; default: workload.jsonl in ARTIFACTS", metavar="FILE")
    ] = None,
    requests: Annotated[int, _workload_option("requests")] = OPTIONS["requests"].default,
    candidates: Annotated[str, _workload_option("candidates")] = OPTIONS["candidates"].default,
    users: Annotated[str, _workload_option("users")] = OPTIONS["users"].default,
    returns: Annotated[float, _workload_option("returns")] = OPTIONS["returns"].default,
    returns_within: Annotated[int, _workload_option("returns_within")] = OPTIONS["returns_within"].default,
    rate: Annotated[float, _workload_option("rate")] = OPTIONS["rate"].default,
    arrivals: Annotated[str, _workload_option("arrivals")] = OPTIONS["arrivals"].default,
    seed: Annotated[int, _workload_option("seed")] = OPTIONS["seed"].default,
    history_items: Annotated[int | None, _workload_option("history_items")] = OPTIONS["history_items"].default,
) -> None:
    """Write requests of the dataset with arrival times, one JSON line each, for benchmarks and load tests."""
    from tritonrank.data.workload_settings import workload_settings

    chosen = workload_settings(
        {
            "requests": requests,
            "candidates": candidates,
            "users": users,
            "returns": returns,
            "returns_within": returns_within,
            "rate": rate,
            "arrivals": arrivals,
            "seed": seed,
            "history_items": history_items,
        }
    )
    from tritonrank.data.workload import make_workload

    make_workload(artifacts, out, chosen)
