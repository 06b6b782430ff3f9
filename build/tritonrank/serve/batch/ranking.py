"""Rank the requests of a table: look at it, cut it into pieces, rank them on all cores, join the answers.

Beside the file that is asked for lies a folder, ``OUT.parts``, while the work goes on: an answer file per piece, each
there whole or not at all. A run that was stopped, however, goes on where it was; nothing is ranked or written twice.
What the pieces are is decided by the table, the artifact and the options, and ``run.json`` keeps these: parts of
another table are never joined.
"""

import hashlib
import json
import multiprocessing
import shutil
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import tritonrank_client
from tritonrank_runtime.cores import available_cores

from tritonrank.artifacts import whole_file, write_whole
from tritonrank.errors import ArtifactError, DataError
from tritonrank.serve.batch.outcome import Outcome
from tritonrank.serve.batch.progress import Progress
from tritonrank.serve.batch.requests_table import Piece, open_requests, write_items
from tritonrank.serve.batch.work import Counts, Task, Worker, rank_piece, start
from tritonrank.system.database_url import Location

RUN = "run.json"
REVISION = 1
"""Of what a part holds: parts of another one are not gone on with."""
WAIT_SECONDS = 0.5


@dataclass(frozen=True)
class Options:
    """How a table is ranked.

    Attributes:
        columns: what a column means -> its name.
        item_table: where items are found by their ids.
        top_k: items of a request to give; 0 is all.
        strict: a request with an item that cannot be scored is not ranked.
        processes: 0 is one per core.
        restart: throw away what another run has left.
    """

    columns: Mapping[str, str]
    item_table: Location | None = None
    top_k: int = 0
    strict: bool = False
    processes: int = 0
    restart: bool = False


def rank_table(artifacts: Path, source: Location, out: Path, options: Options) -> Outcome:
    """Rank the requests of a table.

    Args:
        artifacts: a build's folder, its repository, or one stage's.
        source: of the requests.
        out: what to write; ``.parquet`` or ``.csv``.
        options: how.

    Raises:
        ArtifactError: there is no artifact that can rank.
        DataError: the table cannot be read or lacks a column; or parts of another run lie beside ``out``.
    """
    began = time.monotonic()
    if out.suffix.lower() not in (".parquet", ".csv"):
        raise DataError(f"--out {out}: expected a name that ends in .parquet or .csv")
    artifact, template_fields = _look_at(artifacts)
    folder = out.with_name(f"{out.name}.parts")
    _begin(folder, _identity(artifact, source, options), options.restart)
    table = open_requests(source, folder, options.columns, template_fields, options.item_table is not None)
    items = folder / "items.parquet" if options.item_table is not None else None
    if items is not None and options.item_table is not None and not items.is_file():
        id_columns = [options.columns.get("item_id", "item_id"), "item_id"]
        write_items(options.item_table, items, id_columns, template_fields)
    first_rows, rows = {}, 0
    for file in table.files:
        first_rows[str(file)] = rows
        rows += pl.scan_parquet(file, glob=False).select(pl.len()).collect().item()
    task = Task(str(artifacts), table, folder, items, options.top_k, options.strict, first_rows)
    pieces = table.pieces()
    left = [piece for piece in pieces if not task.part(piece).is_file()]
    with Progress(sum(piece.rows for piece in pieces), sum(piece.rows for piece in left)) as progress:
        _rank_all(task, left, options.processes or available_cores(), progress)
    counts = Counts(faults=table.faults)
    for piece in pieces:
        counts.add(Counts.read(task.part(piece)))
    _join([task.part(piece) for piece in pieces], out)
    shutil.rmtree(folder)
    return Outcome(out, counts, len(pieces) - len(left), len(pieces), time.monotonic() - began)


def _look_at(artifacts: Path) -> tuple[str, Sequence[str]]:
    """The artifact's identity, and the fields of its template."""
    try:
        with tritonrank_client.open(artifacts, threads=1, timeout=60.0) as client:
            info = client.model_info()
            return client.rank(items=["a"]).artifact, info.fields
    except (ValueError, ModuleNotFoundError) as error:
        raise ArtifactError(str(error)) from error


def _identity(artifact: str, source: Location, options: Options) -> str:
    """What the answers depend on."""
    told: dict[str, Any] = {
        "revision": REVISION,
        "artifact": artifact,
        "source": _fingerprint(source),
        "items": _fingerprint(options.item_table),
        "columns": dict(sorted(options.columns.items())),
        "top_k": options.top_k,
        "strict": options.strict,
    }
    return json.dumps(told, indent=1)


def _fingerprint(source: Location | None) -> Any:
    if not isinstance(source, Path):
        return None if source is None else str(source)
    from tritonrank.data.parts import find_parts

    with suppress(OSError):
        files = [part.file for part in find_parts(source)]
        told = [f"{file} {(status := file.stat()).st_size} {status.st_mtime_ns}" for file in files]
        return hashlib.sha256("\n".join(told).encode()).hexdigest()
    return str(source)


def _begin(folder: Path, identity: str, restart: bool) -> None:
    """A folder for the parts: a new one, or that of the same run.

    Raises:
        DataError: it holds those of another run.
    """
    run = folder / RUN
    if folder.is_dir() and (restart or not run.is_file()):
        shutil.rmtree(folder)
    if not folder.is_dir():
        folder.mkdir(parents=True)
        write_whole(run, identity)
    elif run.read_text(encoding="utf-8") != identity:
        raise DataError(
            f"{folder}: parts of another run lie here: the table, the artifact or the options were others. To throw "
            "them away and begin anew, add --restart; to keep them, name another --out"
        )


def _rank_all(task: Task, left: Sequence[Piece], processes: int, progress: Progress) -> None:
    if not left:
        return
    if processes == 1:
        _rank_here(task, left, progress)
        return
    context = multiprocessing.get_context("spawn")  # an engine's threads do not survive a fork
    done = context.Value("q", 0)
    coming = iter(left)
    try:
        with ProcessPoolExecutor(min(processes, len(left)), context, start, (task, done)) as pool:
            try:
                running: set[Future[int]] = set()
                while True:
                    # Few at a time: a table may have any number of pieces.
                    for piece in coming:
                        running.add(pool.submit(rank_piece, piece))
                        if len(running) >= 2 * processes:
                            break
                    if not running:
                        return
                    finished, running = wait(running, WAIT_SECONDS, FIRST_COMPLETED)
                    for future in finished:
                        future.result()
                    progress.show(done.value)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    except BrokenProcessPool as error:
        raise DataError(
            "a process that ranks ended all of a sudden; perhaps it was killed for memory (fewer: --processes 1). What "
            "is done is kept: run the same command again"
        ) from error


def _rank_here(task: Task, left: Sequence[Piece], progress: Progress) -> None:
    """In this process, which holds the artifact anyway."""
    total = 0

    def add(rows: int) -> None:
        nonlocal total
        total += rows
        progress.show(total)

    worker = Worker(task, add)
    for piece in left:
        worker.rank(piece)


def _join(parts: Sequence[Path], out: Path) -> None:
    """All parts as one file, which appears when it is whole; they pass through memory piece by piece."""
    if not parts:
        raise DataError(f"{out}: the table has no rows, so there is nothing to rank")
    frames = pl.scan_parquet(list(parts), glob=False)
    with whole_file(out) as draft:
        if out.suffix.lower() == ".csv":
            frames.sink_csv(draft)
        else:
            frames.sink_parquet(draft)
