"""What gpu-check found, as a record with a schema, as tables for people, and as a file.

The record is plain dataclasses, so that a machine without pydantic can write it. Where pydantic is installed it checks
what was written, and whatever reads a record checks it with ``read_report``.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from tritonrank.artifacts import write_whole
from tritonrank.errors import ArtifactError

REPORT_FORMAT = 1
MEASUREMENT = "measurement on a GPU"
REHEARSAL = "rehearsal on CPU"
BASELINE = " (baseline)"
MEASUREMENTS = Path("docs/measurements")


@dataclass(frozen=True)
class Machine:
    """What computed."""

    gpu: str
    """name; empty in a rehearsal"""
    compute_capability: str
    driver: str
    gpu_memory_gb: float
    processor: str
    cores: int
    versions: dict[str, str]
    """of Python and of what is installed, CUDA's included"""


@dataclass(frozen=True)
class PackRecord:
    """What was checked."""

    recipe: str
    artifact: str
    architecture: str
    parameters: int


@dataclass(frozen=True)
class Agreement:
    """Scores against the CPU's in FP32, with the same weights."""

    requests: int
    largest_difference: float
    """relative to the largest score of the request where that is above 1; 1e9: not finite"""
    tolerance: float
    top_10_overlap: float | None
    """mean over requests of more than ten candidates"""
    passed: bool


@dataclass(frozen=True)
class Latency:
    """Requests of one size, one at a time, from token ids (texts through Triton) in memory to scores in memory."""

    candidates: int
    requests: int
    p50_ms: float
    p99_ms: float
    candidates_per_second: float
    speedup: float | None
    """median of the baseline divided by this one's; None where there is no baseline, or it took another way"""
    useful_tflops: float | None = None
    """at the median, padding not counted"""


@dataclass(frozen=True)
class Row:
    """One executor."""

    name: str
    precision: str
    through: str
    """in process, or triton (gRPC, texts to ranking)"""
    is_baseline: bool
    agreement: Agreement
    latencies: list[Latency]


@dataclass(frozen=True)
class Saturation:
    """Requests of one size, as many at once as fill launches, from token ids to scores."""

    name: str
    candidates: int
    requests_per_launch: int
    requests_per_second: float
    candidates_per_second: float
    useful_tflops: float
    """padding not counted"""


@dataclass(frozen=True)
class UnderLoad:
    """Requests of one size from several clients through Triton, from texts to ranking; each client asks again at once.

    ``name`` says what serves.
    """

    name: str
    candidates: int
    clients: int
    requests: int
    """that were answered"""
    refused: int
    p50_ms: float
    p99_ms: float
    requests_per_second: float
    candidates_per_second: float


@dataclass(frozen=True)
class Goal:
    """A figure that was to be reached."""

    what: str
    measured: float | None
    """None: not measured here"""
    held: bool | None


@dataclass(frozen=True)
class Missing:
    """What could not be measured, and why; with the command that would change it."""

    what: str
    why: str


@dataclass(frozen=True)
class Report:
    """The whole record."""

    format: int
    kind: str
    """MEASUREMENT or REHEARSAL"""
    created: str
    command: str
    pack: PackRecord
    machine: Machine
    rows: list[Row]
    missing: list[Missing]
    product_tflops: float | None = None
    """of a large product, in the precision that serves, measured on the spot"""
    saturation: list[Saturation] = field(default_factory=list)
    under_load: list[UnderLoad] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether every executor that was found scores as the CPU does."""
        return all(row.agreement.passed for row in self.rows)


def default_path(report: Report) -> Path:
    """``docs/measurements/<gpu>-<recipe>-<date>.json``."""
    slug = re.sub(r"[^a-z0-9]+", "-", f"{report.machine.gpu} {report.pack.recipe}".lower()).strip("-")
    return MEASUREMENTS / f"{slug}-{report.created[:10]}.json"


def write_report(report: Report, path: Path) -> None:
    """Write the record, and its tables as Markdown beside it; checked where pydantic is installed.

    Raises:
        ArtifactError: a file cannot be written.
    """
    text = json.dumps(asdict(report), indent=1, allow_nan=False) + "\n"
    for target, content in ((path, text), (path.with_suffix(".md"), as_markdown(report))):
        write_whole(target, content, "choose another with --out")
    try:
        read_report(path)
    except ModuleNotFoundError:
        return


def read_report(path: Path) -> Report:
    """A record, checked against its schema.

    Raises:
        ArtifactError: it is missing, or breaks the schema; says where.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        report: Report = TypeAdapter(Report).validate_json(path.read_bytes(), strict=True)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error.strerror})") from None
    except ValidationError as error:
        faults = "\n".join(f"  {'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise ArtifactError(f"{path}: not a record of gpu-check:\n{faults}") from None
    if report.format != REPORT_FORMAT or report.kind not in (MEASUREMENT, REHEARSAL):
        raise ArtifactError(f"{path}: format {report.format}, kind {report.kind!r}: not a record of this gpu-check")
    return report


def show_report(report: Report, console: Console) -> None:
    """The table for people: narrow, one line per request size."""
    table = Table("executor", box=box.HORIZONTALS, title=_title(report), show_lines=True)
    for name in ("cand.", "p50 ms", "p99 ms", "cand./s", "x"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in report.rows:
        agreement = row.agreement
        verdict = "" if agreement.passed else "[red]FAILED:[/] "
        overlap = "" if agreement.top_10_overlap is None else f", top 10 {agreement.top_10_overlap:.3f}"
        columns = zip(*(_timing_cells(one) for one in row.latencies), strict=True)
        name = f"{row.name}{BASELINE if row.is_baseline else ''}"
        described = f"[dim]{verdict}difference {agreement.largest_difference:.1e}{overlap}[/]"
        table.add_row(f"{name}\n{described}", *("\n".join(column) for column in columns))
    console.print(table)
    for line in throughput_lines(report):
        console.print(line, highlight=False, soft_wrap=True)
    for one in report.missing:
        console.print(f"[yellow]missing[/] {one.what}: {one.why}", highlight=False, soft_wrap=True)


def throughput_lines(report: Report) -> list[str]:
    """Shares of the card, saturation, several clients, goals: one sentence each."""
    product = report.product_tflops
    lines = [] if product is None else [f"a large product: {product:,.2f} TFLOP/s"]

    def shared(tflops: float | None) -> str:
        share = f", {tflops / product:.1%} of the product" if product and tflops is not None else ""
        return "" if tflops is None else f"{tflops:,.3f} useful TFLOP/s{share}"

    for row in report.rows:
        lines += [
            f"{row.name}, {one.candidates:,} candidates, one request at a time: {shared(one.useful_tflops)}"
            for one in row.latencies
            if one.useful_tflops is not None
        ]
    lines += [
        f"{one.name}, {one.candidates:,} candidates, {one.requests_per_launch:,} requests a launch: "
        f"{one.requests_per_second:,.0f} requests/s, {one.candidates_per_second:,.0f} candidates/s, "
        f"{shared(one.useful_tflops)}"
        for one in report.saturation
    ]
    lines += [
        f"{one.name}, {one.candidates:,} candidates, {one.clients} clients: p50 {one.p50_ms:.2f} ms, p99 "
        f"{one.p99_ms:.2f} ms, {one.requests_per_second:,.0f} requests/s, {one.candidates_per_second:,.0f} candidates/s"
        + (f", {one.refused:,} refused" if one.refused else "")
        for one in report.under_load
    ]
    said = {None: "not measured", True: "holds", False: "does not hold"}
    return lines + [
        f"goal: {one.what}: {said[one.held]}" + ("" if one.measured is None else f" ({one.measured:,.3g})")
        for one in report.goals
    ]


def _timing_cells(one: Latency) -> list[str]:
    speedup = "" if one.speedup is None else f"{one.speedup:.2f}"
    times = f"{one.p50_ms:.2f}", f"{one.p99_ms:.2f}"
    return [f"{one.candidates:,}", *times, f"{one.candidates_per_second:,.0f}", speedup]


def as_markdown(report: Report) -> str:
    """The same as Markdown."""
    header, *rows = _markdown_cells(report)
    lines = [f"# {_title(report)}", "", _described(report), ""]
    lines += [_markdown_row(header), _markdown_row(["---"] * len(header)), *map(_markdown_row, rows), ""]
    if told := throughput_lines(report):
        lines += [*(f"- {line}" for line in told), ""]
    lines += [f"- missing: {one.what}: {one.why}" for one in report.missing]
    return "\n".join(lines).rstrip() + "\n"


def _title(report: Report) -> str:
    where = report.machine.gpu if report.kind == MEASUREMENT else f"{REHEARSAL}: these are no figures of a GPU"
    return f"gpu-check of {report.pack.recipe}: {where}"


def _described(report: Report) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in report.machine.versions.items())
    gpu = f"{report.machine.gpu}, driver {report.machine.driver}; " if report.machine.gpu else ""
    return (
        f"{gpu}{report.machine.processor}, {report.machine.cores} cores; {versions}. A {report.pack.architecture} "
        f"ranker, {report.pack.parameters / 1e6:.1f} M parameters. One request at a time; milliseconds are p50 / p99; "
        "x is the baseline's p50 divided by this one's; difference is the largest, to the CPU's FP32 scores with the "
        f"same weights. {report.created}, `{report.command}`."
    )


def _markdown_cells(report: Report) -> Iterator[list[str]]:
    sizes = sorted({one.candidates for row in report.rows for one in row.latencies})
    yield ["executor", "difference", "top 10", *(f"{k:,}: {what}" for k in sizes for what in ("ms", "cand./s", "x"))]
    for row in report.rows:
        name = f"{row.name}{BASELINE if row.is_baseline else ''}"
        verdict = "" if row.agreement.passed else " FAILED"
        overlap = row.agreement.top_10_overlap
        cells = [name, f"{row.agreement.largest_difference:.1e}{verdict}", "" if overlap is None else f"{overlap:.3f}"]
        by_size = {one.candidates: one for one in row.latencies}
        for size in sizes:
            one = by_size.get(size)
            if one is None:
                cells += [""] * 3
                continue
            _, p50, p99, *rest = _timing_cells(one)
            cells += [f"{p50} / {p99}", *rest]
        yield cells


def _markdown_row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
