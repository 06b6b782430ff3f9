"""What a search found: a table, a page that needs nothing from elsewhere, and JSON for scripts.

Every trial is told with the interval of its mean over the validation users, and with its paired difference to the
recipe as it is. The best of many is chosen by luck, too: so the test users, by whom nothing was chosen, judge it again
beside the recipe.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState
from rich import box
from rich.console import Console
from rich.table import Table

from tritonrank import report as report_room
from tritonrank.artifacts import write_whole
from tritonrank.judge.metrics import Interval, interval
from tritonrank.recipe import Recipe
from tritonrank.report.plots.axes import Series, line_plot
from tritonrank.report.plots.rows import BarRow, bar_plot
from tritonrank.report.plots.scatter import Dot, scatter
from tritonrank.report.plots.svg import figure
from tritonrank.search.space import Point, Setting, Space, as_yaml, in_words, key_of
from tritonrank.search.study import ERROR, SECONDS, Trials, values_of
from tritonrank.search.workers import host_of

PAGE_FILE, RESULT_FILE = "search.html", "search.json"
TABLE_ROWS = 15
"""Trials in the terminal's table, best first; page and JSON have all."""
TRIAL, BEST, RECIPE, ENDED = 1, 3, 2, 5
"""Colours of the page's palette."""
FEWEST_FOR_IMPORTANCE = 4
FEW_SETTINGS = 3
"""That have a column each in the terminal's table."""
MEASURE = "validation NDCG@10"
NOTHING = "-"

console = Console()


@dataclass(frozen=True)
class Row:
    """One trial."""

    number: int
    point: Point
    state: str
    """complete, ended early, cannot be, running, gave up"""
    value: Interval | None
    against_recipe: Interval | None
    """paired difference to the recipe as it is"""
    evaluations: Sequence[tuple[int, float]]
    seconds: float | None
    worker: str
    error: str = ""
    is_best: bool = False
    is_recipe: bool = False


@dataclass(frozen=True)
class Found:
    """All that is told of a study."""

    recipe: str
    study: str
    space: Space
    point_of_recipe: Point
    """in the space or not"""
    rows: Sequence[Row]
    """by number"""
    importance: Mapping[str, float]
    """share of the differences among completed trials that each setting explains (fANOVA, Hutter et al. 2014)"""
    test_best: Interval | None
    test_recipe: Interval | None
    test_gain: Interval | None
    """paired, on the test users"""

    @property
    def best(self) -> Row | None:
        return next((row for row in self.rows if row.is_best), None)

    @property
    def mood(self) -> str:
        """good: better than the recipe beyond doubt, on users by whom nothing was chosen; bad: nothing was found."""
        if self.best is None:
            return "bad"
        return "good" if self.test_gain is not None and self.test_gain.low > 0 else ""

    def count(self, state: str) -> int:
        """Trials in a state."""
        return sum(row.state == state for row in self.rows)


def gather(study: optuna.Study, space: Space, recipe: Recipe, test: str) -> Found:
    """Read what a study holds.

    Args:
        study: with trials of this and other processes.
        space: what was searched.
        recipe: as it is, in the space or not.
        test: begins the attributes that hold the test users' values.
    """
    trials = Trials.of(study, space)
    point_of_recipe = space.point_of_recipe(recipe)
    unchanged = trials.of_key(key_of(point_of_recipe))
    best = trials.best
    rows = [_row(one, trials, best, unchanged) for one in trials.counted]
    of_best, of_recipe = _tested(study, test, best), _tested(study, test, unchanged)
    is_another = best is not unchanged
    return Found(
        recipe.name,
        study.study_name,
        space,
        point_of_recipe,
        rows,
        importance(study, space, trials),
        interval(of_best) if of_best is not None else None,
        interval(of_recipe) if of_recipe is not None else None,
        interval(of_best - of_recipe) if of_best is not None and of_recipe is not None and is_another else None,
    )


def importance(study: optuna.Study, space: Space, trials: Trials) -> dict[str, float]:
    """How much of what differs each setting explains; empty where too few trials say nothing about it."""
    if len(trials.completed) < FEWEST_FOR_IMPORTANCE or len({trial.value for trial in trials.completed}) < 2:
        return {}
    if len(space.settings) == 1:
        return {}
    try:
        # Optuna's default asks what the best tenth has in common: of a dozen trials that is one.
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    except (ValueError, RuntimeError):  # no setting has two values among the completed trials
        return {}
    return dict(found)


def sentences(found: Found) -> list[str]:
    """What came out, in sentences, most important first."""
    best, said = found.best, []
    if best is None or best.value is None:
        return ["No trial came to its end, so that there is no best one: the errors are above and on the page."]
    point = ", ".join(f"{key}={as_yaml(value)}" for key, value in best.point.items())
    said.append(f"Best: trial {best.number} with {MEASURE} {best.value}: {point}.")
    if best.is_recipe:
        said.append("That is the recipe as it is: nothing better was found.")
    elif best.against_recipe is not None:
        doubt = "" if best.against_recipe.low > 0 else "; the interval holds 0, so that it may be luck"
        said.append(f"To the recipe as it is that is {_signed(best.against_recipe)} on the same users{doubt}.")
    if found.test_gain is not None:
        said.append(
            f"The test users, by whom nothing was chosen: {found.test_best} against {found.test_recipe}, "
            f"{_signed(found.test_gain)}."
        )
    elif found.test_best is not None:
        said.append(f"The test users, by whom nothing was chosen: {found.test_best}.")
    return said


def show(found: Found) -> None:
    """The table and the sentences, for people."""
    table = Table(title=f"{found.study}: {_counts(found)}", box=box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("trial", justify="right")
    is_narrow = len(found.space.settings) <= FEW_SETTINGS
    for name in _names(found.space) if is_narrow else ["what is different"]:
        table.add_column(name, justify="right" if is_narrow else "left")
    for name in ("NDCG@10 [95%]", "to the recipe", "min"):
        table.add_column(name, justify="right", no_wrap=True)
    ranked = sorted(found.rows, key=_place)
    for row in ranked[:TABLE_ROWS]:
        value = str(row.value) if row.value else f"{row.state}{_last(row)}"
        said = "as it is" if row.is_recipe else _signed(row.against_recipe) if row.against_recipe else NOTHING
        minutes = f"{row.seconds / 60:.1f}" if row.seconds is not None else NOTHING
        told = map(as_yaml, row.point.values()) if is_narrow else [in_words(row.point, found.point_of_recipe)]
        cells = [str(row.number), *told, value, said, minutes]
        table.add_row(*cells, style="bold" if row.is_best else "dim" if row.value is None else "")
    console.print(table)
    if len(ranked) > TABLE_ROWS:
        _say(f"{len(ranked) - TABLE_ROWS} more trials are on the page.")
    for number, error in [(row.number, row.error) for row in ranked if row.error][:3]:
        _say(f"Trial {number} cannot be: {error}")
    for sentence in sentences(found):
        _say(sentence)


def result(found: Found) -> dict[str, Any]:
    """What scripts need, JSON-able."""
    best = found.best
    return {
        "recipe": found.recipe,
        "study": found.study,
        "complete": found.count("complete"),
        "ended_early": found.count("ended early"),
        "failed": found.count("cannot be") + found.count("gave up"),
        "running": found.count("running"),
        "best": None
        if best is None or best.value is None
        else {"trial": best.number, "ndcg@10": vars(best.value), "settings": dict(best.point)},
        "gain": vars(best.against_recipe) if best and best.against_recipe else None,
        "test": {
            name: vars(value) if value else None
            for name, value in (
                ("best", found.test_best),
                ("recipe", found.test_recipe),
                ("gain", found.test_gain),
            )
        },
    }


def write(found: Found, folder: Path) -> Path:
    """The page, and everything as JSON beside it.

    Returns:
        The page.
    """
    rows = [
        {
            "trial": row.number,
            "state": row.state,
            "settings": dict(row.point),
            "ndcg@10": vars(row.value) if row.value else None,
            "to_the_recipe": vars(row.against_recipe) if row.against_recipe else None,
            "evaluations": row.evaluations,
            "seconds": row.seconds,
            "error": row.error or None,
        }
        for row in found.rows
    ]
    whole = result(found) | {"space": found.space.written, "importance": found.importance, "trials": rows}
    write_whole(folder / RESULT_FILE, json.dumps(whole, indent=1) + "\n")
    return write_whole(folder / PAGE_FILE, page(found))


def page(found: Found) -> str:
    """The page's HTML; all that comes from recipes and errors is escaped."""
    folders = [Path(__file__).parent, *map(Path, report_room.__path__)]
    environment = Environment(
        loader=FileSystemLoader(folders),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"figure": figure, "yaml": as_yaml}
    return environment.get_template("page.html.j2").render(
        found=found,
        sentences=sentences(found),
        counts=_counts(found),
        names=_names(found.space),
        rows=sorted(found.rows, key=_place),
        measure=MEASURE,
        history=history_plot(found),
        curves=curves_plot(found),
        importance=importance_plot(found),
        slices=[(setting.key, slice_plot(found, setting)) for setting in found.space.settings],
    )


def history_plot(found: Found) -> Markup:
    """Every completed trial in order, and the best so far."""
    done = [row for row in found.rows if row.value]
    steps: list[tuple[float, float]] = []
    for row in done:
        assert row.value is not None
        steps.append((row.number, max(row.value.mean, steps[-1][1] if steps else row.value.mean)))
    return scatter([_dot(row, row.number) for row in done], x_label="trial", y_label=MEASURE, steps=steps)


def slice_plot(found: Found, setting: Setting) -> Markup:
    """Completed trials by one of their settings."""
    done = [row for row in found.rows if row.value]
    y_label, kind = MEASURE, setting.distribution
    numbers = [value for value in setting.values or () if isinstance(value, int | float)]
    if isinstance(kind, CategoricalDistribution) and len(numbers) < len(kind.choices):
        names = [as_yaml(value) for value in setting.values or ()]
        dots = [_dot(row, as_yaml(row.point[setting.key])) for row in done]
        return scatter(dots, x_label=setting.key, y_label=y_label, names=names)
    is_log = isinstance(kind, FloatDistribution | IntDistribution) and kind.log
    if numbers and min(numbers) > 0:
        is_log = is_log or max(numbers) / min(numbers) >= 100
    dots = [_dot(row, float(row.point[setting.key])) for row in done]
    return scatter(dots, x_label=setting.key, y_label=y_label, is_log=is_log)


def curves_plot(found: Found) -> Markup:
    """NDCG@10 at each evaluation of each training; those ended early are dashed."""
    series = [
        Series(
            f"trial {row.number}",
            [(float(number), value) for number, value in row.evaluations],
            BEST if row.is_best else RECIPE if row.is_recipe else TRIAL if row.value else ENDED,
            dashed=row.value is None,
        )
        for row in found.rows
        if row.evaluations
    ]
    return line_plot(series, x_label="evaluation", y_label=MEASURE)


def importance_plot(found: Found) -> Markup:
    """One bar per setting."""
    ranked = sorted(found.importance.items(), key=lambda item: -item[1])
    rows = [BarRow(key.rpartition(".")[2], share, told=f"{share:.0%}") for key, share in ranked]
    return bar_plot(rows, "share of the differences")


def _row(trial: FrozenTrial, trials: Trials, best: FrozenTrial | None, unchanged: FrozenTrial | None) -> Row:
    values = values_of(trial) if trial.state is TrialState.COMPLETE else ()
    reference = values_of(unchanged) if unchanged else ()
    is_recipe = unchanged is not None and trial.number == unchanged.number
    is_paired = len(values) == len(reference) and len(values) > 0 and not is_recipe
    return Row(
        number=trial.number,
        point=trials.point(trial) or {},
        state=_state(trial),
        value=interval(values) if values else None,
        against_recipe=interval(np.subtract(values, reference)) if is_paired else None,
        evaluations=sorted(trial.intermediate_values.items()),
        seconds=trial.user_attrs.get(SECONDS),
        worker=host_of(trial),
        error=str(trial.user_attrs.get(ERROR, "")),
        is_best=best is not None and trial.number == best.number,
        is_recipe=is_recipe,
    )


def _tested(study: optuna.Study, prefix: str, trial: FrozenTrial | None) -> NDArray[np.float64] | None:
    """NDCG@10 of the test users, if a trial was judged by them."""
    values = study.user_attrs.get(f"{prefix}{trial.number}") if trial else None
    return None if values is None else np.asarray(values, dtype=np.float64)


def _state(trial: FrozenTrial) -> str:
    known = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "ended early", TrialState.RUNNING: "running"}
    return known.get(trial.state) or ("cannot be" if ERROR in trial.user_attrs else "gave up")


def _place(row: Row) -> tuple[int, float, int]:
    """Best first; then what was ended early, running, and what cannot be."""
    order = ("complete", "ended early", "running", "gave up", "cannot be")
    last = row.value.mean if row.value else row.evaluations[-1][1] if row.evaluations else 0.0
    return order.index(row.state), -last, row.number


def _dot(row: Row, x: float | str) -> Dot:
    assert row.value is not None
    settings = ", ".join(f"{key} {as_yaml(value)}" for key, value in row.point.items())
    colour = BEST if row.is_best else RECIPE if row.is_recipe else TRIAL
    return Dot(x, row.value.mean, f"trial {row.number}: {row.value}, {settings}", colour)


def _names(space: Space) -> list[str]:
    """Of the settings, short where that is enough."""
    short = [setting.key.rpartition(".")[2] for setting in space.settings]
    return [
        name if short.count(name) == 1 else setting.key for name, setting in zip(short, space.settings, strict=True)
    ]


def _counts(found: Found) -> str:
    parts = [f"{found.count('complete')} trials complete"]
    parts += [f"{found.count(state)} {state}" for state in ("ended early", "running", "cannot be", "gave up")]
    return ", ".join(part for part in parts if not part.startswith("0 ")) or "no trials"


def _last(row: Row) -> str:
    return f" at {row.evaluations[-1][1]:.3f}" if row.evaluations and row.state == "ended early" else ""


def _signed(value: Interval) -> str:
    return f"{value.mean:+.3f} [{value.low:+.3f}, {value.high:+.3f}]"


def _say(line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)
