"""``tritonrank search``: from what was asked for to the winner and the page."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from tritonrank.artifacts.workspace import Workspace
from tritonrank.rankers.checkpoint_source import identity
from tritonrank.recipe import Recipe
from tritonrank.search import report
from tritonrank.search.choices import Pruner, Sampler
from tritonrank.search.proposals import plan_of, pruner_named, sampler_named, seed_of_worker
from tritonrank.search.search import TEST, Budget, Search
from tritonrank.search.space import Space, read_space
from tritonrank.search.storage import open_storage, reaching, shown
from tritonrank.search.study import name_of_study, open_study, space_of_study
from tritonrank.search.trial import Bench
from tritonrank.search.winner import Winner, build_command

FOLDER = "search"
"""In the recipe's folder of artifacts: the studies, each with its trials, its page and its winner."""
STUDIES_FILE, WINNER_FILE, TRIALS = "study.db", "best.yaml", "trials"
DEFAULT_TRIALS = 20

console = Console()


@dataclass(frozen=True)
class Request:
    """What the command line says."""

    recipe: Path
    overrides: Sequence[str]
    over: Sequence[str]
    trials: int | None
    minutes: float | None
    sampler: Sampler
    pruner: Pruner
    storage: str | None
    study: str | None
    out: Path | None
    artifacts: Path


@dataclass(frozen=True)
class Outcome:
    """What the command line ends with."""

    result: dict[str, Any]
    build: list[str] | None
    """the words that build the winner; None: there is none"""
    remark: str


def run_search(asked: Request, recipe: Recipe, workspace: Workspace) -> Outcome:
    """Search, show what was found, and write page and winner.

    Args:
        asked: of the command line.
        recipe: with what --set says.
        workspace: of the recipe.

    Raises:
        RecipeError: the space or the study does not fit the recipe.
        StorageError: the study cannot be reached or written.
        TritonRankError: as the stages that all trials share.
    """
    home = workspace.root / FOLDER
    address = asked.storage or str(home / STUDIES_FILE)
    with reaching(address):
        storage = open_storage(address)
        over = list(asked.over) or (space_of_study(storage, asked.study) if asked.study else [])
        space = read_space(asked.recipe, over, asked.overrides)
        plan = plan_of(asked.sampler, space, recipe)  # a grid without an end shows before anything is made
        sampler = sampler_named(asked.sampler, space, recipe.seed, plan)
        bench = Bench(asked.recipe, asked.overrides, recipe, space, workspace, home)  # the study names its folder below
        bench.prepare_shared()
        about = _about(bench, asked)
        name = asked.study or name_of_study(recipe.name, about | {"space": space.written})
        folder = home / name
        bench = replace(bench, folder=folder / TRIALS)
        study = open_study(storage, name, about, space, sampler, pruner_named(asked.pruner))
        if begun := len(study.get_trials(deepcopy=False)):
            study.sampler = sampler_named(asked.sampler, space, seed_of_worker(recipe.seed, begun), plan)
        _say_what_is_searched(name, space, shown(address), begun, len(plan) if plan is not None else space.size)
        trials = asked.trials if asked.trials is not None or plan is not None else _default_trials(space)
        budget = Budget(trials, None if asked.minutes is None else 60 * asked.minutes)
        search = Search(bench, study, budget, plan)
        search.run()
        search.judge_best_on_test_users()
        found = report.gather(study, space, recipe, TEST)
        winner = search.winner(asked.out or folder / WINNER_FILE, asked.artifacts)
    report.show(found)
    page = report.write(found, folder)
    console.print(f"Page: {page}", markup=False, highlight=False, soft_wrap=True)
    return _outcome(asked, found, winner, page)


def _about(bench: Bench, asked: Request) -> dict[str, Any]:
    """What makes trials comparable; paths are left out, which differ between machines that share a study."""
    recipe = bench.recipe
    sections = recipe.model_dump(mode="json", include={"seed", "text", "finetune", "prune", "distill", "quantize"})
    model = {
        "architecture": recipe.model.architecture,
        "identity": identity(recipe.model.source, recipe.model.revision),
    }
    return sections | {
        "model": model,
        "dataset": bench.shared_identity(),
        "--sampler": asked.sampler,
        "--pruner": asked.pruner,
    }


def _default_trials(space: Space) -> int:
    return min(DEFAULT_TRIALS, space.size) if space.size is not None else DEFAULT_TRIALS


def _say_what_is_searched(name: str, space: Space, address: str, begun: int, size: int | None) -> None:
    points = f"{size:,} points" if size is not None else "ranges"
    goes_on = f", which has {begun} trials already" if begun else ""
    line = f"search     -> study {name} in {address}{goes_on}: {len(space.settings)} setting(s), {points}"
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def _outcome(asked: Request, found: report.Found, winner: Winner | None, page: Path) -> Outcome:
    result = report.result(found) | {"page": str(page), "winner": str(winner.recipe) if winner else None}
    if winner is None:
        return Outcome(result, None, "")
    build = build_command(winner.recipe, asked.artifacts)
    remark = "  (goes on from what the trial made)" if winner.is_trained else "  (its ranker is on another machine)"
    return Outcome(result, build, remark)
