"""What the steps of a night work with."""

from dataclasses import dataclass

from tritonrank.artifacts.workspace import Workspace
from tritonrank.learn.ledger import Ledger, Night
from tritonrank.learn.lists.windows import Windows
from tritonrank.recipe import Recipe


class NothingNewError(Exception):
    """There is nothing to learn yet; says why."""


@dataclass(frozen=True)
class Run:
    """What a step works with.

    Attributes:
        recipe: with its section ``learn``.
        workspace: of the recipe's own build.
        ledger: of its nights.
        night: the one that runs, as the ledger has it.
        now: unix seconds, by the clock of the log.
        controller: URL of the rollout controller.
    """

    recipe: Recipe
    workspace: Workspace
    ledger: Ledger
    night: Night
    now: float
    controller: str

    @property
    def home(self) -> Workspace:
        """The night's own artifacts."""
        return self.ledger.workspace_of(self.night)

    @property
    def live(self) -> Workspace:
        """Where the last accepted ranker is: that of the parent night, or of the recipe's build."""
        return self.ledger.workspace_of(self.night.parent) if self.night.parent else self.workspace

    @property
    def windows(self) -> Windows:
        """What ``collect`` chose."""
        return Windows.of_json(dict(self.night.told("collect")["windows"]))
