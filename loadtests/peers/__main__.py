"""Measure every system on one workload, and write results.json, table.md and speed-quality.svg.

    python -m loadtests.peers --workload workload.jsonl --joint artifacts/movielens-joint --shared artifacts/movielens

The environments of the peers are made on the first run (3.5 GB). Exits with 1 when a system could not be measured,
unless --allow-missing is given; the tables say why.
"""

import json
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from loadtests.machine import describe_machine
from loadtests.peers import catalogue, machine, report
from loadtests.peers.cases import Case, PairTexts, read_cases
from loadtests.peers.environments import Environment, EnvironmentFaultError, ensure_environment, run_to_end
from loadtests.peers.libraries import LibrarySystem
from loadtests.peers.measure import FULL, SHORT, Effort, compare_with_first, measure_turn
from loadtests.peers.system import System
from loadtests.processes import ROOT, child_environment
from loadtests.workload import WorkloadError

PLOT_SECONDS = 120.0
TABLE_WIDTH = 180
"""Characters; a narrower terminal scrolls rather than breaking every cell."""
ROWS_COMPARED = 20
"""Requests whose token ids are compared between ours and the peers."""

console = Console(stderr=True)


def run(
    workload: Annotated[Path, typer.Option(help="What `tritonrank workload` wrote")],
    joint: Annotated[Path, typer.Option(help="artifacts/<recipe> of the joint ranker; the peers score its teacher/")],
    shared: Annotated[Path | None, typer.Option(help="artifacts/<recipe> of the shared-context ranker")] = None,
    serve: Annotated[
        list[str] | None, typer.Option(help="One more of ours behind Triton: NAME=REPOSITORY; may be repeated")
    ] = None,
    library: Annotated[
        list[str] | None, typer.Option(help="One more of ours in process: NAME=MODEL_FOLDER; may be repeated")
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="Only systems whose name contains this; repeatable")] = None,
    output: Annotated[Path, typer.Option(help="Where the results go")] = Path("artifacts/peers"),
    environments: Annotated[Path, typer.Option(help="Where the peers' environments are")] = Path(".tools/peers"),
    candidates: Annotated[int, typer.Option(min=1, help="Items per request")] = 100,
    seed: Annotated[int, typer.Option(help="Of the arrivals and of the Zipf draws")] = 0,
    short: Annotated[bool, typer.Option("--short", help="A look in under ten minutes; its p99 mean little")] = False,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Exit with 0 even if a system could not be measured")
    ] = False,
) -> None:
    """Ours beside the peers: speed, latency, memory and NDCG@10 on one workload, one system at a time."""
    effort = SHORT if short else FULL
    # As Ctrl-C: the systems are stopped on the way out.
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        cases = read_cases(workload, joint / "teacher", candidates)
        servers, libraries = _ours(joint, shared, serve or [], library or [])
    except (WorkloadError, OSError, typer.BadParameter) as error:
        _fail(str(error))
    ceilings = _ceilings(joint, cases, effort)
    with tempfile.TemporaryDirectory(prefix="peers-") as scratch:
        work = Path(scratch)
        peers = catalogue.Peers(joint / "teacher", environments.resolve(), work)
        systems = [*peers.systems(), *catalogue.our_systems(servers, libraries, work)]
        chosen = [s for s in systems if not only or any(part in s.name for part in only)]
        if not chosen:
            names = ", ".join(system.name for system in systems)
            _fail(f"--only {' '.join(only or [])}: no system has such a name; there are {names}")
        results = measure_all(chosen, cases, effort, seed)
        results["settings"] |= {"workload": workload.name, "seed": seed, "short": short}
        results |= ceilings | {"environments_mb": environment_sizes(environments)}
        results["identical_rows"] = identical_rows(joint, cases, work)
    _write(results, output, environments.resolve())
    stdout = Console(soft_wrap=True)
    stdout.width = max(stdout.width, TABLE_WIDTH)
    stdout.print(report.rich_table(results))
    stdout.print(report.legend(results), style="dim", markup=False, highlight=False)
    stdout.print(report.ceiling(results), style="dim", markup=False, highlight=False)
    missing = report.failed(results)
    for system in missing:
        stdout.print(f"{system['name']} failed: {system['failed']}", markup=False, highlight=False)
    print(json.dumps({"results": str(output / "results.json"), "failed": [system["name"] for system in missing]}))
    measured = len(results["systems"]) - len(missing)
    sys.exit(0 if measured and (allow_missing or not missing) else 1)


def _fail(message: str) -> NoReturn:
    console.print(message, style="bold red", markup=False, highlight=False, soft_wrap=True)
    sys.exit(2)


def measure_all(systems: Sequence[System], cases: Sequence[Case], effort: Effort, seed: int) -> dict[str, Any]:
    """All turns of all systems, one system running at a time; the systems part of results.json."""
    entries: list[dict[str, Any]] = [
        {"name": system.name, "kind": system.kind, "settings": system.settings, "single_p50_by_turn": []}
        for system in systems
    ]
    started = time.time()
    for turn in range(effort.turns):
        for system, entry in zip(systems, entries, strict=True):
            if "failed" in entry:
                continue

            def tell(what: str, name: str = system.name, turn: int = turn) -> None:
                clock = f"[dim]{time.time() - started:6.0f} s[/]"
                console.print(
                    f"{clock}  turn {turn + 1}  {escape(name)}: {escape(what)}", highlight=False, soft_wrap=True
                )

            if turn == 0:
                entry["machine_gflop_per_second"] = machine.multiplication_rates(brief=True)["numpy_fp32"]
            figures = measure_turn(system, cases, effort, turn, seed, tell)
            if "failed" in figures:
                figures["failed"] = without_paths(figures["failed"])
                tell(figures["failed"])
            if "single" in figures:
                entry["single_p50_by_turn"].append(figures["single"]["latency_ms"]["p50"])
            # Later turns add their ratio, and their failure if any, but never replace the full turn's figures.
            entry |= {key: value for key, value in figures.items() if turn == 0 or key == "failed"}
    compare_with_first(entries, catalogue.FIRST)
    return {
        "measured_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        "seconds": time.time() - started,
        "ratios_to": catalogue.FIRST,
        "settings": {"candidates": len(cases[0].items), "requests": len(cases), "effort": effort.settings()},
        "systems": entries,
    }


def identical_rows(joint: Path, cases: Sequence[Case], work: Path) -> dict[str, Any]:
    """How many (context, candidate) rows of the peers have exactly our token ids; the rest were cut differently."""
    ours = catalogue.our_library("rows", joint / "onnx", work)
    assert isinstance(ours, LibrarySystem)
    texts = PairTexts(joint / "teacher")
    same = total = 0
    try:
        ours.prepare()
        ours.start()
        for case in cases[:ROWS_COMPARED]:
            own = ours.token_rows(case)
            same += sum(row == other for row, other in zip(own, texts.rows(case), strict=True))
            total += len(own)
    except Exception as error:  # noqa: BLE001 - a check beside the measurements must not cost them
        return {"failed": without_paths(f"{type(error).__name__}: {error}")}
    finally:
        ours.stop()
    return {"rows": total, "share": same / total}


def environment_sizes(environments: Path) -> dict[str, int]:
    """MB on disk of each peer's environment that exists."""
    folders = [path.parent.parent for path in sorted(environments.glob("*/bin/python"))]
    return {folder.name: round(Environment(folder).megabytes()) for folder in folders}


def _ours(
    joint: Path, shared: Path | None, serve: Sequence[str], library: Sequence[str]
) -> tuple[dict[str, Path], dict[str, Path]]:
    """What of ours is measured: behind Triton and in process, by name."""
    servers = {"joint INT8": joint}
    libraries = {"joint INT8": joint / "int8"}
    if shared is not None:
        servers["shared-context INT8"] = shared
        libraries |= {"shared-context FP32": shared / "onnx", "shared-context INT8": shared / "int8"}
    return servers | named_folders(serve), libraries | named_folders(library)


def named_folders(values: Sequence[str]) -> dict[str, Path]:
    folders = {}
    for value in values:
        name, separator, folder = value.partition("=")
        if not separator or not name or not folder:
            raise typer.BadParameter(f"{value!r}: expected NAME=FOLDER")
        folders[name] = Path(folder)
    return folders


def _ceilings(joint: Path, cases: list[Case], effort: Effort) -> dict[str, Any]:
    return {
        "machine": describe_machine().model_dump(),
        "gflop_per_second": machine.multiplication_rates(),
        "gflop_per_request": machine.needed_gflop(
            joint / "teacher" / "config.json", PairTexts(joint / "teacher"), cases[: effort.judged]
        ),
    }


def _write(results: dict[str, Any], output: Path, environments: Path) -> None:
    output.mkdir(parents=True, exist_ok=True)
    path = output / "results.json"
    path.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (output / "table.md").write_text(report.markdown(results), encoding="utf-8")
    picture = output / "speed-quality.svg"
    try:
        python = ensure_environment("plot", environments).python
        module = "loadtests.peers.workers.plot"
        command = [str(python), "-m", module, str(path.resolve()), str(picture.resolve())]
        run_to_end(command, PLOT_SECONDS, child_environment())
    except EnvironmentFaultError as error:
        console.print(f"no picture: {error}", markup=False, highlight=False)


def without_paths(text: str) -> str:
    """Published results should not tell where somebody's checkout is."""
    return text.replace(f"{ROOT}/", "").replace(f"{tempfile.gettempdir()}/", "").replace(f"{Path.home()}/", "~/")


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    typer.run(run)
