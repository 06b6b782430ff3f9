"""The ladder from the teacher to what is served, and the gates between its rungs.

Quality comes from the judgements that the gates kept, by the content of each artifact; latency and counts come from the
build's summary. So what was rebuilt since the last summary shows its own quality and no latency, and says why.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
from tritonrank_runtime.engines import loaded_files

from tritonrank.artifacts import MANIFEST, Manifest, is_aside, read_manifest
from tritonrank.artifacts.rungs import (
    CHECKPOINT,
    CHECKPOINT_RUNGS,
    EXPORTED,
    FINE_TUNED,
    FOLDERS,
    PRUNED,
    QUANTIZED,
    STUDENT,
    TEACHERS,
    gate_verdicts,
)
from tritonrank.errors import ArtifactError
from tritonrank.judge.evaluate import Judgement, judgement_file
from tritonrank.judge.gate import Verdict, paired_difference
from tritonrank.judge.live_record import LIVE, LiveRung, read_live
from tritonrank.judge.metrics import Interval
from tritonrank.report.answer import SUMMARY_FILE
from tritonrank.report.plots.svg import figure
from tritonrank.tensorrt.plans import PLAN_FILE

PLANS = "plans"


class Artifact(NamedTuple):
    """A published folder."""

    folder: Path
    manifest: Manifest


@dataclass(frozen=True)
class Build:
    """Everything below artifacts/<recipe>/ that a report tells of."""

    root: Path
    summary: dict[str, Any]
    artifacts: dict[str, Artifact]
    """by folder below ``root``, in the order in which they were made"""
    warnings: list[str]
    """what does not fit together, each a sentence"""

    @property
    def dataset(self) -> Path:
        return self.root / "dataset"

    @property
    def summary_is_current(self) -> bool:
        """Whether the last summary tells of the artifacts that are there now."""
        there = {artifact.manifest.artifact for artifact in self.artifacts.values()}
        return set(self.artifacts["summary"].manifest.parents.values()) <= there

    @property
    def served(self) -> str:
        """The rung that the repository serves; without a repository the last one that runs here."""
        by_hash = {a.manifest.artifact: name for name, a in self.rungs().items()}
        if "repository" in self.artifacts:
            for parent in self.artifacts["repository"].manifest.parents.values():
                if parent in by_hash:
                    return by_hash[parent]
        return next(name for name in (*QUANTIZED.values(), EXPORTED, self.teacher) if name in self.rungs())

    @property
    def teacher(self) -> str:
        """What tables call the first rung."""
        made = self.artifacts.get(FOLDERS[FINE_TUNED])
        return CHECKPOINT if made and made.manifest.metrics.get("trained") is False else FINE_TUNED

    def rungs(self) -> dict[str, Artifact]:
        """Model artifacts by what tables call them."""
        return {
            self.teacher if name == FINE_TUNED else name: self.artifacts[folder]
            for name, folder in FOLDERS.items()
            if folder in self.artifacts
        }

    def judgement(self, rung: str) -> Judgement | None:
        """What the judge found on the test examples, if it was kept."""
        if "dataset" not in self.artifacts or rung not in self.rungs():
            return None
        path = judgement_file(self.rungs()[rung].folder, self.dataset, self.root / "judgements")
        return Judgement(rung, pl.read_parquet(path, glob=False)) if path.is_file() else None


OF_BEFORE = frozenset({"base", "start"})
"""Parents that a night of learning takes from the build before it (``learn/``): a dataset and a ranker."""


@dataclass(frozen=True)
class LadderRow:
    """One rung; None is what is not known."""

    name: str
    artifact: str
    parameters: int | None
    size_bytes: int | None
    gflop: float | None
    milliseconds: float | None
    ndcg: Interval | None
    difference: Interval | None
    """to the teacher, paired"""
    parameters_ratio: float | None = None
    """this and the next three: to the teacher"""
    size_ratio: float | None = None
    gflop_ratio: float | None = None
    latency_ratio: float | None = None
    latency_ratio_range: tuple[float, float] | None = None
    """its quartiles over the timed requests"""
    is_served: bool = False
    live: LiveRung | None = None
    """judged again from the answers of a live server"""


@dataclass(frozen=True)
class BaselineRow:
    """What the build is held against."""

    name: str
    ndcg: Interval
    gain: Interval | None
    """what is served minus this one; None in older builds"""

    @property
    def said(self) -> str:
        if self.gain is None:
            return ""
        return "is worse" if self.gain.low > 0 else "ranks better" if self.gain.high < 0 else "not decided"

    @property
    def style(self) -> str:
        return {"is worse": "good", "ranks better": "bad"}.get(self.said, "faint")


def read_build(root: Path) -> Build:
    """Read the manifests and the summary of ``artifacts/<recipe>/``.

    Raises:
        ArtifactError: there is no such folder, no summary in it, no teacher, or something is damaged.
    """
    if not (root / "summary" / MANIFEST).is_file():
        missing = "no such folder" if not root.is_dir() else "no summary here, so nothing to report of"
        raise ArtifactError(
            f"{root}: {missing}. Name the folder of a recipe, such as artifacts/demo, once it is built: "
            "tritonrank build RECIPE"
        )
    manifests = (*root.glob(f"*/{MANIFEST}"), *root.glob(f"{PLANS}/*/{MANIFEST}"))
    folders = [path.parent for path in manifests if not is_aside(path.parent)]
    read = {folder.relative_to(root).as_posix(): Artifact(folder, read_manifest(folder)) for folder in folders}
    if "teacher" not in read:
        raise ArtifactError(
            f"{root}/teacher: the ranker that all others are held against is missing. Build it: tritonrank build RECIPE"
        )
    path = root / "summary" / SUMMARY_FILE
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        rows = {row["name"] for row in summary["rows"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{path}: damaged ({error!r}). Delete {path.parent} and run tritonrank build again"
        ) from None
    artifacts, warnings = _of_one_build(read)
    build = Build(root, summary, artifacts, warnings)
    if not build.summary_is_current:
        warnings.append(
            "Something was rebuilt after the last summary, so some rungs have no latency of their own. "
            "Bring it up to date: tritonrank build RECIPE"
        )
    warnings += [
        f"{name} is not in the last summary, which may be of another recipe."
        for name in (PRUNED, STUDENT, *QUANTIZED.values())
        if name in build.rungs() and name not in rows
    ]
    return build


def ladder(build: Build) -> list[LadderRow]:
    """All rungs that are there, the teacher first; plans of TensorRT last."""
    timed, live = _timed(build), read_live(build.root)
    rows: list[LadderRow] = []
    teacher_judgement = build.judgement(build.teacher)
    summary_rows = {row["name"]: row for row in build.summary["rows"]}
    for name, artifact in build.rungs().items():
        # Whatever the precision, a graph computes with the weights of the checkpoint that was exported.
        counted = EXPORTED if name not in timed and name not in CHECKPOINT_RUNGS else name
        known = summary_rows[counted] if counted in timed else {}
        judgement = build.judgement(name)
        ndcg, difference = _from_summary(summary_rows, name) if name in timed else (None, None)
        if judgement is not None:
            ndcg = judgement.interval()
            difference = paired_difference(judgement, teacher_judgement) if teacher_judgement else None
        rows.append(
            LadderRow(
                name=name,
                artifact=artifact.manifest.artifact,
                parameters=known.get("parameters"),
                size_bytes=_model_bytes(artifact.folder),
                gflop=known.get("gflop_per_request"),
                milliseconds=summary_rows[name].get("milliseconds_per_100") if name in timed else None,
                ndcg=ndcg,
                difference=difference,
                is_served=name == build.served,
                live=live.get(artifact.manifest.artifact),
            )
        )
    return [_with_ratios(row, rows[0], summary_rows) for row in rows] + list(_plans(build))


def baselines(build: Build) -> list[BaselineRow]:
    """What the summary says of everything that is not a rung."""
    rows = [row for row in build.summary["rows"] if row["name"] not in {*FOLDERS, *TEACHERS}]
    gains = [Interval(**row["gain"]) if "gain" in row else None for row in rows]
    return [BaselineRow(row["name"], Interval(**row["ndcg@10"]), gain) for row, gain in zip(rows, gains, strict=True)]


def gates(build: Build) -> list[Verdict]:
    """Every gate that a published artifact went through, in the order of the ladder."""
    metrics = (artifact.manifest.metrics for artifact in build.rungs().values())
    return [Verdict.from_metrics(kept) for one in metrics for kept in gate_verdicts(one)]


def verdict_in_words(found: Verdict) -> str:
    """The verdict for somebody who does not know what a gate is."""
    budget, threefold = (f"{figure(100 * share)}%" for share in (found.budget, 3 * found.budget))
    ranked = f"NDCG@10 went from {found.parent_ndcg:.4f} to {found.child_ndcg:.4f} on {found.examples} requests"
    if found.drop > 0:
        change = f"a fall of {found.drop:.2%}, where {budget} was allowed"
    else:
        change = f"no fall ({-found.drop:+.2%}), where a fall of {budget} was allowed"
    sure = (
        f"resampling those requests, 95% of the time the fall stays below {found.bound:.2%}, where "
        f"{threefold} was allowed"
    )
    alike = []
    if not math.isnan(found.top10_overlap):
        alike.append(f"{found.top10_overlap:.1%} of the ten best are the same")
    if not math.isnan(found.kendall_tau):
        alike.append(f"Kendall's tau of the whole order is {found.kendall_tau:.3f}")
    return f"{ranked}: {change}; {sure}." + (f" {' and '.join(alike)}." if alike else "")


def exact_ratio(row: Mapping[str, Any]) -> bool:
    """Whether the summary has the median of ratios; older ones allow only the ratio of medians."""
    return "latency_ratio" in row


def _of_one_build(read: Mapping[str, Artifact]) -> tuple[dict[str, Artifact], list[str]]:
    """Those whose parents are there, and theirs, and a sentence about each of the others."""
    kept = dict(sorted(read.items(), key=lambda one: one[1].manifest.created))
    warnings: list[str] = []
    while strangers := _strangers(kept):  # what was made from one of them is one itself
        for name, parents in strangers.items():
            del kept[name]
            warnings.append(
                f"{name} was made from another {' and '.join(parents)} than the one here and is left out. "
                f"Bring it up to date: {_remake(name)}"
            )
    return kept, warnings


def _strangers(artifacts: Mapping[str, Artifact]) -> dict[str, list[str]]:
    """Which parents are not among them, by name; records may tell of what is gone."""
    there = {artifact.manifest.artifact for artifact in artifacts.values()}
    there |= {hash_ for one in artifacts.values() for name, hash_ in one.manifest.parents.items() if name in OF_BEFORE}
    found = {
        name: [parent for parent, hash_ in artifact.manifest.parents.items() if hash_ not in there]
        for name, artifact in artifacts.items()
        if name not in {"summary", LIVE}
    }
    return {name: parents for name, parents in found.items() if parents}


def _remake(name: str) -> str:
    """The command that makes an artifact anew."""
    if name.startswith(f"{PLANS}/"):
        return "tritonrank compile RECIPE"
    target = name.removeprefix("repository-")
    return "tritonrank build RECIPE" if target == name else f"tritonrank assemble RECIPE --target {target}"


def _timed(build: Build) -> set[str]:
    """Rungs that the summary's figures are really of."""
    parents = set(build.artifacts["summary"].manifest.parents.values())
    rows = {row["name"] for row in build.summary["rows"]}
    return {name for name, artifact in build.rungs().items() if name in rows and artifact.manifest.artifact in parents}


def _from_summary(rows: Mapping[str, Mapping[str, Any]], name: str) -> tuple[Interval, Interval]:
    return Interval(**rows[name]["ndcg@10"]), Interval(**rows[name]["difference"])


def _with_ratios(row: LadderRow, teacher: LadderRow, summary_rows: Mapping[str, Mapping[str, Any]]) -> LadderRow:
    ratio = summary_rows.get(row.name, {}).get("latency_ratio") if row.milliseconds is not None else None
    return LadderRow(
        **{
            **vars(row),
            "parameters_ratio": _ratio(row.parameters, teacher.parameters),
            "size_ratio": _ratio(row.size_bytes, teacher.size_bytes),
            "gflop_ratio": _ratio(row.gflop, teacher.gflop),
            "latency_ratio": ratio["median"] if ratio else _ratio(row.milliseconds, teacher.milliseconds),
            "latency_ratio_range": (ratio["low"], ratio["high"]) if ratio else None,
        }
    )


def _ratio(value: float | None, reference: float | None) -> float | None:
    return value / reference if value is not None and reference else None


def _model_bytes(folder: Path) -> int | None:
    """Bytes of what is loaded to score: the graphs, or the checkpoint's weights."""
    files = [path for path in loaded_files(folder) or [folder / "model.safetensors"] if path.is_file()]
    return sum(path.stat().st_size for path in files) or None


def _plans(build: Build) -> Iterator[LadderRow]:
    """Plans are opaque and bound to a GPU: their size is all that can be said here."""
    for name, (folder, manifest) in sorted(build.artifacts.items()):
        if name.startswith(f"{PLANS}/"):
            # A group's model.plan is a name for its first rank's.
            sizes = {manifest.files[path.name]: path.stat().st_size for path in folder.glob(f"{PLAN_FILE}*")}
            yield LadderRow(f"plan {folder.name}", manifest.artifact, None, sum(sizes.values()), None, None, None, None)
