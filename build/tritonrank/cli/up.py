"""The verb that needs nothing but a checkpoint, and the one that makes a pickle safe to read."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from tritonrank.cli.options import DEFAULT_ARTIFACTS, ArtifactsRoot, app
from tritonrank.cli.panels import Panel


@app.command(rich_help_panel=Panel.START)
def up(
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET", help="A model of the hub, a checkpoint's folder, what was built already, or a store's URL"
        ),
    ],
    host: Annotated[str, typer.Option(help="Address that the gateway listens on; Triton stays on 127.0.0.1")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="Of the rerank dialects; 0 takes a free one")] = 8080,
    http_port: Annotated[int, typer.Option(help="Triton's; 0 takes a free one")] = 0,
    grpc_port: Annotated[int, typer.Option(help="Triton's; 0 takes a free one")] = 0,
    texts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Your own texts to judge INT8 on: lines of JSON with query and documents, or query, tab, document; "
            "default: some of ours in nine languages",
        ),
    ] = None,
    precision: Annotated[
        Literal["auto", "fp32"], typer.Option(help="auto: INT8 where it ranks as FP32 does; fp32: never INT8")
    ] = "auto",
    max_tokens: Annotated[
        int,
        typer.Option(help="Tokens of query and document together; 0: 1,024, or fewer where the model ends"),
    ] = 0,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a model of the hub")] = None,
    trust_remote_code: Annotated[
        bool,
        typer.Option(
            "--trust-remote-code",
            help="Let code of the checkpoint run while graphs are made; none runs where they serve",
        ),
    ] = False,
    store: Annotated[
        str,
        typer.Option(
            metavar="URL",
            help="Of a build with a catalogue: where users' histories are kept, sqlite:FILE or redis://HOST:PORT/DB; "
            "default: store/store.db in the recipe's folder",
        ),
    ] = "",
    rules: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Of a build with a catalogue: rules of its lists; default: rules.toml in the recipe's folder",
        ),
    ] = None,
    artifacts: ArtifactsRoot = DEFAULT_ARTIFACTS,
) -> None:
    """Serve any reranker: read a checkpoint, make what this machine serves best, start Triton and the gateway.

    Prints one URL, which speaks the dialects of other rerank servers, and a request to copy. Ctrl-C stops everything in
    order. What was made is kept below artifacts/up, so that the next start takes seconds.

    No data are needed: INT8 is held against the checkpoint's own ranking. With labels, tritonrank build judges better.
    A build whose recipe has a retrieval section recommends and searches too, with a storefront to try it: what users
    do is kept in the recipe's folder, and a promotion moves the catalogue together with the ranker.

    docs/up.md says which models work. For example: tritonrank up BAAI/bge-reranker-base
    """
    from tritonrank.serve.running import end_when_terminated

    end_when_terminated()
    from tritonrank.pipeline.up import UpOptions
    from tritonrank.pipeline.up_serving import UpPorts, UpRecommending, serve_target

    options = UpOptions(revision, texts, max_tokens, precision, trust_remote_code)
    serve_target(target, options, artifacts, UpPorts(host, port, http_port, grpc_port), UpRecommending(store, rules))


@app.command("convert-weights", rich_help_panel=Panel.START)
def convert_weights_command(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A checkpoint whose weights are pickles (.bin)")],
) -> None:
    """Write safetensors beside the pickles of a checkpoint: only tensors are read, in a process without a network.

    Nothing else of a pickle is ever executed: torch.load(weights_only=True) refuses it.
    """
    from tritonrank.pipeline.convert_weights import convert_weights

    for written in convert_weights(folder):
        typer.echo(f"{written}")
