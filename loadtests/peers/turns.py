"""The ranker that is served beside what one would use instead, in turns: all are up, and all get the same requests.

    python -m loadtests.peers.turns artifacts/movielens-small --workload workload.jsonl

A machine drifts, and a ratio of two runs drifts with it. Here each round asks every system, one after the other, for
the same requests, and a ratio is one of two medians of the same round. ``python -m loadtests.peers`` measures more of
each system, one at a time. Writes turns.json and turns.md; the last line is JSON. Exits with 1 when a system failed.
"""

import itertools
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from loadtests.machine import describe_machine
from loadtests.peers import catalogue, machine, turns_report
from loadtests.peers.cases import Case, PairTexts, read_cases
from loadtests.peers.environments import EnvironmentFaultError, own_environment, run_to_end
from loadtests.peers.hops import Look, hops_between, look
from loadtests.peers.load import closed_loop, percentile
from loadtests.peers.servers import OursSystem
from loadtests.peers.system import System
from loadtests.peers.variants import ONNX_RUNTIME, executor_of, with_onnx_runtime
from loadtests.processes import SystemFaultError, child_environment
from loadtests.workload import WorkloadError

TWIN_SECONDS = 120.0
WARM_UP_REQUESTS = 2
CLIENTS = (2, 4)
"""At saturation; a library is asked by one, as its calls come one after the other."""
CHECKPOINTS = ("student", "pruned", "teacher")
"""Where the served ranker's config lies: the last stage that changed its sizes."""
PEERS = (catalogue.FIRST, catalogue.BFLOAT16, catalogue.INFINITY_INT8)

console = Console(stderr=True)


def run(
    artifacts: Annotated[Path, typer.Argument(help="artifacts/<recipe> of a shared-context ranker, assembled")],
    workload: Annotated[Path, typer.Option(help="What `tritonrank workload` wrote")],
    joint: Annotated[
        Path | None, typer.Option(help="A joint checkpoint for the peers; default: the recipe's base, untrained")
    ] = None,
    serve: Annotated[
        list[str] | None, typer.Option(help="One more of ours behind Triton: NAME=REPOSITORY; may be repeated")
    ] = None,
    candidates: Annotated[int, typer.Option(min=1, help="Items per request")] = 100,
    rounds: Annotated[int, typer.Option(min=1, help="In each, every system answers the same requests")] = 8,
    requests: Annotated[int, typer.Option(min=1, help="Requests per round to ours; a peer gets the first")] = 5,
    minutes: Annotated[float, typer.Option(help="No new round after this, whatever --rounds says")] = 6.0,
    saturation_seconds: Annotated[float, typer.Option(help="Per number of clients and system; 0: none")] = 4.0,
    environments: Annotated[Path, typer.Option(help="Where the peers' environments are")] = Path(".tools/peers"),
    output: Annotated[Path, typer.Option(help="Where the results go")] = Path("artifacts/peers"),
) -> None:
    """Ours and the peers in turns: multiples, what each hop costs, and the share of the machine's product speed."""
    with tempfile.TemporaryDirectory(prefix="peers-turns-") as scratch:
        work = Path(scratch)
        try:
            checkpoint = joint or joint_twin(artifacts / "teacher", work / "joint")
            cases = read_cases(workload, checkpoint, candidates)
            repositories = our_repositories(artifacts / "repository", serve or [], work)
        except (WorkloadError, EnvironmentFaultError, OSError, ValueError, typer.BadParameter) as error:
            console.print(str(error), style="bold red", markup=False, highlight=False, soft_wrap=True)
            sys.exit(2)
        peers = [s for s in catalogue.Peers(checkpoint, environments.resolve(), work).systems() if s.name in PEERS]
        ours = [catalogue.our_server(name, folder, work) for name, folder in repositories.items()]
        ours.append(catalogue.our_gateway(next(iter(repositories)), artifacts / "repository", work))
        results = describe(artifacts, checkpoint, cases, is_trained=joint is not None)
        results |= measure_in_turns([*peers, *ours], cases, rounds, requests, saturation_seconds, minutes * 60)
    results["settings"] = {"candidates": candidates, "requests": requests, "workload": workload.name}
    output.mkdir(parents=True, exist_ok=True)
    (output / "turns.json").write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (output / "turns.md").write_text(turns_report.markdown(results), encoding="utf-8")
    print(turns_report.markdown(results))
    failed = [system["name"] for system in results["systems"] if "failed" in system]
    print(json.dumps({"results": str(output / "turns.json"), "failed": failed}))
    sys.exit(1 if failed else 0)


def joint_twin(teacher: Path, folder: Path) -> Path:
    """The base of the recipe as a joint checkpoint, with a random head.

    Raises:
        EnvironmentFaultError: there is no such teacher, or its base cannot be loaded.
    """
    if not (teacher / "manifest.json").is_file():
        raise EnvironmentFaultError(f"{teacher}: no such artifact; build it: tritonrank build RECIPE, or name --joint")
    command = [str(own_environment().python), "-m", "loadtests.peers.workers.joint_twin", str(teacher), str(folder)]
    run_to_end(command, TWIN_SECONDS, child_environment())
    return folder


def our_repositories(repository: Path, more: Sequence[str], work: Path) -> dict[str, Path]:
    """What of ours is served, by name: the repository, the same with ONNX Runtime if it has another executor, more."""
    if not repository.is_dir():
        raise FileNotFoundError(f"{repository}: no such folder; assemble it: tritonrank assemble RECIPE")
    executor = executor_of(repository)
    found = {f"ours, {executor}": repository}
    if executor != ONNX_RUNTIME:
        found[f"ours, {ONNX_RUNTIME}"] = with_onnx_runtime(repository, work / "with-onnxruntime")
    for value in more:
        name, separator, folder = value.partition("=")
        if not separator or not name or not folder:
            raise typer.BadParameter(f"--serve {value!r}: expected NAME=REPOSITORY")
        found[f"ours, {name}"] = Path(folder)
    return found


def describe(artifacts: Path, checkpoint: Path, cases: list[Case], *, is_trained: bool) -> dict[str, Any]:
    """What was measured, on what machine, and what it could do at the best."""
    served = next(artifacts / name for name in CHECKPOINTS if (artifacts / name / "config.json").is_file())
    # The tokenizer of the pruned ranker: its vocabulary is the one that is served.
    needed = machine.needed_gflop(checkpoint / "config.json", PairTexts(checkpoint), cases[:20])
    return {
        "measured_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": describe_machine().model_dump(),
        "gflop_per_second": machine.multiplication_rates(),
        "gflop_per_request": {"joint": needed["joint"], "ours": machine.served_gflop(served, served, cases[:20])},
        "gate": gate_of(artifacts / "int8" / "manifest.json"),
        "peers_head": "as trained" if is_trained else "untrained: their speed alone is compared",
    }


def gate_of(manifest: Path) -> list[dict[str, Any]]:
    """What the gates of the INT8 ranker said; empty where it was not quantized."""
    if not manifest.is_file():
        return []
    metrics = json.loads(manifest.read_text(encoding="utf-8"))["metrics"]
    return [
        {"gate": name, **{key: values[key] for key in ("passed", "drop", "bound", "budget")}}
        for name, values in metrics.items()
        if isinstance(values, dict) and "passed" in values
    ]


def measure_in_turns(
    systems: Sequence[System],
    cases: Sequence[Case],
    rounds: int,
    requests: int,
    saturation_seconds: float,
    most_seconds: float,
) -> dict[str, Any]:
    """The systems part of the record; a system that fails is a result, and the others go on without it.

    Args:
        systems: in the order of their turns.
        cases: what they are asked.
        rounds: at most.
        requests: per round to one of ours.
        saturation_seconds: per number of clients and system, after the rounds; 0: none.
        most_seconds: after which no new round begins; the first always does.
    """
    started = time.time()
    entries: list[dict[str, Any]] = [
        {"name": s.name, "kind": s.kind, "settings": s.settings, "p50_ms_by_round": [], "latencies_ms": []}
        for s in systems
    ]
    counts: dict[str, Look] = {}
    with ExitStack() as stack:
        for system, entry in zip(systems, entries, strict=True):
            console.print(f"{time.time() - started:5.0f} s  starting {system.name}", highlight=False, markup=False)
            stack.callback(_stop, system, entry)
            _tried(entry, lambda system=system, entry=entry: _start(system, entry, cases))
        done = 0
        for number in range(rounds):
            if number and time.time() - started > most_seconds:
                break
            done += 1
            for system, entry in zip(systems, entries, strict=True):
                count = requests if system.kind == "ours" else 1
                asked = [cases[(number * requests + place) % len(cases)] for place in range(count)]
                _tried(entry, lambda s=system, e=entry, a=asked: _one_turn(s, e, a, counts))
            console.print(f"{time.time() - started:5.0f} s  round {number + 1} of {rounds}", highlight=False)
        for system, entry in zip(systems, entries, strict=True):
            _tried(entry, lambda s=system, e=entry: _finish(s, e, cases, counts, saturation_seconds))
    return {"systems": entries, "first": catalogue.FIRST, "rounds": done, "seconds": time.time() - started}


def _tried(entry: dict[str, Any], step: Any) -> None:
    if "failed" in entry:
        return
    try:
        step()
    except Exception as error:  # noqa: BLE001 - a peer can fail in any way, and the others must still be measured
        entry["failed"] = f"{type(error).__name__}: {error}"


def _start(system: System, entry: dict[str, Any], cases: Sequence[Case]) -> None:
    system.prepare()
    entry["versions"] = system.versions()
    system.start()
    for case in cases[-WARM_UP_REQUESTS:]:
        system.rank(case)


def _one_turn(system: System, entry: dict[str, Any], cases: Sequence[Case], counts: dict[str, Look]) -> None:
    system.rank(cases[0])  # so that nobody finds the caches as another system left them; not measured
    fresh = [case for case in cases if case is not cases[0]] or [cases[0]]
    if isinstance(system, OursSystem) and system.name not in counts:
        counts[system.name] = look(system.url, system.metrics_url)
    latencies = [_answered(system, case) for case in fresh]
    entry["latencies_ms"] += latencies
    entry["p50_ms_by_round"].append(percentile(latencies, 0.5))


def _answered(system: System, case: Case) -> float:
    load = closed_loop(system.rank, iter([case]), clients=1, seconds=0.0, requests=1)
    if not load.good:
        raise SystemFaultError(load.answers[0].error)
    return load.answers[0].latency_seconds * 1000


def _finish(
    system: System, entry: dict[str, Any], cases: Sequence[Case], counts: dict[str, Look], seconds: float
) -> None:
    entry["p50_ms"] = percentile(entry["latencies_ms"], 0.5)
    if isinstance(system, OursSystem):
        mean = sum(entry["latencies_ms"]) / len(entry["latencies_ms"]) / 1000
        hops = hops_between(counts[system.name], look(system.url, system.metrics_url), mean)
        entry |= {"hops": hops.summary()} if hops else {}
    entry["memory_mb"] = system.memory_bytes() / 1e6
    if not seconds:
        return
    entry["candidates_per_second"] = {}
    for clients in CLIENTS if entry["settings"].get("server", "none") != "none" else (1,):
        # From the end: what the rounds have sent may be kept.
        unseen = itertools.cycle(cases[-WARM_UP_REQUESTS - 1 :: -1])
        load = closed_loop(system.rank, unseen, clients=clients, seconds=seconds, requests=clients)
        entry["candidates_per_second"][str(clients)] = load.candidates_per_second


def _stop(system: System, entry: dict[str, Any]) -> None:
    try:
        system.stop()
    except Exception as error:  # noqa: BLE001 - a peer that cannot be stopped has failed too
        entry.setdefault("failed", f"stop: {type(error).__name__}: {error}")


if __name__ == "__main__":
    typer.run(run)
