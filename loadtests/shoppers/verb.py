"""The verb ``shoppers``: compressed days of simulated people at two systems, of which one learns every night."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table
from tritonrank.errors import TritonRankError

from loadtests.console import fail_plainly
from loadtests.processes import SystemFaultError
from loadtests.results import RunFileError, write_whole
from loadtests.session import RUNS
from loadtests.shoppers.page import render
from loadtests.shoppers.study import FIRST, FROZEN, Night, Study, StudySettings, run_study, write_study
from loadtests.shoppers.world import World, WorldSettings

SHOP = Path(__file__).with_name("shop.yaml")
NO_FOLDER: Path | None = None
USUAL = WorldSettings()


def shoppers(
    recipe: Annotated[Path, typer.Argument(help="Of the ranker, without data: the simulator's are put in")] = SHOP,
    days: Annotated[int, typer.Option(min=1, help="That are simulated")] = USUAL.days,
    users: Annotated[int, typer.Option(min=2, help="People who shop")] = USUAL.users,
    items: Annotated[int, typer.Option(min=24, help="That are sold on every day")] = USUAL.items,
    before: Annotated[int, typer.Option(min=2, help="Days of the past, from which the first ranker learns")] = (
        USUAL.before
    ),
    arriving: Annotated[int, typer.Option(min=0, help="Items that appear each day; as many go")] = USUAL.arriving,
    drift: Annotated[float, typer.Option(min=0, max=1, help="Chance that a taste turns, per person and day")] = (
        USUAL.drift
    ),
    fashion: Annotated[float, typer.Option(min=0, help="Logits by which fashions move a word, at most")] = (
        USUAL.fashion
    ),
    season: Annotated[float, typer.Option(min=0, help="Logits by which seasons move a category, at most")] = (
        USUAL.season
    ),
    seed: Annotated[int, typer.Option(min=0, help="Of the world and its people")] = 0,
    night: Annotated[Night, typer.Option(help="learn: tritonrank learn --once; build: anew from the log; none")] = (
        "learn"
    ),
    swap: Annotated[float, typer.Option(min=0, max=1, help="Chance with which pairs of neighbours change places")] = 0,
    candidates: Annotated[int, typer.Option(min=10, max=1000, help="That are ranked for a page")] = 100,
    folder: Annotated[
        Path | None, typer.Option(help="New folder for both systems, which is kept; default: a temporary one")
    ] = NO_FOLDER,
    out: Annotated[Path, typer.Option(help="Results; page and all shown pages lie beside")] = RUNS / "shoppers.json",
) -> None:
    """Play days of simulated people at two real systems of the same build; one learns every night, one stays frozen.

    What people truly want is known, so pages are judged by the truth: NDCG@10 and clicks to be expected, paired by user
    with an interval. Exits with 1 when the learning system was not better beyond doubt.
    """
    world = WorldSettings(seed, users, items, before, days, arriving, drift, fashion, season)
    settings = StudySettings(recipe, world, night, swap, candidates)
    if not recipe.is_file():
        fail_plainly(f"{recipe}: no such recipe. There is one: {SHOP.relative_to(SHOP.parents[2])}")
    if folder is not None and folder.exists():
        fail_plainly(f"{folder}: is there already. Name a new folder, or remove it")
    shown = Console(stderr=True)
    root = folder or Path(tempfile.mkdtemp(prefix="loadtest-shoppers-"))
    page = out.with_suffix(".html")

    def keep(study: Study) -> None:
        write_study(out, study)
        write_whole(page, render(study, World(world)))

    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        study = run_study(settings, root, lambda line: shown.print(line, markup=False, highlight=False), keep=keep)
    except (SystemFaultError, TritonRankError, RunFileError) as error:
        fail_plainly(f"{error}\nWhat was made is kept: {root}")
    if folder is None:
        shutil.rmtree(root, ignore_errors=True)
    show(study)
    found = study.gain()
    better = found.ndcg.low > 0
    told = {"results": str(out), "page": str(page), "passed": better, **found.as_json()}
    print(json.dumps(told))
    raise typer.Exit(0 if better else 1)


def show(study: Study) -> None:
    """The table."""
    numbers = (f"NDCG@10 {FIRST}", f"NDCG@10 {FROZEN}", "difference, 95%", f"clicks {FIRST}", f"clicks {FROZEN}")
    table = Table("day", "pages", *(Column(name, justify="right") for name in numbers))
    for row in study.as_json()["by_day"]:
        one, other, difference = row[FIRST], row[FROZEN], row["gain"]["ndcg"]
        table.add_row(
            str(row["day"]),
            str(one["pages"]),
            f"{one['ndcg']:.3f}",
            f"{other['ndcg']:.3f}",
            f"{difference['mean']:+.3f} [{difference['low']:+.3f}, {difference['high']:+.3f}]",
            f"{one['clicks']:.2f}",
            f"{other['clicks']:.2f}",
        )
    out = Console(emoji=False)
    out.print(table)
    if study.estimates:
        held = Table("estimate", "clicks per page of the order", "truth", "mean", "held by intervals of 95%")
        for one in study.estimates:
            told = f"{one.truth:.3f}", f"{one.mean:.3f}", f"{one.held} of {one.runs}"
            held.add_row(one.estimator, one.order, *told)
        out.print(held)
    found = study.gain()
    out.print(f"NDCG@10: {found.ndcg}, clicks per page: {found.clicks}; {found.users} users", highlight=False)
