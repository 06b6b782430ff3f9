"""One trial: the stages from the first setting that is searched to the last, judged on the validation users.

What comes before them is made once, in the recipe's own workspace, and shared: always the dataset, and the fine-tuned
ranker where only pruning or distillation are searched. A trial's own artifacts go into a folder that is named by its
settings, so that a trial that is tried again after its worker died goes on from the last evaluation; only the best
trial's folder is kept.
"""

import hashlib
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tritonrank_runtime.text import TextRules

from tritonrank.artifacts import read_manifest
from tritonrank.artifacts.locks import only_writer
from tritonrank.artifacts.stage import Stage, run_stage
from tritonrank.artifacts.workspace import Workspace
from tritonrank.data.dataset import Dataset, Example
from tritonrank.errors import ArtifactError, RecipeError
from tritonrank.judge.evaluate import judge_scorer
from tritonrank.judge.open_scorer import open_scorer
from tritonrank.pipeline import finetune
from tritonrank.pipeline.stages import run_stages, stages
from tritonrank.recipe import Recipe, load_recipe
from tritonrank.search.space import Point, Space, key_of, overrides_of
from tritonrank.train.watch import Watch, watched_by

CHAIN = ("prepare", "finetune", "prune", "distill", "export", "quantize")
"""Stages that a trial may run, in order."""
TRAININGS = ("finetune", "distill")
FOLDER_HASH = 16


@dataclass(frozen=True)
class TrialWorkspace(Workspace):
    """The artifacts of one trial; those of stages that are not its own are the shared ones."""

    shared: Workspace
    own: frozenset[str]
    """verbs of the stages that it runs"""

    @property
    def dataset(self) -> Path:
        return self.shared.dataset

    @property
    def teacher(self) -> Path:
        return self._of("finetune").root / "teacher"

    @property
    def pruned(self) -> Path:
        return self._of("prune").root / "pruned"

    @property
    def student(self) -> Path:
        return self._of("distill").root / "student"

    @property
    def onnx(self) -> Path:
        return self._of("export").root / "onnx"

    @property
    def int8(self) -> Path:
        return self._of("quantize").root / "int8"

    @property
    def judgements(self) -> Path:
        """What was judged of shared artifacts is judged once; of a trial's own it goes with them."""
        return self._of("finetune").root / "judgements"

    def _of(self, verb: str) -> Workspace:
        return Workspace(self.root) if verb in self.own else self.shared


@dataclass(frozen=True)
class Bench:
    """What all trials of a study have in common."""

    recipe_path: Path
    overrides: Sequence[str]
    """of --set"""
    recipe: Recipe
    """with them, and without what is searched"""
    space: Space
    shared: Workspace
    folder: Path
    """of the trials' own folders"""

    def recipe_of(self, point: Point) -> Recipe:
        """The recipe at a point of the space; RecipeError where its settings exclude each other."""
        return load_recipe(self.recipe_path, [*self.overrides, *overrides_of(point)])

    def workspace_of(self, point: Point) -> TrialWorkspace:
        """Where a trial's artifacts are."""
        own = frozenset(self.verbs(self.recipe_of(point)))
        return TrialWorkspace(self.folder / self.folder_name(point), self.shared, own)

    def folder_name(self, point: Point) -> str:
        """Of a trial's own artifacts."""
        return hashlib.sha256(key_of(point).encode()).hexdigest()[:FOLDER_HASH]

    def verbs(self, recipe: Recipe) -> list[str]:
        """The stages that a trial runs itself."""
        there = [stage.verb for stage in stages(recipe, self.shared) if stage.verb in CHAIN]
        # A pruned ranker that is not distilled yet says little about what it will be.
        last = max(CHAIN.index("distill" if section == "prune" else section) for section in self._searched())
        return [verb for verb in there if self._first() <= CHAIN.index(verb) <= last]

    def prepare_shared(self) -> None:
        """Make what all trials share, once; a process that comes second waits for the first.

        Raises:
            RecipeError: nothing that is searched is part of the recipe.
            TritonRankError: as its stages.
        """
        if "finetune" in self._searched() and self.recipe.model.checkpoint:
            raise RecipeError(
                f"{self.recipe.name} takes the checkpoint {self.recipe.model.checkpoint} as it is, so that finetune.* "
                "changes nothing. Name it as model.base to train it further, or search prune, distill or quantize"
            )
        last = self._shared_stages()[-1].verb
        run_stages(self.recipe, self.shared, until=last)
        if last == "prepare":  # later stages have looked at the models already
            finetune.check_models(self.recipe, self.shared)

    def shared_identity(self) -> str:
        """Of the artifacts that trials start from: other ones make trials that cannot be compared."""
        hashes = [read_manifest(stage.folder).artifact for stage in self._shared_stages()]
        return hashlib.sha256("\n".join(hashes).encode()).hexdigest()

    def run(self, point: Point, watch: Watch) -> NDArray[np.float64]:
        """Make the trial's artifacts, as far as they are not there yet, and judge the last one.

        Args:
            point: its settings.
            watch: sees the last training, and may end it.

        Returns:
            NDCG@10 per validation user.

        Raises:
            TrainingEndedError: the watch ended it.
            RecipeError, GateError, ArtifactError: these settings cannot be, or do not pass.
            StorageError: no space, no rights.
        """
        recipe, workspace = self.recipe_of(point), self.workspace_of(point)
        own = self._own_stages(recipe, workspace)
        trainings = [stage.verb for stage in own if stage.verb in TRAININGS]
        with only_writer(workspace.root):
            for stage in own:
                if stage.why_anew() is None:
                    continue
                with watched_by(watch) if stage.verb in trainings[-1:] else nullcontext():
                    run_stage(stage)
        dataset = Dataset.read(workspace.dataset)
        return self._judge("validation users", own[-1].folder, dataset, dataset.validation)

    def judge_test_users(self, point: Point) -> NDArray[np.float64]:
        """NDCG@10 per test user of a trial whose artifacts are still here.

        Raises:
            ArtifactError: they are not.
        """
        workspace = self.workspace_of(point)
        dataset = Dataset.read(workspace.dataset)
        return self._judge("test users", self.result_of(point), dataset, dataset.test)

    def result_of(self, point: Point) -> Path:
        """The artifact that a trial is judged by."""
        workspace = self.workspace_of(point)
        return self._own_stages(self.recipe_of(point), workspace)[-1].folder

    def has_result(self, point: Point) -> bool:
        """Whether it is on this machine."""
        try:
            read_manifest(self.result_of(point))
        except ArtifactError:
            return False
        return True

    def remove(self, names: set[str]) -> None:
        """Forget the artifacts of trials, by the names of their folders."""
        for name in names:
            shutil.rmtree(self.folder / name, ignore_errors=True)

    def folders(self) -> set[str]:
        """The names of the trials' folders that are here."""
        return {path.name for path in self.folder.iterdir() if path.is_dir()} if self.folder.is_dir() else set()

    def _searched(self) -> set[str]:
        """The sections that have a setting in the space."""
        return {setting.key.partition(".")[0] for setting in self.space.settings}

    def _first(self) -> int:
        """Where in the chain a trial begins."""
        return min(CHAIN.index(section) for section in self._searched())

    def _shared_stages(self) -> list[Stage]:
        return [stage for stage in stages(self.recipe, self.shared) if stage.verb in CHAIN[: self._first()]]

    def _own_stages(self, recipe: Recipe, workspace: TrialWorkspace) -> list[Stage]:
        own = [stage for stage in stages(recipe, workspace) if stage.verb in workspace.own]
        if not own:
            raise RecipeError(f"{recipe.name}: no stage of this recipe is changed by what is searched")
        return own

    def _judge(self, name: str, folder: Path, dataset: Dataset, examples: Sequence[Example]) -> NDArray[np.float64]:
        rules = TextRules.load(folder)
        return judge_scorer(name, open_scorer(folder), dataset, examples, rules).values()
