"""The command line: one verb per stage, and the verbs that use what was built."""

import json
import os
import shutil
import sys
import textwrap
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tritonrank import __version__
from tritonrank.artifacts.locks import only_writer
from tritonrank.artifacts.workspace import Target, Workspace
from tritonrank.data.workload_settings import WorkloadSettings, workload_settings
from tritonrank.errors import TritonRankError, storage_error
from tritonrank.pipeline.stages import run_stages
from tritonrank.recipe import Recipe, load_recipe, setting_rows
from tritonrank.system.literal_help import LiteralGroup
from tritonrank.system.quiet import quiet_transformers

app = typer.Typer(
    cls=LiteralGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Turn a fine-tuned Transformer ranker into a real-time Triton deployment.\n\n"
    "Start with: tritonrank build build/recipes/demo.yaml, then: tritonrank serve artifacts/demo",
)
console = Console(stderr=True, emoji=False)  # items.csv:100: is a line of a file, not an emoji

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe, such as build/recipes/demo.yaml")]
Overrides = Annotated[
    list[str],
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change one setting, such as finetune.epochs=2, or all that @FILE holds"
    ),
]
ArtifactsRoot = Annotated[Path, typer.Option("--artifacts", help="Folder that holds one folder per recipe")]
TargetOption = Annotated[Target, typer.Option("--target", help="What the repository is for; any but cpu needs a GPU")]
DEFAULT_ARTIFACTS = Path("artifacts")
NO_OVERRIDES: list[str] = []  # Typer reads it as the default and never changes it
WORKLOAD_DEFAULTS = WorkloadSettings()


def _show_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"tritonrank {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit")
    ] = False,
) -> None:
    """What stands before the command."""


@app.command()
def build(
    recipe: RecipePath,
    overrides: Overrides = NO_OVERRIDES,
    artifacts: ArtifactsRoot = DEFAULT_ARTIFACTS,
    target: TargetOption = Target.CPU,
) -> None:
    """Run all stages, skipping those that are up to date, and end with a table of what was achieved.

    With --target also compile and assemble for GPUs, on the machine that will serve; see `tritonrank assemble --help`.
    """
    loaded, workspace = _open(recipe, overrides, artifacts)  # before torch is imported: a fault shows at once
    from tritonrank.report.summary import show_summary

    if target is not Target.CPU:
        from tritonrank.pipeline.gpu_targets import build_target, check_target

        check_target(loaded, target)  # what is missing for it shows before the whole build
    run_stages(loaded, workspace)
    show_summary(workspace.summary)
    if target is not Target.CPU:
        typer.echo(f"{build_target(loaded, workspace, target)}")


def _stage_command(verb: str, help_text: str) -> None:
    def command(
        recipe: RecipePath,
        overrides: Overrides = NO_OVERRIDES,
        artifacts: ArtifactsRoot = DEFAULT_ARTIFACTS,
        force: Annotated[bool, typer.Option("--force", help="Run this stage even if it is up to date")] = False,
    ) -> None:
        loaded, workspace = _open(recipe, overrides, artifacts)
        run_stages(loaded, workspace, until=verb, force=verb if force else None)

    app.command(verb, help=help_text + " Earlier stages run first where they are not up to date.")(command)


_stage_command("prepare", "Read and check the data; write the examples for training and judging.")
_stage_command("prune", "Cut layers, heads, neurons and tokens of the fine-tuned ranker (section `prune`).")
_stage_command("export", "Write the checkpoint as ONNX and prove that it computes the same.")
_stage_command("quantize", "Write the INT8 graph; the gate decides whether it may stand.")
_stage_command("shard", "Cut the served model into tensor_parallel ranks; prove that they score as the whole.")


@app.command()
def assemble(
    recipe: RecipePath,
    overrides: Overrides = NO_OVERRIDES,
    artifacts: ArtifactsRoot = DEFAULT_ARTIFACTS,
    force: Annotated[bool, typer.Option("--force", help="Run this stage even if it is up to date")] = False,
    target: TargetOption = Target.CPU,
) -> None:
    """Write the Triton model repository.

    Earlier stages run first where they are not up to date. Before plans nothing runs, as it would take a compilation:
    where the recipe would make other plans by now, the command that compiles them is named.

    To clients all targets are alike; they differ in what computes the scores:

    cpu: ONNX Runtime in Triton's Python backend, on any machine. Writes `repository`.

    onnxruntime: Triton's ONNX Runtime backend on GPUs, for machines without TensorRT plans. The first of
    tensorrt.precisions that is fp16 or fp32, else fp32. Writes `repository-onnxruntime`.

    tensorrt: the plan of the first of tensorrt.precisions, compiled before on the GPU that serves: tritonrank compile.
    Writes `repository-tensorrt`.

    tensorrt-tp: the plans of all GPUs that compute each layer together, compiled with the same tensor_parallel. Writes
    `repository-tensorrt-tp`.

    For example: tritonrank assemble build/recipes/demo.yaml --set 'tensorrt.precisions=[fp16]' --target tensorrt
    """
    loaded, workspace = _open(recipe, overrides, artifacts)
    if target is Target.CPU:
        run_stages(loaded, workspace, until="assemble", force="assemble" if force else None)
        return
    from tritonrank.pipeline.gpu_targets import assemble_target

    typer.echo(f"{assemble_target(loaded, workspace, target)}")


@app.command()
def finetune(
    recipe: RecipePath, overrides: Overrides = NO_OVERRIDES, artifacts: ArtifactsRoot = DEFAULT_ARTIFACTS
) -> None:
    """Fine-tune the base model. Resumes when interrupted; also under torchrun --nproc-per-node N -m tritonrank."""
    loaded, workspace = _open(recipe, overrides, artifacts)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        run_stages(loaded, workspace, until="finetune")
        return
    # Under torchrun every process comes through here, and only one may write the dataset: it has to exist already.
    from tritonrank.train.finetune import finetune as run

    with _writing(workspace):
        run(loaded, workspace.dataset, workspace.teacher)


@app.command()
def distill(
    recipe: RecipePath, overrides: Overrides = NO_OVERRIDES, artifacts: ArtifactsRoot = DEFAULT_ARTIFACTS
) -> None:
    """Let the pruned ranker learn from the unpruned one. Resumes when interrupted; also under torchrun."""
    loaded, workspace = _open(recipe, overrides, artifacts)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        run_stages(loaded, workspace, until="distill")
        return
    # As with finetune, what it starts from has to exist already.
    from tritonrank.shrink.distill import distill as run

    with _writing(workspace):
        run(loaded, workspace.dataset, workspace.teacher, workspace.pruned, workspace.student, workspace.judgements)


@app.command()
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
    loaded, workspace = _open(recipe, overrides, artifacts)
    from tritonrank_client import RankClient
    from tritonrank_runtime.text import TextRules

    from tritonrank.judge import evaluate as judging
    from tritonrank.judge.gate import show_verdict, verdict
    from tritonrank.judge.gatekeeper import judge_uncut
    from tritonrank.judge.worst import require_passed, with_worst_requests
    from tritonrank.rankers.server_scorer import ServerScorer
    from tritonrank.report.summary import show_summary

    if live:
        from tritonrank.serve.live import judge_live

        judge_live(loaded, workspace, rung or [])
        return
    if artifact is None and server is None:
        run_stages(loaded, workspace)
        show_summary(workspace.summary)
        return
    parent_folder = against or workspace.teacher
    uncut = None if against else judge_uncut(loaded, parent_folder, workspace.dataset, workspace.judgements)
    parent = uncut or judging.judge_artifact(parent_folder.name, parent_folder, workspace.dataset, workspace.judgements)
    if artifact is not None:
        child = judging.judge_artifact(artifact.name, artifact, workspace.dataset, workspace.judgements)
    else:
        with RankClient(str(server)) as client:
            rules = TextRules.load(workspace.teacher)
            child = judging.judge_test_examples(str(server), ServerScorer(client), workspace.dataset, rules)
    found = verdict(child, parent, loaded.gate.budget, loaded.gate.bootstrap_samples, loaded.seed)
    found = with_worst_requests(found, child, parent, workspace.dataset, TextRules.load(workspace.teacher))
    for metric in ("ndcg@10", "mrr@10", "recall@10", "auc"):
        own, other = (one.interval(metric, loaded.gate.bootstrap_samples) for one in (child, parent))
        typer.echo(f"{metric:<10} {own}   {parent.name}: {other}")
    show_verdict(found)
    require_passed(found, workspace.root / "closed-gate-evaluate.txt", "Judge another: --artifact or --server.")


@app.command("compile")
def compile_command(
    recipe: RecipePath, overrides: Overrides = NO_OVERRIDES, artifacts: ArtifactsRoot = DEFAULT_ARTIFACTS
) -> None:
    """Build TensorRT plans of tensorrt.precisions; their graphs are made, and judged by the gate, first.

    With `tensorrt` for the GPU of this machine; with `tensorrt_rtx` ahead of time, without a GPU, to see that the
    graphs compile. For example: tritonrank compile build/recipes/demo.yaml --set 'tensorrt.precisions=[fp16]'
    """
    loaded, workspace = _open(recipe, overrides, artifacts)
    from tritonrank.pipeline.gpu_targets import compile_ranks, compile_recipe

    # A model that needs several GPUs may not fit on one.
    for folder in (compile_ranks if loaded.tensor_parallel > 1 else compile_recipe)(loaded, workspace):
        typer.echo(f"{folder}")


@app.command("check-graph")
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


@app.command()
def pack(
    artifacts: Annotated[Path, typer.Argument(metavar="ARTIFACTS", help="artifacts/<recipe>, built to the end")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The archive to write, or a folder for it")] = Path(),
) -> None:
    """Put what a GPU machine needs to check a ranker into one file: FP16 weights, requests, the CPU's scores.

    For example: tritonrank pack artifacts/movielens, which writes movielens.pack.tar.gz. It holds item texts of your
    data.
    """
    from tritonrank.gpu_check.pack import make_pack

    make_pack(artifacts, out)


@app.command("gpu-check")
def gpu_check_command(
    pack: Annotated[Path, typer.Argument(metavar="PACK", help="What `tritonrank pack` made")],
    out: Annotated[
        Path | None,
        typer.Option(help="The record; default: docs/measurements/<gpu>-<recipe>-<date>.json", metavar="FILE.json"),
    ] = None,
    cpu: Annotated[bool, typer.Option("--cpu", help="Rehearse on the CPU; needs --out")] = False,
    triton: Annotated[bool, typer.Option(help="Serve through Triton too, where a server is found")] = True,
) -> None:
    """Check a ranker's scores on this GPU machine and measure every executor found: PyTorch, ONNX Runtime, TensorRT.

    What is not installed is named with the command that brings it. Exits with 1 when scores are not the CPU's, with 2
    when there is no GPU. Without tritonrank's own packages: PYTHONPATH=build python3 -m tritonrank.gpu_check.check PACK
    """
    from tritonrank.gpu_check.check import gpu_check

    gpu_check(pack, out, cpu=cpu, triton=triton)


@app.command()
def serve(
    artifacts: Annotated[Path, typer.Argument(metavar="ARTIFACTS", help="artifacts/<recipe>, or a repository folder")],
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
) -> None:
    """Check files and plans, start Triton, check golden requests through it, and keep it running until Ctrl-C.

    A server that loses a part, or does not answer any more, is brought back at the same ports within seconds; each time
    is one line on standard error. Exits with 2 when it cannot be started any more. docs/security.md says what is open.

    The server is the container's own where there is one (/opt/tritonserver), else the one that pip installs.
    """
    from tritonrank.serve.server import end_when_terminated, run_until_signalled
    from tritonrank.serve.serving import example_command, serving

    end_when_terminated()
    shows_log = log_file == Path("-")
    options = {"host": host, "http_port": http_port, "grpc_port": grpc_port, "metrics_port": metrics_port}
    options |= {"ready_timeout_seconds": ready_timeout, "log_file": None if shows_log else log_file}
    with serving(artifacts, ready_file, **options, shows_log=shows_log) as server:
        typer.echo(f"HTTP     {server.http_url}\ngRPC     {server.grpc_url}\nmetrics  {server.metrics_url}\n")
        typer.echo(f"Try it from another terminal:\n\n{example_command(artifacts, server)}\n\nCtrl-C stops the server.")
        run_until_signalled(server)


@app.command()
def demo(recipe: RecipePath, overrides: Overrides = NO_OVERRIDES, artifacts: ArtifactsRoot = DEFAULT_ARTIFACTS) -> None:
    """Build the recipe, start Triton, rank three requests over HTTP and gRPC, show them, stop."""
    loaded, workspace = _open(recipe, overrides, artifacts)
    from tritonrank.report.summary import show_summary
    from tritonrank.serve.demo import run_demo

    run_stages(loaded, workspace)
    show_summary(workspace.summary)
    run_demo(workspace.repository)


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


@app.command()
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
    from tritonrank.report import make_report

    page, markdown = make_report(artifacts, out)
    typer.echo(f"{page}\n{markdown}")
    typer.echo(json.dumps({"html": str(page), "markdown": str(markdown)}))


@app.command()
def settings() -> None:
    """List every setting of a recipe with its default and the reason for it."""
    # Not a table: in 80 columns that cuts values and file names, or breaks every sentence after three words.
    indent = 4 * " "
    meanings = textwrap.TextWrapper(
        shutil.get_terminal_size().columns,
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    for key, default, meaning in setting_rows():
        typer.echo(typer.style(key, bold=True) + f" = {default}")
        for line in meanings.wrap(meaning):
            typer.echo(line)


def main() -> None:
    """Entry point: errors of the user's own making, and of disks, are one message, without a traceback."""
    quiet_transformers()
    try:
        app()
    except Exception as error:
        known = error if isinstance(error, TritonRankError) else storage_error(error)
        if known is None:
            raise
        console.print(f"[bold red]{type(known).__name__}[/]: ", end="")
        console.print(str(known), markup=False, highlight=False, soft_wrap=True)
        sys.exit(known.exit_code)


def _writing(workspace: Workspace) -> AbstractContextManager[None]:
    """The lock of a workspace for the one process of torchrun that writes; the others wait for it anyway."""
    return only_writer(workspace.root) if os.environ.get("RANK", "0") == "0" else nullcontext()


def _open(recipe: Path, overrides: list[str], artifacts: Path) -> tuple[Recipe, Workspace]:
    loaded = load_recipe(recipe, overrides)
    return loaded, Workspace.of(loaded, artifacts)
