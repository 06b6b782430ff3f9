"""Step ``build``: what a night learnt becomes a version as ``tritonrank build`` makes them, gates included.

The stages are those of the build, in the night's own folder; only what they start from is another dataset and another
ranker. Popularity, neighbours and the blend come from the night's dataset; the encoder that finds items stays, unless
the recipe says otherwise, so that vectors of items stay where they are. What comes out is recorded among the builds.
"""

import shutil
from pathlib import Path

from tritonrank.artifacts import read_manifest, tidy
from tritonrank.artifacts.builds import RecordedBuild
from tritonrank.artifacts.locks import only_writer
from tritonrank.artifacts.record_builds import link_artifact
from tritonrank.artifacts.stage import bring_up_to_date
from tritonrank.artifacts.workspace import Workspace
from tritonrank.errors import ArtifactError
from tritonrank.pipeline.record import record
from tritonrank.pipeline.stages import COMPARE, stages
from tritonrank.recipe import Recipe

LEARNT = ("prepare", "finetune")
"""Stages in whose place a night has steps of its own."""
RETRIEVER = "retriever"


def compress(recipe: Recipe, home: Workspace, live: Workspace, root: Path) -> RecordedBuild:
    """Run the stages after training, as far as they are not up to date, and record what they made.

    Args:
        recipe: what it builds.
        home: with the night's dataset and ranker.
        live: where the encoder is that stays.
        root: ``artifacts/<recipe>``, whose builds it joins.

    Raises:
        GateError: a step made the ranking worse than the recipe allows.
        ArtifactError, StorageError: as the stages say.
    """
    left = list(LEARNT)
    if recipe.gate.training != "stop":  # the summary says as much; only a stop needs to know before
        left.append(COMPARE)
    if recipe.retrieval and recipe.learn.retriever == "keep":
        _hand_over(live.retriever, home.retriever)
        left.append(RETRIEVER)
    chosen = [stage for stage in stages(recipe, home) if stage.verb != COMPARE or COMPARE not in left]
    with only_writer(home.root):
        for stage in chosen:
            if stage.verb not in left:
                tidy(stage.folder)
                bring_up_to_date(stage)
        return record(recipe, home, chosen, root)


def _hand_over(source: Path, target: Path) -> None:
    """Let an artifact lie in a second place, whole or not at all."""
    manifest = read_manifest(source)
    try:
        if read_manifest(target).artifact == manifest.artifact:
            return
    except ArtifactError:
        pass
    with only_writer(target.parent):
        tidy(target)
        draft = target.with_name(f"{target.name}.tmp")
        link_artifact(source, manifest, draft)
        shutil.rmtree(target, ignore_errors=True)
        draft.rename(target)
