"""May the ranker of a night take the place of the live one? Both rank the same lists, and are compared user by user.

Three windows: the newest lists, which neither of them learnt; frozen ones, which no night learns; and the old ones, the
test lists of the recipe's own build. In each the ranking may lose as much as ``learn.rules`` allows, and it has to be
shown that it lost no more than three times that, as the gate has it: too few users to show it is a no.

The segments that the recipe names are judged as well, as many as there are. Of ten segments one is worse by chance in
most nights, so that what is said of them holds for all together: intervals are as wide as the largest deviation among
the segments asks for, in resamples of the same users (the max-T method: Westfall & Young 1993). A segment refuses when
it certainly became worse and by more than is allowed, or when a disaster in it cannot be excluded.

Before anything is compared, the live ranker is held to itself: where it ranks what is newest much worse than it did on
accepted nights, either the world turned in a day or the labels did, and a ranker that follows them is not to be had.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tritonrank.artifacts import write_whole
from tritonrank.data.dataset import Dataset
from tritonrank.errors import ArtifactError, GateError
from tritonrank.judge.evaluate import judge_artifact
from tritonrank.judge.gate import FEWEST_EXAMPLES
from tritonrank.judge.metrics import BOOTSTRAP_SAMPLES
from tritonrank.learn.guards.baseline import Measure, usual_of
from tritonrank.learn.guards.comparing import SIDES
from tritonrank.learn.lists.judged_lists import judged_sets
from tritonrank.recipe import Recipe
from tritonrank.recipe.guarding import NightRules
from tritonrank.recipe.learning import FROZEN, NEWEST, OLD, WINDOWS, LearnSettings

BOUND = 3.0
"""Times the loss that is allowed: what has to be excluded; as ``gate.py`` has it."""
CONFIDENCE = 0.95
RESAMPLES_AT_ONCE = 100
"""Of many users, so that they fit into memory."""
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Lists:
    """Judged lists of one window or segment, a row each.

    Attributes:
        users: whose.
        live, new: NDCG@10 of each list by either ranker.
    """

    users: Sequence[str]
    live: Floats
    new: Floats


@dataclass(frozen=True)
class Compared:
    """A window or segment. Drops are relative to the live ranker's NDCG@10; positive is worse.

    Attributes:
        name: newest, frozen, old, or as the recipe calls the segment.
        is_segment: whether it is one; their bounds hold for all segments together.
        users, lists: how many.
        live_ndcg, new_ndcg: means of both rankers.
        drop: of the mean.
        low, high: 95% interval of the drop.
        certain: drop that is exceeded for certain, one-sided 95%.
        excluded: drop that is excluded, one-sided 95%.
        allowed: by the rules.
        passed: whether it may be so.
        reason: in words, with the setting that it is held against.
    """

    name: str
    is_segment: bool
    users: int
    lists: int
    live_ndcg: float
    new_ndcg: float
    drop: float
    low: float
    high: float
    certain: float
    excluded: float
    allowed: float
    passed: bool
    reason: str


@dataclass(frozen=True)
class Verdict:
    """Whether the ranker of a night may be the next live one.

    Attributes:
        accepted: whether.
        reasons: why not, each in a sentence; where it is accepted, what was found in each window.
        compared: windows first, then segments, in the order of the recipe.
        live_on_newest: NDCG@10 of the live ranker on the newest window, to which later nights are held; None: unknown.
    """

    accepted: bool
    reasons: list[str]
    compared: list[Compared] = field(default_factory=list)
    live_on_newest: Measure | None = None

    @property
    def refused(self) -> str:
        """Why not, in a sentence; "" where it is accepted."""
        return "" if self.accepted else "; ".join(self.reasons)

    def as_json(self) -> dict[str, Any]:
        """For the ledger and its page."""
        return asdict(self)

    @classmethod
    def of_json(cls, told: Mapping[str, Any]) -> "Verdict":
        """What ``as_json`` wrote.

        Raises:
            ArtifactError: it is something else.
        """
        try:
            live = told["live_on_newest"]
            return cls(
                bool(told["accepted"]),
                [str(reason) for reason in told["reasons"]],
                [Compared(**one) for one in told["compared"]],
                None if live is None else Measure(**live),
            )
        except (TypeError, KeyError) as error:
            raise ArtifactError(f"a night's verdict cannot be read ({error}); judge again: tritonrank learn") from None

    def write(self, path: Path) -> None:
        """Write it as JSON, whole or not at all; raises StorageError."""
        write_whole(path, json.dumps(self.as_json(), indent=2) + "\n")


def judge_night(
    recipe: Recipe, dataset: Path, live: Path, new: Path, cache: Path, earlier: Sequence[Measure] = ()
) -> Verdict:
    """Judge the ranker of a night against the live one.

    Args:
        recipe: its sections ``learn.rules``, ``learn.guards`` and ``learn.segments``.
        dataset: the night's, with its judged sets.
        live, new: folders of both rankers, checkpoints or graphs.
        cache: folder of judgements; each ranker scores the lists once, however often the night is cut off.
        earlier: ``live_on_newest`` of the accepted nights, oldest first.

    Raises:
        ArtifactError: there is no dataset of a night, no model in its folder, or one whose scores are no numbers.
    """
    found = [judge_artifact(name, folder, dataset, cache) for name, folder in (("live", live), ("new", new))]
    if not found[0].table.select("example_id", "labels").equals(found[1].table.select("example_id", "labels")):
        raise GateError(
            f"{live} and {new} were judged on different lists; remove {cache} and run tritonrank learn again"
        )
    examples = Dataset.read(dataset).test
    place_of = {example.example_id: place for place, example in enumerate(examples)}
    values = [one.values() for one in found]
    sets: dict[str, Lists] = {}
    for name, ids in judged_sets(dataset).items():
        places = np.array([place_of[one] for one in ids], dtype=np.int64)
        sets[name] = Lists([examples[one].user_id for one in places], values[0][places], values[1][places])
    return decide(sets, recipe.learn, earlier, recipe.seed)


def decide(
    sets: Mapping[str, Lists], settings: LearnSettings, earlier: Sequence[Measure] = (), seed: int = 0
) -> Verdict:
    """The verdict on what both rankers reached.

    Args:
        sets: lists by window and segment. One that the recipe names and that is missing here, or has too few users, is
            a no: nobody knows what became of it.
        settings: the recipe's section ``learn``.
        earlier: as for ``judge_night``.
        seed: of the resamples.
    """
    names = [*WINDOWS, *settings.segments]
    too_few = {name: len(set(sets[name].users)) if name in sets else 0 for name in names}
    too_few = {name: users for name, users in too_few.items() if users < FEWEST_EXAMPLES}
    there = [name for name in names if name not in too_few]
    compared = _compare({name: sets[name] for name in there}, settings.rules, seed) if there else []
    live = _live_on(sets[NEWEST]) if NEWEST in there else None
    reasons = [_missing(name, users) for name, users in too_few.items()]
    reasons += [] if live is None else _turned(live, earlier, settings)
    reasons += [f"{one.name}: {one.reason}" for one in compared if not one.passed]
    told = [f"{one.name}: {one.reason}" for one in compared]
    return Verdict(not reasons, reasons or told, compared, live)


def _missing(name: str, users: int) -> str:
    more = {NEWEST: "let learn.newest_hours be longer", FROZEN: "let learn.newest_hours be longer from the start"}
    more[OLD] = "build with more examples.test_users"
    way_out = more.get(name, "let learn.newest_hours be longer, or take the segment out of learn.segments")
    return f"{name}: {users} users were judged, fewer than {FEWEST_EXAMPLES}, which decides nothing; {way_out}"


def _live_on(newest: Lists) -> Measure:
    """NDCG@10 of the live ranker, over users."""
    by_user = _by_user(newest.users, newest.live)
    return Measure(float(by_user.mean()), float(by_user.std(ddof=1) / np.sqrt(len(by_user))))


def _turned(live: Measure, earlier: Sequence[Measure], settings: LearnSettings) -> list[str]:
    """That the newest labels turned against the live ranker."""
    guards = settings.guards
    usual = usual_of(earlier, live.error, guards.false_alarms / SIDES, guards.least_nights)
    if usual is None or live.value >= min(usual.low, usual.mean - guards.least_order_change):
        return []
    return [
        f"the live ranker itself has an NDCG@10 of {live.value:.3f} on the newest lists, on {usual.nights} accepted "
        f"nights {usual.mean:.3f} on average, and below {usual.low:.3f} on one sound day in "
        f"{SIDES / guards.false_alarms:,.0f}: what people liked turned against it. Look at what the log's events mean "
        "since then; if they are right, this once: --set learn.guards.least_order_change=0.49"
    ]


def _compare(sets: Mapping[str, Lists], rules: NightRules, seed: int) -> list[Compared]:
    """All sets, by resamples of the users of all of them: those of one resample are the same in each set."""
    people = sorted({user for one in sets.values() for user in one.users})
    number_of = {user: number for number, user in enumerate(people)}
    sums: dict[str, Floats] = {}
    for name, one in sets.items():
        users = [number_of[user] for user in one.users]
        added = [np.bincount(users, values, len(people)) for values in (one.live, one.new)]
        sums[name] = np.stack(added, axis=1).astype(np.float64)
    generator = np.random.default_rng(seed)
    resampled: dict[str, list[Floats]] = {name: [] for name in sets}
    for _ in range(BOOTSTRAP_SAMPLES // RESAMPLES_AT_ONCE):
        picks = generator.integers(0, len(people), (RESAMPLES_AT_ONCE, len(people)))
        cells = picks + len(people) * np.arange(RESAMPLES_AT_ONCE)[:, None]
        copies = np.bincount(cells.reshape(-1), minlength=cells.size).reshape(cells.shape).astype(np.float64)
        for name, both in sums.items():
            resampled[name].append(_drop(copies @ both))
    drops = {name: np.concatenate(parts) for name, parts in resampled.items()}
    segments = [name for name in sets if name not in WINDOWS]
    wide = _deviation({name: drops[name] for name in segments}, {name: _drop(sums[name].sum(0)) for name in segments})
    return [_compared(name, one, drops[name], wide, rules) for name, one in sets.items()]


def _drop(sums: Floats) -> Floats:
    """Relative drop of [..., 2] sums of live and new; a ranker that finds nothing has nothing to lose."""
    live, new = sums[..., 0], sums[..., 1]
    return np.asarray(np.where(live > 0, (live - new) / np.maximum(live, 1e-12), 0.0))


def _deviation(drops: Mapping[str, Floats], found: Mapping[str, Floats]) -> tuple[float, float]:
    """Standard errors by which the segment that deviates most does so, up and down, in 95% of resamples."""
    if not drops:
        return 0.0, 0.0
    spread = np.stack([(drops[name] - found[name]) / max(float(drops[name].std()), 1e-12) for name in drops])
    return float(np.quantile(spread.max(axis=0), CONFIDENCE)), float(np.quantile((-spread).max(axis=0), CONFIDENCE))


def _compared(name: str, lists: Lists, drops: Floats, wide: tuple[float, float], rules: NightRules) -> Compared:
    live, new = float(lists.live.mean()), float(lists.new.mean())
    drop = float(_drop(np.array([live, new])))
    low, high = (float(end) for end in np.quantile(drops, [0.025, 0.975]))
    is_segment = name not in WINDOWS
    if is_segment:
        error = float(drops.std())
        certain, excluded = drop - wide[0] * error, drop + wide[1] * error
    else:
        certain, excluded = (float(end) for end in np.quantile(drops, [1 - CONFIDENCE, CONFIDENCE]))
    change = f"NDCG@10 {live:.3f} -> {new:.3f}, {'lost' if drop > 0 else 'gained'} {abs(drop):.2%}"
    judged = _segment(name, change, drop, certain, excluded, rules) if is_segment else None
    passed, allowed, reason = judged or _window(name, change, drop, excluded, rules)
    users = len(set(lists.users))
    return Compared(
        name, is_segment, users, len(lists.live), live, new, drop, low, high, certain, excluded, allowed, passed, reason
    )


def _window(name: str, change: str, drop: float, excluded: float, rules: NightRules) -> tuple[bool, float, str]:
    """Whether a window may be as it is, what may be lost in it, and the reason."""
    setting = "newest_loss" if name == NEWEST else "frozen_loss"
    allowed: float = getattr(rules, setting)
    rule = f"learn.rules.{setting} is {allowed:.2%}"
    if drop > allowed:
        return False, allowed, f"{change}; {rule}"
    if excluded > BOUND * allowed:
        lost = f"up to {excluded:.2%} may be lost (95% bound), more than three times what is allowed"
        return False, allowed, f"{change}, but {lost}: too few users to decide; {rule}"
    if name == NEWEST and rules.least_gain and not (-drop >= rules.least_gain and excluded < 0):
        wanted = f"learn.rules.least_gain asks for {rules.least_gain:.2%}, and that it is no chance"
        return False, allowed, f"{change} (at least {-excluded:+.2%} for certain); {wanted}"
    return True, allowed, f"{change} (at most {excluded:.2%} lost, 95% bound); {rule}"


def _segment(
    name: str, change: str, drop: float, certain: float, excluded: float, rules: NightRules
) -> tuple[bool, float, str]:
    """The same of a segment."""
    allowed = rules.segment_losses.get(name, rules.segment_loss)
    if drop > allowed and certain > 0:
        rule = f"at most {allowed:.2%} are allowed (learn.rules.segment_loss, segment_losses)"
        return False, allowed, f"{change}, by chance among all segments less than once in 20 nights; {rule}"
    if excluded > rules.segment_bound:
        rule = f"learn.rules.segment_bound is {rules.segment_bound:.0%}"
        return False, allowed, f"{change}, but up to {excluded:.2%} may be lost: too few users to decide; {rule}"
    return True, allowed, f"{change} (at most {excluded:.2%} lost, 95% bound of all segments together)"


def _by_user(users: Sequence[str], values: Floats) -> Floats:
    """[users] mean of each."""
    _, number = np.unique(np.asarray(users), return_inverse=True)
    return np.asarray(np.bincount(number, values) / np.bincount(number))
