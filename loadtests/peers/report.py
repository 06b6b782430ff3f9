"""results.json -> tables: one for the terminal, the same one in Markdown.

Every system has a row. One that failed has its reason there instead of figures, so that nobody has to wonder why it is
missing.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

COLUMNS = (
    "system", "NDCG@10", "difference", "candidates/s", "ratio", "p50", "p99", "ratio of p50", "half load p50", "p99",
    "refused", "Zipf candidates/s", "memory",
)  # fmt: skip
FAILED = "failed"
LEGEND = (
    "Difference: of NDCG@10 to the first system's, paired, with its 95% bootstrap interval; {judged} judged requests. "
    "Candidates per second at saturation, and as a multiple of the first system's. p50 and p99: milliseconds of a "
    "request with {candidates} candidates from a single client; the ratio says how many times faster than the first "
    "system's p50, median [least, most] of {turns} turns. Half load: Poisson arrivals at half of the system's own "
    "saturation, latency from the scheduled arrival. Refused: requests not answered in any load. Memory: MB of the "
    "server's or worker's processes. p99 of fewer than 100 requests is the slowest one."
)


def markdown(results: Mapping[str, Any]) -> str:
    """The table, the legend, the failures and the machine's ceiling, ready for a README."""
    lines = [
        "| " + " | ".join(COLUMNS) + " |",
        "|" + "---|" * len(COLUMNS),
        *("| " + " | ".join(row) + " |" for row in rows(results)),
        "",
        legend(results),
        *("", ceiling(results)),
    ]
    for system in failed(results):
        lines += ["", f"**{system['name']}** could not be measured: {first_line(system['failed'])}"]
    return "\n".join(lines) + "\n"


def rich_table(results: Mapping[str, Any]) -> Table:
    """The same table for the terminal."""
    table = Table(title="Ours beside the peers", show_lines=False)
    for number, column in enumerate(COLUMNS):
        table.add_column(column, justify="left" if number == 0 else "right", no_wrap=number == 0)
    for row in rows(results):
        # A reason would make its column wide; it is printed below the table.
        table.add_row(*(escape(cell.partition(": ")[0] if cell.startswith(FAILED) else cell) for cell in row))
    return table


def rows(results: Mapping[str, Any]) -> list[list[str]]:
    """One row per system in the order of the results, each as long as COLUMNS."""
    systems = results["systems"]
    first = next((s for s in systems if s["name"] == results["ratios_to"] and "failed" not in s), None)
    return [_row(system, first) for system in systems]


def failed(results: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The systems without complete figures."""
    return [system for system in results["systems"] if "failed" in system]


def legend(results: Mapping[str, Any]) -> str:
    """What the columns mean."""
    settings = results["settings"]
    judged = max((s["quality"]["judged"] for s in results["systems"] if "quality" in s), default=0)
    return LEGEND.format(candidates=settings["candidates"], turns=settings["effort"]["turns"], judged=judged)


def ceiling(results: Mapping[str, Any]) -> str:
    """The machine's own limit, and what a request asks of it."""
    machine, rates, needed = results["machine"], results["gflop_per_second"], results["gflop_per_request"]
    measured = ", ".join(f"{name.replace('_', ' ')} {rate:.0f}" for name, rate in rates.items())
    return (
        f"{machine['processor']}, {machine['cores']} cores ({', '.join(machine['flags'])}). Matrix products of the "
        f"encoder's shape, GFLOP/s: {measured}. A request needs {needed['joint']:.1f} GFLOP by joint ranking and "
        f"{needed['shared_context']:.1f} by shared-context ranking."
    )


def latency_ratio(system: Mapping[str, Any], first: Mapping[str, Any]) -> tuple[float, float, float] | None:
    """How many times faster a single client is answered than by the first system: median, least, most of the turns.

    Each turn's ratio is of two p50s measured in that turn.
    """
    pairs = zip(system["single_p50_by_turn"], first["single_p50_by_turn"], strict=False)
    ratios = sorted(other / own for own, other in pairs if own and other)
    if not ratios:
        return None
    middle = len(ratios) // 2
    median = ratios[middle] if len(ratios) % 2 else (ratios[middle - 1] + ratios[middle]) / 2
    return median, ratios[0], ratios[-1]


def first_line(reason: str) -> str:
    return reason.strip().splitlines()[0] if reason.strip() else "no reason given"


def _row(system: Mapping[str, Any], first: Mapping[str, Any] | None) -> list[str]:
    if "failed" in system:
        return [system["name"], f"{FAILED}: {first_line(system['failed'])}", *[""] * (len(COLUMNS) - 2)]
    saturation, single, half = system["saturation"], system["single"]["latency_ms"], system["half_load"]["latency_ms"]
    speed = saturation["candidates_per_second"]
    loads: Sequence[Mapping[str, Any]] = [system["half_load"], system["zipf"], *system["closed"].values()]
    return [
        system["name"],
        _number(system["quality"]["ndcg@10"], 3),
        _difference(system["quality"].get("ndcg@10_difference")),
        _number(speed),
        _number(speed / first["saturation"]["candidates_per_second"], 2) if first else "",
        _number(single["p50"]),
        _number(single["p99"]),
        _ratio(latency_ratio(system, first) if first else None),
        _number(half["p50"]),
        _number(half["p99"]),
        f"{sum(load['failed'] for load in loads)}/{sum(load['requests'] for load in loads)}",
        _number(system["zipf"]["candidates_per_second"]),
        _number(system["memory_mb"]),
    ]


def _ratio(values: tuple[float, float, float] | None) -> str:
    if values is None:
        return ""
    median, least, most = values
    return f"{median:.2f}" if least == most else f"{median:.2f} [{least:.2f}, {most:.2f}]"


def _difference(value: Mapping[str, float] | None) -> str:
    return "" if value is None else f"{value['mean']:+.3f} [{value['low']:+.3f}, {value['high']:+.3f}]"


def _number(value: float | None, digits: int = 0) -> str:
    return "" if value is None else f"{value:,.{digits}f}"
