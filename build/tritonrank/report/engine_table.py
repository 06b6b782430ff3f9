"""What the report shows of the choice of an engine: what was timed on the machine that built, and which serves."""

from pathlib import Path
from typing import Any

from tritonrank_runtime.engines import NATIVE

from tritonrank.judge.engine_words import ENGINE_FILE, read_choice

HEADER = ("engine", "ms per request", "of ONNX Runtime's time", "of this CPU's product speed", "NDCG@10", "gate")


def engine_shown(root: Path) -> dict[str, Any] | None:
    """None where none was chosen: a recipe that names its executor, or a GPU target.

    Raises:
        ArtifactError: the choice is damaged.
    """
    folder = root / "engine"
    if not (folder / ENGINE_FILE).is_file():
        return None
    told = read_choice(folder)
    return {
        "chosen": told["chosen"],
        "machine": f"{told['processor']}, {told['cores']} cores, {', '.join(told['flags']) or 'no special products'}",
        "requests": told["timed_requests"],
        "candidates": told["candidates"],
        "notes": told["notes"],
        "header": HEADER,
        "rows": [(row["name"] == told["chosen"], _cells(row)) for row in told["rows"]],
    }


def _cells(row: dict[str, Any]) -> list[str]:
    ratio, share, ndcg = row["ratio"], row.get("roof_share"), row["ndcg@10"]
    verdict = {None: "", True: "passed", False: "not passed"}[row["passed"]]
    is_measured = row["executor"] == NATIVE
    return [
        row["name"],
        f"{row['milliseconds']:.1f}",
        f"{ratio['median']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]" if is_measured else "",
        f"{share:.0%}" if share else "",
        "" if ndcg is None else f"{ndcg:.3f}",
        verdict,
    ]
