"""The verb that writes requests of a dataset, for benchmarks and load tests."""

from pathlib import Path
from typing import Annotated

import typer

from tritonrank.cli.options import app
from tritonrank.data.workload_settings import WorkloadSettings, workload_settings

WORKLOAD_DEFAULTS = WorkloadSettings()


def _workload_option(setting: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(help=WorkloadSettings.model_fields[setting].description)
    return option


@app.command()
def workload(
    artifacts: Annotated[Path, typer.Argument(metavar="ARTIFACTS", help="artifacts/<recipe>")],
    out: Annotated[
        Path | None, typer.Option(help="The file to write; default: workload.jsonl in ARTIFACTS", metavar="FILE")
    ] = None,
    requests: Annotated[int, _workload_option("requests")] = WORKLOAD_DEFAULTS.requests,
    candidates: Annotated[str, _workload_option("candidates")] = WORKLOAD_DEFAULTS.candidates,
    users: Annotated[str, _workload_option("users")] = WORKLOAD_DEFAULTS.users,
    returns: Annotated[float, _workload_option("returns")] = WORKLOAD_DEFAULTS.returns,
    returns_within: Annotated[int, _workload_option("returns_within")] = WORKLOAD_DEFAULTS.returns_within,
    rate: Annotated[float, _workload_option("rate")] = WORKLOAD_DEFAULTS.rate,
    arrivals: Annotated[str, _workload_option("arrivals")] = WORKLOAD_DEFAULTS.arrivals,
    seed: Annotated[int, _workload_option("seed")] = WORKLOAD_DEFAULTS.seed,
    history_items: Annotated[int | None, _workload_option("history_items")] = WORKLOAD_DEFAULTS.history_items,
) -> None:
    """Write requests of the dataset with arrival times, one JSON line each, for benchmarks and load tests."""
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
