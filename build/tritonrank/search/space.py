"""Which settings are searched, and which values they may have.

    --over finetune.learning_rate=1e-6..1e-2:log        a range, by its logarithm
    --over finetune.epochs=1..4:step=1                  a range in steps
    --over finetune.learning_rate=1e-5..1e-3:log:points=5   five values of it, as a grid needs
    --over finetune.loss=listwise,pairwise              values
    --over @space.yaml                                  all that the file holds, in the same words

Both ends of a range, and each value, are read by the recipe's own models, so that what a recipe refuses is refused
here, before anything is trained.
"""

import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from optuna.distributions import (
    BaseDistribution,
    CategoricalChoiceType,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from tritonrank.artifacts.workspace import Target
from tritonrank.errors import RecipeError
from tritonrank.recipe import Recipe, load_recipe, require_effects
from tritonrank.search.choices import SECTIONS

EXAMPLE = "--over finetune.learning_rate=1e-6..1e-3:log"
NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
RANGE = re.compile(rf"\s*({NUMBER})\s*\.\.\s*({NUMBER})\s*((?::[^:]*)*)")
DIGITS = 4
"""Significant digits of a proposed number: more say nothing, and are written into a recipe."""
MOST_POINTS = 10_000
"""Of a grid; nobody waits for more trainings."""

Point = Mapping[str, Any]
"""Setting -> value, as a recipe has it."""


@dataclass(frozen=True)
class Setting:
    """One setting that is searched."""

    key: str
    """such as finetune.learning_rate"""
    distribution: BaseDistribution
    """what Optuna draws from; values that are no scalars are named by their YAML"""
    values: tuple[Any, ...] | None
    """all that it may have, in order; None: any number of a range"""
    written: str
    """as whoever searches wrote it"""

    def value_of(self, drawn: Any) -> Any:
        """The recipe's value for what Optuna drew."""
        if isinstance(self.distribution, CategoricalDistribution):
            return next(value for value in self.values or () if label_of(value) == drawn)
        if isinstance(drawn, float):
            assert isinstance(self.distribution, FloatDistribution)
            rounded = float(f"{drawn:.{DIGITS}g}")
            return min(self.distribution.high, max(self.distribution.low, rounded))
        return drawn

    def drawn_for(self, value: Any) -> Any:
        """What Optuna would have drawn for a value of the recipe.

        Raises:
            ValueError: it may not have that value.
        """
        if self.values is not None:
            inside = value in self.values
        else:
            assert isinstance(self.distribution, FloatDistribution | IntDistribution)
            is_number = isinstance(value, int | float)
            inside = is_number and self.distribution.low <= value <= self.distribution.high
        if inside:
            return label_of(value) if isinstance(self.distribution, CategoricalDistribution) else value
        raise ValueError(f"{self.key} is {as_yaml(value)} in the recipe, which {self.written} does not hold")


@dataclass(frozen=True)
class Space:
    """All settings that are searched, in the order of their names."""

    settings: tuple[Setting, ...]

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        return {setting.key: setting.distribution for setting in self.settings}

    @property
    def written(self) -> dict[str, str]:
        return {setting.key: setting.written for setting in self.settings}

    @property
    def size(self) -> int | None:
        """How many points there are; None: more than can be counted."""
        sizes = [len(setting.values) if setting.values is not None else None for setting in self.settings]
        return None if None in sizes else math.prod(size for size in sizes if size is not None)

    def points(self) -> Iterator[Point]:
        """All points of a space that can be counted, the last setting changing first."""
        keys = [setting.key for setting in self.settings]
        for values in itertools.product(*(setting.values or () for setting in self.settings)):
            yield dict(zip(keys, values, strict=True))

    def point_of(self, drawn: Mapping[str, Any]) -> Point:
        """The recipe's values for what Optuna drew, or wrote down of a trial."""
        return {setting.key: setting.value_of(drawn[setting.key]) for setting in self.settings}

    def drawn_for(self, point: Point) -> dict[str, Any]:
        """What Optuna would have drawn for a point; ValueError where it is not in the space."""
        return {setting.key: setting.drawn_for(point[setting.key]) for setting in self.settings}

    def point_of_recipe(self, recipe: Recipe) -> Point:
        """Where a recipe stands as it is, in the space or not."""
        return {setting.key: _value_in(recipe, setting.key) for setting in self.settings}


def as_yaml(value: Any) -> str:
    """A value as it stands in a recipe, on one line."""
    if isinstance(value, str | list | dict):
        text = yaml.safe_dump(value, default_flow_style=True, width=math.inf)
    else:
        text = yaml.safe_dump(value)
    return text.removesuffix("...\n").strip()


def overrides_of(point: Point) -> list[str]:
    """The point as ``--set`` takes it."""
    return [f"{key}={as_yaml(value)}" for key, value in point.items()]


def in_words(point: Point, beside: Point | None = None) -> str:
    """The point on a line, sections left out where the names tell them apart.

    Args:
        point: to be told.
        beside: the recipe as it is; what does not differ from it is left out.
    """
    names = [key.rpartition(".")[2] for key in point]
    told = [
        f"{name if names.count(name) == 1 else key} {as_yaml(value)}"
        for name, (key, value) in zip(names, point.items(), strict=True)
        if beside is None or beside.get(key) != value
    ]
    return ", ".join(told) or "the recipe as it is"


def key_of(point: Point) -> str:
    """The same for equal points, and for no others."""
    return json.dumps(dict(sorted(point.items())), sort_keys=True)


def label_of(value: Any) -> CategoricalChoiceType:
    """What Optuna calls a value: itself where it can be, else its YAML."""
    return value if value is None or isinstance(value, bool | int | float | str) else as_yaml(value)


def read_space(recipe: Path, told: Sequence[str], overrides: Sequence[str] = ()) -> Space:
    """Read and check what ``--over`` says.

    Args:
        recipe: file or name; its models check the values.
        told: ``section.key=RANGE``, ``section.key=VALUE,VALUE`` or ``@FILE``.
        overrides: of ``--set``.

    Raises:
        RecipeError: something in it cannot be; all faults are in the one message, each with its key.
    """
    wanted = dict(_wanted(told))
    if not wanted:
        raise RecipeError(f"nothing is searched: name a setting and its values, such as {EXAMPLE}")
    faults, read = [], {}
    for key, written in wanted.items():
        try:
            read[key] = _read(key, written)
        except ValueError as error:
            faults.append(f"  --over {key}={written}: {error}")
    _raise(faults)
    # Beside the other settings: a distill section alone is refused where prune is searched, too.
    firsts = {key: one.ends[0] for key, one in read.items()}
    settings = []
    for key, one in read.items():
        try:
            settings.append(_checked(key, one, recipe, [*overrides, *overrides_of(firsts)]))
        except (ValueError, RecipeError) as error:
            faults.append(f"  --over {key}={one.written}: {error}")
    _raise(faults)
    require_effects(load_recipe(recipe, [*overrides, *overrides_of(firsts)]), Target.CPU, overrides)
    return Space(tuple(sorted(settings, key=lambda setting: setting.key)))


@dataclass(frozen=True)
class _Read:
    """What was written of one setting, not held against the recipe yet."""

    written: str
    ends: tuple[Any, ...]
    """low and high of a range, or all values"""
    is_range: bool
    is_log: bool = False
    step: float | None = None
    points: int | None = None


def _wanted(told: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Keys with what was written of them."""
    seen = set()
    for one in told:
        pairs = _pairs_of_file(Path(one[1:])) if one.startswith("@") else [one.partition("=")[::2]]
        for key, written in pairs:
            if not re.fullmatch(r"\w+\.\w+", key) or not written.strip():
                raise RecipeError(f"--over {one!r}: expected section.key=VALUES, such as {EXAMPLE}")
            if key in seen:
                raise RecipeError(f"--over {key} is there twice; name all of its values once: {key}=VALUE,VALUE")
            seen.add(key)
            yield key, written.strip()


def _pairs_of_file(path: Path) -> list[tuple[str, str]]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise RecipeError(f"--over @{path}: cannot be read: {error}") from None
    if not isinstance(values, dict) or not all(isinstance(section, dict) for section in values.values()):
        raise RecipeError(f"--over @{path}: expected sections with their settings, such as finetune: {{loss: [...]}}")
    return [
        (f"{section}.{key}", value if isinstance(value, str) else as_yaml(value))
        for section, settings in values.items()
        for key, value in settings.items()
    ]


def _read(key: str, written: str) -> _Read:
    section = key.partition(".")[0]
    if section not in SECTIONS:
        raise ValueError(
            f"only settings of {', '.join(SECTIONS)} are searched, because all trials have the same dataset and base "
            f"model. Change {key} with --set, and search again"
        )
    if key == "finetune.evaluations":
        raise ValueError("trials are compared at their evaluations, so that all have the same number: use --set")
    if match := RANGE.fullmatch(written):
        return _read_range(written, match)
    if ".." in written and not written.startswith("["):
        raise ValueError("a range has a number at each end, such as 1e-6..1e-2:log")
    try:
        values = yaml.safe_load(written if written.startswith("[") else f"[{written}]")
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"no list of values: {error}") from None
    if not isinstance(values, list) or not values:
        raise ValueError("expected values, such as 4,8,16")
    return _Read(written, tuple(values), is_range=False)


def _read_range(written: str, match: re.Match[str]) -> _Read:
    low, high = (yaml.safe_load(end) if end.lstrip("+-").isdigit() else float(end) for end in match.groups()[:2])
    options: dict[str, str] = {}
    for option in match[3].split(":")[1:]:
        name, _, value = option.strip().partition("=")
        options[name] = value
    if unknown := set(options) - {"log", "step", "points"}:
        raise ValueError(f"a range has no {sorted(unknown)[0]!r}; it may have :log, :step=NUMBER or :points=NUMBER")
    if not low < high:
        raise ValueError(f"{low} is not below {high}; a single value needs no search: use --set")
    is_log = "log" in options
    if is_log and low <= 0:
        raise ValueError(f"a range by its logarithm begins above 0, not at {low}")
    if is_log and "step" in options:
        raise ValueError("has either :log or :step, as steps are of equal size; :points goes with both")
    try:
        step = float(options["step"]) if "step" in options else None
        points = int(options["points"]) if "points" in options else None
    except ValueError:
        raise ValueError("step and points are numbers, such as :step=0.5 or :points=5") from None
    if step is not None and not 0 < step <= high - low:
        raise ValueError(f"the step {step:g} does not fit between {low} and {high}")
    if points is not None and (points < 2 or step is not None):
        raise ValueError("has at least 2 points, and no step beside them")
    return _Read(written, (low, high), True, is_log, step, points)


def _checked(key: str, read: _Read, recipe: Path, beside: Sequence[str]) -> Setting:
    """The setting with its values as the recipe reads them."""
    ends = [_value_in(load_recipe(recipe, [*beside, f"{key}={as_yaml(end)}"]), key) for end in read.ends]
    if not read.is_range:
        return _of_values(key, ends, read.written)
    low, high = ends
    is_number = isinstance(low, int | float) and not isinstance(low, bool)
    if not is_number:
        raise ValueError(f"is no number, so that it has no range; name its values: {key}=VALUE,VALUE")
    if read.points is not None:
        return _of_values(key, [type(low)(value) for value in _spread(low, high, read)], read.written)
    if isinstance(low, int):
        step = int(read.step or 1)
        if read.step is not None and step != read.step:
            raise ValueError(f"is a whole number, and {read.step:g} is no step of one")
        whole = IntDistribution(low, low + (high - low) // step * step, read.is_log, step)
        values = range(low, high + 1, step)
        return Setting(key, whole, tuple(values) if len(values) <= MOST_POINTS else None, read.written)
    if read.step is None:
        return Setting(key, FloatDistribution(low, high, read.is_log), None, read.written)
    steps = math.floor((high - low) / read.step + 1e-9)
    reached = [float(f"{low + place * read.step:.12g}") for place in range(steps + 1)]
    return _of_values(key, reached, read.written)


def _spread(low: float, high: float, read: _Read) -> list[float]:
    assert read.points is not None
    shares = [place / (read.points - 1) for place in range(read.points)]
    if read.is_log:
        found = [low * (high / low) ** share for share in shares]
    else:
        found = [low + (high - low) * share for share in shares]
    rounded = [round(value) if isinstance(low, int) else float(f"{value:.{DIGITS}g}") for value in found]
    return list(dict.fromkeys([low, *rounded[1:-1], high]))


def _of_values(key: str, values: Sequence[Any], written: str) -> Setting:
    labels = [label_of(value) for value in values]
    if len(set(map(repr, labels))) < len(labels):
        raise ValueError(f"has a value twice: {', '.join(map(as_yaml, values))}")
    return Setting(key, CategoricalDistribution(labels), tuple(values), written)


def _value_in(recipe: Recipe, key: str) -> Any:
    section, _, name = key.partition(".")
    return getattr(getattr(recipe, section), name, None)


def _raise(faults: Sequence[str]) -> None:
    if faults:
        raise RecipeError("\n".join([f"the space has {len(faults)} fault(s):", *faults]))
