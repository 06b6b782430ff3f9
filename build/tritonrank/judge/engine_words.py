"""What was chosen to compute, read and told, without anything that models need (``engine_choice.py`` chooses)."""

import json
from pathlib import Path
from typing import Any

from tritonrank_runtime.engines import NATIVE, ONNXRUNTIME

from tritonrank.errors import ArtifactError

ENGINE_FILE = "engine.json"


def read_choice(folder: Path) -> dict[str, Any]:
    """engine.json of a published choice.

    Raises:
        ArtifactError: it is damaged.
    """
    path = folder / ENGINE_FILE
    try:
        told: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if told["executor"] not in (NATIVE, ONNXRUNTIME):
            raise ValueError(f"executor {told['executor']!r}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path}: damaged ({error!r}). Choose again: tritonrank build RECIPE") from None
    return told


def engine_in_words(told: dict[str, Any]) -> list[str]:
    """The choice and its figures, one line each."""
    lines = []
    for row in told["rows"]:
        roof = f", {row['roof_share']:.0%} of this CPU's {row['precision']} products" if row.get("roof_share") else ""
        ratio = f", {row['ratio']['median']:.2f} of ONNX Runtime's time" if row["executor"] == NATIVE else ""
        mark = ">" if row["name"] == told["chosen"] else " "
        lines.append(f"{mark} {row['name']}: {row['milliseconds']:.1f} ms per request{ratio}{roof}")
    processor = f"{told['processor']}, {told['cores']} cores ({', '.join(told['flags']) or 'no special products'})"
    return [f"{told['chosen']} serves, chosen on {processor}", *lines, *(f"  {note}" for note in told["notes"])]
