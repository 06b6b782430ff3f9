"""A quiet shop is judged on more hours, so that enough people judge; nothing is decided by too few."""

from collections.abc import Iterable
from pathlib import Path

import polars as pl
import pytest
from hourly_logs import HOUR, START, Told, event, page, write_log
from tritonrank.judge.gate import FEWEST_EXAMPLES
from tritonrank.learn.lists.judging_hours import JUDGES, TooFewJudgesError, hours_to_judge
from tritonrank.learn.lists.night_events import validates
from tritonrank.learn.lists.windows import plan_windows
from tritonrank.recipe import Recipe, load_recipe

DAYS = 2
HOURS = 24 * DAYS


def logged(folder: Path, per_hour: int, hours: Iterable[int]) -> Path:
    """A log in which so many users like one shown item in each of these hours, everybody once."""
    told: list[Told] = []
    for hour in hours:
        for number in range(per_hour):
            name, at = f"{hour}-{number}", START + hour * HOUR + 60 + number
            told.append(page(name, ["i1", "i2"], f"u{name}", at))
            told.append(event(f"e{name}", f"u{name}", "i1", at + 20, page=name))
    write_log(folder, told, START + HOURS * HOUR + 120)
    return folder


def recipe_of(log: Path, hours: int = 6) -> Recipe:
    settings = [f"learn.log={log}", f"learn.newest_hours={hours}", "learn.delay_hours=1", "model.base=base"]
    return load_recipe(Path(__file__).parent / "tiny.yaml", settings)


def judged_hours(recipe: Recipe) -> int:
    return hours_to_judge(recipe, plan_windows(recipe.learn, START + HOURS * HOUR + 120, START))


def test_a_busy_shop_is_judged_on_the_hours_of_its_recipe(tmp_path: Path) -> None:
    assert judged_hours(recipe_of(logged(tmp_path, 20, range(HOURS)))) == 6


def test_a_quiet_shop_is_judged_on_as_many_hours_as_it_takes(tmp_path: Path) -> None:
    recipe = recipe_of(logged(tmp_path, 4, range(HOURS)))
    hours = judged_hours(recipe)
    assert 6 < hours < HOURS / 2

    def judges(of: int) -> int:
        """Who validates does not judge, and what was shown in the last hour is not settled."""
        users = [f"u{hour}-{number}" for hour in range(HOURS - of, HOURS - 1) for number in range(4)]
        return int((~validates(pl.Series(users), recipe.seed)).sum())

    assert judges(hours) >= JUDGES > judges(hours - 1)


def test_of_all_that_is_new_half_is_judged_at_the_most(tmp_path: Path) -> None:
    log = logged(tmp_path, 3, range(HOURS - 8))
    assert judged_hours(recipe_of(log)) == HOURS / 2
    assert judged_hours(recipe_of(log, hours=40)) == 40, "as the recipe says"


def test_too_few_users_decide_nothing_and_cost_nothing(tmp_path: Path) -> None:
    with pytest.raises(TooFewJudgesError, match=f"it takes {FEWEST_EXAMPLES}. The next night takes these hours"):
        judged_hours(recipe_of(logged(tmp_path, 1, range(HOURS))))
