"""The first page of ``tritonrank --help``: panels, and the commands in each, in the order in which they are used."""

from enum import StrEnum
from typing import Any

from tritonrank.system.literal_help import LiteralGroup


class Panel(StrEnum):
    """A heading of the first page; a command names its own: ``@app.command(rich_help_panel=Panel.START)``."""

    START = "Start"
    BUILD = "Build"
    JUDGE = "Judge"
    SERVE = "Serve"
    OPERATE = "Operate"


IN_ORDER: dict[Panel, tuple[str, ...]] = {
    Panel.START: ("init", "check", "recipes", "settings", "up", "convert-weights"),
    Panel.BUILD: (
        *("build", "search"),
        *("prepare", "finetune", "prune", "distill", "export", "quantize"),
        *("retriever", "catalogue", "blend", "shard", "assemble", "compile"),
    ),
    Panel.JUDGE: ("report", "evaluate", "judge-recommend", "estimate-clicks", "calibrate", "check-graph"),
    Panel.SERVE: ("serve", "watch", "demo", "rank", "import-events", "workload", "pack", "gpu-check"),
    Panel.OPERATE: (
        *("builds", "promote", "back", "prune-builds", "push", "pull", "store"),
        *("rollout", "learn", "fleet", "sweep-log", "replay-events", "dump-store"),
    ),
}
"""Which command stands where; the modules beside this one are free to declare them in any order."""


class OrderedGroup(LiteralGroup):
    """A group whose commands are listed as ``IN_ORDER`` has them, whatever was imported first."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names in the order of use; a command that is not listed comes last."""
        order = {name: place for place, name in enumerate(name for names in IN_ORDER.values() for name in names)}
        return sorted(self.commands, key=lambda name: order.get(name, len(order)))
