"""What made the artifacts: commands, machine, versions, settings and hashes, so that a figure can be traced."""

import shlex
from dataclasses import dataclass
from typing import Any

from tritonrank.artifacts.flat import flat
from tritonrank.report.ladder import Build


@dataclass(frozen=True)
class StageRow:
    """One published artifact."""

    folder: str
    verb: str
    created: str
    seconds: float
    artifact: str
    """sha256 of what was built"""
    parents: dict[str, str]
    settings: list[tuple[str, str]]
    """``section.key`` -> value"""
    files: dict[str, str]
    """relative path -> sha256"""


@dataclass(frozen=True)
class Provenance:
    commands: list[str]
    machine: list[tuple[str, str]]
    """empty where an older build did not record it"""
    versions: dict[str, str]
    other_versions: list[str]
    """stages that were made with other versions, and which, each a sentence"""
    stages: list[StageRow]


def provenance(build: Build) -> Provenance:
    """From the manifests, in the order in which the stages ran."""
    summary = build.artifacts["summary"].manifest
    return Provenance(
        commands=[build.summary.get("command", "tritonrank build RECIPE"), f"tritonrank report {_quoted(build)}"],
        machine=[(name.replace("_", " "), _shown(value)) for name, value in build.summary.get("machine", {}).items()],
        versions=summary.tools,
        other_versions=[
            f"{name} was made with {', '.join(f'{tool} {version}' for tool, version in other.items())}."
            for name, artifact in build.artifacts.items()
            if (other := {t: v for t, v in artifact.manifest.tools.items() if summary.tools.get(t) != v})
        ],
        stages=[
            StageRow(
                folder=name,
                verb=artifact.manifest.stage,
                created=artifact.manifest.created,
                seconds=artifact.manifest.seconds,
                artifact=artifact.manifest.artifact,
                parents=artifact.manifest.parents,
                settings=[(name, _shown(value)) for name, value in flat(artifact.manifest.settings)],
                files=artifact.manifest.files,
            )
            for name, artifact in build.artifacts.items()
        ],
    )


def _quoted(build: Build) -> str:
    return shlex.quote(str(build.root))


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(_shown, value)) if isinstance(value, list) else str(value)
