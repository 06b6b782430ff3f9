"""Finished builds without models, as far as the history of builds looks at them."""

import json
from pathlib import Path

import numpy as np
import polars as pl
from tritonrank.artifacts import read_manifest, write_artifact
from tritonrank.artifacts.builds import RecordedBuild
from tritonrank.artifacts.record_builds import record_build

REQUESTS = 40
FOLDERS = ("dataset", "int8", "repository", "summary")
RETRIEVAL = ("catalogue", "blend")


def make_stages(
    root: Path,
    weights: str,
    *,
    is_success: bool = True,
    data: str = "events",
    quality: float = 0.4,
    catalogue: str = "",
) -> None:
    """Write the artifacts of all stages, as a build does; those of retrieval where ``catalogue`` says what is in it."""
    with write_artifact(root / "dataset", "prepare", {"data": data}, {}) as draft:
        (draft.folder / "test.parquet").write_text(data)
        draft.metrics |= {"events": len(data), "examples": {"test": REQUESTS}}
    dataset = read_manifest(root / "dataset")
    with write_artifact(root / "int8", "quantize", {}, {"dataset": dataset}, revision=len(weights)) as draft:
        (draft.folder / "weights.bin").write_text(weights)
    model = read_manifest(root / "int8")
    with write_artifact(root / "repository", "assemble", {}, {"model": model}) as draft:
        (draft.folder / "ranker" / "1").mkdir(parents=True)
        (draft.folder / "ranker" / "1" / "weights.bin").write_text(weights * 2_000)
    made_of = {"dataset": dataset, "INT8": model}
    for name in RETRIEVAL if catalogue else ():
        with write_artifact(root / name, name, {}, {"dataset": dataset}, revision=len(catalogue)) as draft:
            (draft.folder / f"{name}.json").write_text(catalogue)
        made_of[name] = read_manifest(root / name)
    with write_artifact(root / "summary", "summarize", {}, made_of) as draft:
        ranked = quality + 0.1 * np.sin(np.arange(REQUESTS))
        row = {"name": "INT8", "ndcg@10": {"mean": quality, "low": quality - 0.1, "high": quality + 0.1}}
        told = {"recipe": "shop", "served": "INT8", "examples": REQUESTS, "verdict": {"success": is_success}}
        told["rows"] = [row | {"megabytes": 2.0, "milliseconds_per_100": 3.0}]
        (draft.folder / "summary.json").write_text(json.dumps(told))
        pl.DataFrame({"example_id": [f"u{n}" for n in range(REQUESTS)], "ndcg@10": ranked}).write_parquet(
            draft.folder / "served.parquet"
        )


def record_stages(root: Path, epochs: int = 1) -> RecordedBuild:
    """Record what stands in the stages' folders."""
    settings = {"name": "shop", "finetune": {"epochs": epochs}}
    made_of = read_manifest(root / "summary").parents
    folders = {name: root / name for name in FOLDERS + tuple(name for name in RETRIEVAL if name in made_of)}
    return record_build(root, settings, folders, lambda _: None)[0]


def make_build(
    root: Path,
    weights: str,
    *,
    is_success: bool = True,
    data: str = "events",
    quality: float = 0.4,
    catalogue: str = "",
) -> str:
    """Build and record; the name of the build."""
    make_stages(root, weights, is_success=is_success, data=data, quality=quality, catalogue=catalogue)
    return record_stages(root, epochs=len(weights)).name
