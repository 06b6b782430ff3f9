"""Every rung of the ladder behind the real Triton, judged again from the answers that a client gets.

The gates judged in process. A server adds what they could not see: texts through the ensemble, batching, threads,
other libraries. So each rung is assembled like any repository, in a temporary folder, served, and asked all test
requests through the client; its NDCG@10 and its ten best have to be those of the judgement that the gate had.

All of them run in ONNX Runtime on the CPU, whatever the recipe's executor and device are. Checkpoints are served as the
graphs that they export to. FP16 graphs are served as their rounding twins, like they were judged, because ONNX Runtime
computes FP16 in FP32 on a CPU.
"""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from tritonrank_client import RankClient
from tritonrank_runtime.cores import available_cores
from tritonrank_runtime.engines import model_files
from tritonrank_runtime.text import TextRules, copy_text_files

from tritonrank.artifacts import Draft
from tritonrank.artifacts.stage import Stage, run_stage
from tritonrank.artifacts.workspace import Workspace
from tritonrank.errors import GateError, RecipeError
from tritonrank.graphs.export import export_graphs
from tritonrank.graphs.rounding_twin import write_rounding_twins
from tritonrank.judge.evaluate import Judgement, judge_artifact, judge_test_examples
from tritonrank.judge.live_record import LIVE, LIVE_FILE, LiveRung, read_live
from tritonrank.judge.metrics import ranking
from tritonrank.rankers.server_scorer import ServerScorer
from tritonrank.rankers.serving import kept_bits
from tritonrank.recipe import Recipe
from tritonrank.report.ladder import Artifact, read_build
from tritonrank.serve.assemble import write_identity_and_golden_cases
from tritonrank.serve.models import write_models
from tritonrank.serve.server import LocalTriton
from tritonrank.serve.serving import check_golden_cases

PATIENCE_SECONDS = 60
"""For one request: how a rung ranks is judged here, and a teacher may take longer than what is served later."""

console = Console()


def judge_live(recipe: Recipe, workspace: Workspace, only: Sequence[str] = ()) -> list[LiveRung]:
    """Serve and judge the rungs of a build one after the other; publish the outcome as ``live/live.json``.

    What was found earlier about other rungs that are still there stays in it.

    Args:
        recipe: its serve section says how to serve, but for executor, device and deadline.
        workspace: built as far as the summary.
        only: names of rungs as tables call them; all by default.

    Raises:
        ArtifactError: there is no build.
        RecipeError: there is no rung of a name in ``only``.
        GateError: a rung answers otherwise than it was judged; all rungs were tried, and the outcome is kept.
        ServerError: a server did not start.
    """
    there = read_build(workspace.root).rungs()
    if unknown := set(only) - set(there):
        raise RecipeError(f"{recipe.name} has no rung {', '.join(sorted(unknown))}; there are: {', '.join(there)}")
    rungs = {name: artifact for name, artifact in there.items() if not only or name in only}
    serve = recipe.serve.model_copy(
        update={"executor": "onnxruntime", "device": "cpu", "deadline_ms": 1_000 * PATIENCE_SECONDS, "queue_share": 0}
    )
    recipe = recipe.model_copy(update={"serve": serve})
    earlier, judged = read_live(workspace.root), list[LiveRung]()
    for name, artifact in rungs.items():
        console.print(f"[bold]{'serve':<10}[/] {name}", highlight=False)
        before = judge_artifact(name, artifact.folder, workspace.dataset, workspace.judgements)
        live = judge_served(recipe, workspace, name, artifact)
        judged.append(compare(before, live, artifact.manifest.artifact))
    known = {name: earlier[made.manifest.artifact] for name, made in there.items() if made.manifest.artifact in earlier}
    known |= {rung.name: rung for rung in judged}
    rows = [known[name].as_row() for name in there if name in known]

    def record(draft: Draft) -> None:
        (draft.folder / LIVE_FILE).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")

    settings = {"serve": serve.model_dump(mode="json")}
    parents = {name: there[name].folder for name in known}
    run_stage(Stage("live", workspace.root / LIVE, lambda: settings, parents, record, revision=1, tools=()))
    show(judged)
    if failed := [rung.name for rung in judged if not rung.passed]:
        raise GateError(
            f"live answers differ from what was judged: {', '.join(failed)}; {workspace.root / LIVE / LIVE_FILE} has "
            "the figures. A broken machine or another ONNX Runtime may be why; judge one alone: tritonrank evaluate "
            "RECIPE --live --rung NAME"
        )
    return judged


def judge_served(recipe: Recipe, workspace: Workspace, name: str, artifact: Artifact) -> Judgement:
    with tempfile.TemporaryDirectory(prefix="tritonrank-live-") as scratch:
        graphs, repository = Path(scratch) / "graphs", Path(scratch) / "repository"
        graphs.mkdir()
        copy_text_files(artifact.folder, graphs)
        if model_files(artifact.folder):
            write_rounding_twins(artifact.folder, graphs)
        else:
            export_graphs(artifact.folder, graphs)
        write_models(recipe.serve, graphs, repository, available_cores())
        made = artifact.manifest
        identity = {"artifact": made.artifact[:16], "recipe": recipe.name, "stage": made.stage}
        write_identity_and_golden_cases(identity, workspace.dataset, [graphs], repository, 0.0, kept_bits(recipe.serve))
        with LocalTriton(repository) as server:
            check_golden_cases(repository, server.grpc_url)
            with RankClient(server.grpc_url, timeout=PATIENCE_SECONDS) as client:
                rules = TextRules.load(graphs)
                return judge_test_examples(f"{name}, live", ServerScorer(client), workspace.dataset, rules)


def compare(judged: Judgement, live: Judgement, artifact: str) -> LiveRung:
    """Hold the answers of a server against the judgement in process, request by request."""
    pairs = zip(judged.table["scores"].to_list(), live.table["scores"].to_list(), strict=True)
    alike = [ranking(one)[:10].tolist() == ranking(other)[:10].tolist() for one, other in pairs]
    ndcg, live_ndcg = (float(judgement.values().mean()) for judgement in (judged, live))
    return LiveRung(judged.name, artifact, len(alike), ndcg, live_ndcg, sum(alike) / len(alike))


def show(rungs: Sequence[LiveRung]) -> None:
    table = Table(title="from the live server", box=box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    for column in ("", "NDCG@10", "live", "same ten best", ""):
        table.add_column(column, justify="right" if column else "left")
    for rung in rungs:
        verdict = "as judged" if rung.passed else "[red]DIFFERS[/]"
        table.add_row(rung.name, f"{rung.ndcg:.4f}", f"{rung.live_ndcg:.4f}", f"{rung.same_top10:.1%}", verdict)
    console.print(table)
