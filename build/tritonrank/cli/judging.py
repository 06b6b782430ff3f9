"""The verbs that judge what was built, and show it."""

import json
import sys
import time
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from tritonrank.artifacts import write_whole
from tritonrank.artifacts.builds import served_name
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


@app.command(rich_help_panel=Panel.JUDGE)
def evaluate(
    recipe: RecipePath,
    overrides: Overrides = NO_OVERRIDES,
    artifacts: ArtifactsRoot = DEFAULT_ARTIFACTS,
    artifact: Annotated[Path | None, typer.Option(help="Judge this model folder (checkpoint or ONNX)")] = None,
    server: Annotated[str | None, typer.Option(help="Judge a live server, such as grpc://127.0.0.1:8001")] = None,
    against: Annotated[Path | None, typer.Option(help="Parent of the gate; default: the fine-tuned checkpoint")] = None,
    live: Annotated[
        bool, typer.Option("--live", help="Serve every rung of the build with Triton, and judge it")
    ] = False,
    rung: Annotated[list[str] | None, typer.Option(help="With --live: only this one, such as INT8; repeatable")] = None,
) -> None:
    """Judge a model folder or a live server on the recipe's test examples, and hold it against its parent.

    Exits with 1 when the gate closes. Without --artifact and --server: the table of the whole build. With --live: every
    rung of the ladder, served one after the other, has to answer as it was judged in process (minutes per rung).
    """
    loaded, workspace = open_recipe(recipe, overrides, artifacts)
    if live:
        from tritonrank.serve.live import judge_live

        judge_live(loaded, workspace, rung or [])
        return
    if artifact is None and server is None:
        from tritonrank.pipeline.stages import run_stages
        from tritonrank.report.answer import SUMMARY_FILE, exit_code
        from tritonrank.report.summary_table import show_summary

        run_stages(loaded, workspace)
        show_summary(workspace.summary)
        raise typer.Exit(exit_code(workspace.summary / SUMMARY_FILE, loaded.gate.training))
    from tritonrank.judge.against_parent import judge_against_parent

    judge_against_parent(loaded, workspace, artifact or str(server), against)


@app.command("judge-recommend", rich_help_panel=Panel.JUDGE)
def judge_recommend(
    recipe: RecipePath,
    overrides: Overrides = NO_OVERRIDES,
    artifacts: ArtifactsRoot = DEFAULT_ARTIFACTS,
    peer: Annotated[
        list[str] | None,
        typer.Option(
            help="Another system's rankings, NAME=FILE.parquet with the columns example_id and items (ids, best "
            "first); repeatable",
            metavar="NAME=FILE",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write all figures as JSON to this file", metavar="FILE.json")
    ] = None,
) -> None:
    """Judge the whole on test users: retrieve from the full catalogue, rank, blend; beside popularity, kNN and EASE.

    Builds up to the blend first, where that is not up to date. Candidates are all items that a user has not met. Shown
    beside it: lists of one positive and sampled items, new users and items, and users whose history is withheld.
    """
    loaded, workspace = open_recipe(recipe, overrides, artifacts)
    from tritonrank.pipeline.stages import run_stages
    from tritonrank.report.recommend_table import show_quality
    from tritonrank.retrieval.recommend_quality import judge_whole, peer_files

    peers = peer_files(peer or [])
    run_stages(loaded, workspace, until="blend")
    quality = judge_whole(loaded, workspace, peers)
    if out:
        write_whole(out, json.dumps(quality, indent=1) + "\n", "name another place: --out FILE.json")
    show_quality(quality)


@app.command("estimate-clicks", rich_help_panel=Panel.JUDGE)
def estimate_clicks_command(
    recipe: RecipePath,
    overrides: Overrides = NO_OVERRIDES,
    artifacts: ArtifactsRoot = DEFAULT_ARTIFACTS,
    artifact: Annotated[
        Path | None, typer.Option(help="This model folder (checkpoint or ONNX); default: what the repository serves")
    ] = None,
    days: Annotated[
        float | None, typer.Option(min=0.05, help="Days of the log to read; default: learn.history_days")
    ] = None,
    pages: Annotated[int, typer.Option(min=10, help="Pages to score at the most, drawn by seed")] = 2_000,
    out: Annotated[
        Path | None, typer.Option(help="Write all figures as JSON to this file", metavar="FILE.json")
    ] = None,
) -> None:
    """Say from the gateway's log how many clicks a page would have got in a ranker's order.

    The log is that of learn.log, or of data.events. Lots have to have been drawn: section [explore] of the gateway's
    rules. What was shown stays as it was, only its order is another one.
    """
    loaded, workspace = open_recipe(recipe, overrides, artifacts)
    from tritonrank.learn.clicks.other_orders import estimate_clicks
    from tritonrank.report.clicks_table import show_clicks

    model = artifact or workspace.served_model(loaded)
    found = estimate_clicks(loaded, workspace, model, time.time(), days=days, most=pages)
    if out:
        write_whole(out, json.dumps(found, indent=1) + "\n", "name another place: --out FILE.json")
    show_clicks(found, str(model))


@app.command(rich_help_panel=Panel.JUDGE)
def report(
    artifacts: Annotated[Path, typer.Argument(metavar="ARTIFACTS", help="artifacts/<recipe>, built to the end")],
    out: Annotated[
        Path | None,
        typer.Option(help="The page; default: report.html in ARTIFACTS. Markdown goes beside it", metavar="FILE.html"),
    ] = None,
) -> None:
    """Write one page about a build: the ladder from teacher to engine, gates, what was cut, the worst requests.

    The page needs neither network nor scripts. Nothing is measured: it shows what the stages recorded.
    """
    require_build(artifacts, "report")  # before all that makes plots is imported
    from tritonrank.report.page import make_report

    page, markdown = make_report(artifacts, out)
    typer.echo(f"{page}\n{markdown}")
    typer.echo(json.dumps({"html": str(page), "markdown": str(markdown)}))


@app.command(rich_help_panel=Panel.JUDGE)
def calibrate(
    recipe: RecipePath,
    overrides: Overrides = NO_OVERRIDES,
    artifacts: ArtifactsRoot = DEFAULT_ARTIFACTS,
    method: Annotated[
        Literal["platt", "isotonic"],
        typer.Option(help="A sigmoid of two numbers, or any rising curve (for more data)"),
    ] = "platt",
) -> None:
    """Fit probabilities to the scores of a build, on the clicks of validation users, and tell clients of them.

    The order of candidates stays. The probability is that of a candidate in lists like the examples'; the report shows
    how true it is on test users. The repository is assembled anew; a later build of another model leaves the curve out.
    """
    loaded, workspace = open_recipe(recipe, overrides, artifacts)
    from tritonrank.artifacts.stage import bring_up_to_date
    from tritonrank.pipeline.calibrate import stage
    from tritonrank.pipeline.stages import run_stages

    run_stages(loaded, workspace, until="assemble")
    made = bring_up_to_date(stage(loaded, workspace, method))
    run_stages(loaded, workspace, until="assemble")
    for name, value in made.metrics.items():
        if isinstance(value, float):
            typer.echo(f"{name}: {value:.4f}")
    if served := served_name(workspace.root):
        typer.echo(
            f"build {served} is served as before: tritonrank build records this one, tritonrank promote serves it"
        )


@app.command("check-graph", rich_help_panel=Panel.JUDGE)
def check_graph(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An ONNX graph, such as artifacts/demo/fp16/model.onnx")],
) -> None:
    """Hold an ONNX graph against TensorRT's rules; list its products and what they compute in.

    Beside a manifest that names INT8 layers, these and no others have to be INT8. Exits with 1 on faults.
    """
    from tritonrank.quantize import qdq_rules

    report = qdq_rules.check_graph(file, qdq_rules.asked_of(file))
    qdq_rules.show_report(report, Console())
    sys.exit(1 if report.faults else 0)
