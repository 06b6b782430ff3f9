"""The verbs that serve, and put load on what is served. They work where nothing can be built."""

from pathlib import Path
from typing import Annotated, Any

import typer

from tritonrank.artifacts.named import require_build
from tritonrank.cli.options import (
    DEFAULT_ARTIFACTS,
    NO_OVERRIDES,
    ArtifactsRoot,
    Overrides,
    RecipePath,
    app,
    open_recipe,
)
from tritonrank.cli.panels import Panel


@app.command(rich_help_panel=Panel.SERVE)
def serve(
    artifacts: Annotated[
        str,
        typer.Argument(
            metavar="ARTIFACTS", help="artifacts/<recipe>, a repository folder, or a model store's URL[@TAG|@DIGEST]"
        ),
    ],
    build: Annotated[
        str | None,
        typer.Option(
            metavar="ID",
            help="Serve this build and stay with it: an id that `tritonrank builds` lists, or newest; default: the one "
            "that was promoted, whichever that becomes",
        ),
    ] = None,
    host: Annotated[
        str,
        typer.Option(
            help="Address to listen on. 0.0.0.0 (every address) only inside a container, whose ports are published to "
            "whom they concern; the server that pip installs refuses it"
        ),
    ] = "127.0.0.1",
    http_port: Annotated[int, typer.Option(help="0 takes a free port")] = 8000,
    grpc_port: Annotated[int, typer.Option(help="0 takes a free port")] = 8001,
    metrics_port: Annotated[int, typer.Option(help="0 takes a free port")] = 8002,
    grpc_tls: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Serve gRPC with tls.crt and tls.key of this folder; with ca.crt in it, callers must show a "
            "certificate by that authority. HTTP, which has no TLS, is then on loopback only",
        ),
    ] = None,
    ready_timeout: Annotated[float, typer.Option(help="Seconds that all models together may take to load")] = 120.0,
    log_file: Annotated[
        Path | None, typer.Option(help="Where the server's log goes; - shows it here, on standard error")
    ] = None,
    ready_file: Annotated[
        Path | None,
        typer.Option(
            help="A file that is there while golden requests rank as they should, and only then; it holds as JSON how "
            "often the server was brought back, and since when it is ready"
        ),
    ] = None,
    drain_s: Annotated[
        float,
        typer.Option(
            min=0,
            help="Seconds after SIGTERM in which the ready file is gone and requests are served: balancers find out",
        ),
    ] = 0.0,
    admin_port: Annotated[
        int | None,
        typer.Option(
            help="Load, prove and take away further versions through this port, with the key of TRITONRANK_ADMIN_KEY "
            "(docs/rollout.md); 0 takes a free one; default: nothing can be loaded"
        ),
    ] = None,
    admin_host: Annotated[str, typer.Option(help="Address that the port for versions listens on")] = "127.0.0.1",
) -> None:
    """Check files and plans, start Triton, check golden requests through it, and keep it running until Ctrl-C.

    Of a recipe's folder it serves the build that was promoted, the first good one by itself. `tritonrank promote` and
    `tritonrank back` are followed at the same ports within seconds; a build that does not start is not served.
    Of a store's URL it serves what is tagged, fetched and verified, and follows the tag; where the store is away, what
    was fetched last. docs/store.md tells more.

    A server that loses a part, or does not answer any more, is brought back at the same ports within seconds; each time
    is one line on standard error. Exits with 2 when it cannot be started any more. docs/security.md says what is open.

    The server is the container's own where there is one (/opt/tritonserver), else the one that pip installs.
    """
    from tritonrank.serve.running import end_when_terminated, run_until_signalled
    from tritonrank.serve.servable import notes_on_served
    from tritonrank.serve.serving import example_command, serving
    from tritonrank.serve.store_source import served_source

    end_when_terminated()
    shows_log = log_file == Path("-")
    options: dict[str, Any] = {
        "host": host,
        "http_port": http_port,
        "grpc_port": grpc_port,
        "metrics_port": metrics_port,
        "tls": grpc_tls,
    }
    options |= {"ready_timeout_seconds": ready_timeout, "log_file": None if shows_log else log_file}
    admin = None
    if admin_port is not None:
        from tritonrank.serve.versions.door import Door

        admin = Door(admin_port, admin_host, "--admin-port")
    named = served_source(artifacts, build)
    folder = named.folder
    notes = named.notes or notes_on_served(folder, build)  # before the start: it is what was chosen then
    options |= {"build": build, "followed": named.followed, "admin": admin}
    with serving(folder, ready_file, **options, shows_log=shows_log) as server:
        typer.echo(f"HTTP     {server.http_url}\ngRPC     {server.grpc_url}\nmetrics  {server.metrics_url}")
        if admin is not None:
            typer.echo(f"versions {admin.url}")
        for note in notes:
            typer.echo(note)
        example = example_command(folder, server.http_url if grpc_tls else server.grpc_url, build)
        typer.echo(f"\nTry it from another terminal:\n\n{example}\n\nCtrl-C stops the server.")
        run_until_signalled(server, drain_s, server.drain)


@app.command(rich_help_panel=Panel.SERVE)
def demo(recipe: RecipePath, overrides: Overrides = NO_OVERRIDES, artifacts: ArtifactsRoot = DEFAULT_ARTIFACTS) -> None:
    """Build the recipe, start Triton, rank three requests over HTTP and gRPC, recommend, show all that, stop.

    In a terminal the storefront of a recipe with a retrieval section stays open until Ctrl-C.
    """
    loaded, workspace = open_recipe(recipe, overrides, artifacts)
    from tritonrank.pipeline.stages import run_stages
    from tritonrank.report.summary_table import show_summary
    from tritonrank.serve.demo import run_demo

    run_stages(loaded, workspace)
    show_summary(workspace.summary)
    run_demo(workspace.repository)


@app.command(rich_help_panel=Panel.SERVE)
def pack(
    artifacts: Annotated[Path, typer.Argument(metavar="ARTIFACTS", help="artifacts/<recipe>, built to the end")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The archive to write, or a folder for it")] = Path(),
) -> None:
    """Put what a GPU machine needs to check a ranker into one file: FP16 weights, requests, the CPU's scores.

    For example: tritonrank pack artifacts/movielens, which writes movielens.pack.tar.gz. It holds item texts of your
    data.
    """
    require_build(artifacts, "pack")  # before torch is imported
    from tritonrank.gpu_check.pack import make_pack

    make_pack(artifacts, out)


@app.command("gpu-check", rich_help_panel=Panel.SERVE)
def gpu_check_command(
    pack: Annotated[Path, typer.Argument(metavar="PACK", help="What `tritonrank pack` made")],
    out: Annotated[
        Path | None,
        typer.Option(help="The record; default: docs/measurements/<gpu>-<recipe>-<date>.json", metavar="FILE.json"),
    ] = None,
    cpu: Annotated[bool, typer.Option("--cpu", help="Rehearse on the CPU; needs --out")] = False,
    triton: Annotated[bool, typer.Option(help="Serve through Triton too, where a server is found")] = True,
    seconds: Annotated[float, typer.Option(help="For all of it; what does not fit is left out", min=1)] = 460.0,
) -> None:
    """Check a ranker's scores on this GPU machine and measure every executor found: PyTorch, ONNX Runtime, TensorRT.

    What is not installed is named with the command that brings it. Exits with 1 when scores are not the CPU's, with 2
    when there is no GPU. Without tritonrank's own packages: PYTHONPATH=build python3 -m tritonrank.gpu_check.check PACK
    """
    from tritonrank.gpu_check.check import gpu_check

    gpu_check(pack, out, cpu=cpu, triton=triton, seconds=seconds)
