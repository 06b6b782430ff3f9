"""The tiny build with some hours of a training log: what nights of learning need, in seconds."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from random import Random

import polars as pl
from hourly_logs import HOUR, START, Told, event, page, write_log
from tritonrank.artifacts.workspace import Workspace
from tritonrank.recipe import Recipe, load_recipe
from tritonrank_recommend.log.impression import Impression

TESTS = Path(__file__).parent
LOOSE = (
    "learn.newest_hours=4",
    "learn.segments={}",
    "learn.delay_hours=1",
    "learn.rules.newest_loss=0.9",
    "learn.rules.frozen_loss=0.9",
    "learn.rules.segment_loss=0.9",
    "learn.rules.segment_bound=0.99",
    "learn.release=none",
)
"""So little data tells a good ranker from a bad one by chance; the judge has tests of its own."""
SHOWN = 8


def own_copy(workspace: Workspace, root: Path) -> Workspace:
    """The build in a folder that a test may change."""
    shutil.copytree(workspace.root, root, symlinks=True)
    return Workspace(root)


def learning_recipe(base: Path, log: Path, *overrides: str) -> Recipe:
    """The tiny recipe, learning from a log."""
    return load_recipe(TESTS / "tiny.yaml", settings(base, log, *overrides))


def settings(base: Path, log: Path, *overrides: str) -> list[str]:
    """What the recipe is told with --set."""
    return [f"model.base={base}", f"learn.log={log}", *LOOSE, *overrides]


def write_hours(workspace: Workspace, log: Path, hours: int, per_hour: int = 40, *, first: int = 0) -> float:
    """Write hours of a log in which users of the build like what they liked before, or its kind.

    Args:
        workspace: with the dataset.
        log: folder.
        hours: that are written, from ``first`` after START on.
        per_hour: pages.

    Returns:
        When the last hour was over, unix seconds.
    """
    liked = likes_of(workspace)
    items = pl.read_parquet(workspace.dataset / "items.parquet", glob=False)["item_id"].to_list()
    told: list[Told] = []
    for hour in range(first, first + hours):
        random = Random(hour)
        for number in range(per_hour):
            told += _visit(random, hour, number, liked, items)
    end = START + (first + hours) * HOUR
    write_log(log, told, end + 120)
    return end


def likes_of(workspace: Workspace) -> dict[str, list[str]]:
    """Whom the dataset knows, and what they liked."""
    events = pl.read_parquet(workspace.dataset / "events.parquet", glob=False).filter(pl.col("label") == 1)
    return dict(events.group_by("user_id", maintain_order=True).agg("item_id").iter_rows())


def _visit(random: Random, hour: int, number: int, liked: dict[str, list[str]], items: Sequence[str]) -> list[Told]:
    user = random.choice(list(liked))
    at = START + (hour + random.random() * 0.9) * HOUR
    chosen = random.choice(liked[user])
    others = [item for item in random.sample(list(items), SHOWN) if item != chosen][: SHOWN - 1]
    others.insert(random.randrange(SHOWN), chosen)
    token = f"page-{hour}-{number}"
    shown = page(token, others, user, at)
    assert isinstance(shown[1], Impression)
    place = shown[1].item_ids.index(chosen)
    click = event(f"e-{hour}-{number}", user, chosen, at + 20, page=token, position=place)
    return [shown, click] if random.random() < 0.95**place else [shown]
