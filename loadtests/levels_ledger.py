"""What became of the lists of a run, level by level: how many, what they were worth, how soon all was in full again."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tritonrank_gateway.adapt import Level

from loadtests.results import LATER_PAGE, NO_ROOM, Run, Verdict
from loadtests.shapes import SPIKE

LEAST_QUALITY = 0.95
MOST_RECOVERY_SECONDS = 10.0
FULL = "full"


@dataclass(frozen=True)
class Ledger:
    """Of one run.

    Attributes:
        by_phase: phase -> name of the level or NO_ROOM -> lists; counted phases only.
        failed: requests that got no page at all, in counted phases.
        quality: mean NDCG over all lists, in that of full ones; None without a list.
        recovery_seconds: from the end of the spike until all lists were in full; None: not within the run.
        by_second: (second, lists by name, mean quality or None).
    """

    by_phase: Mapping[str, Mapping[str, int]]
    failed: int
    quality: float | None
    recovery_seconds: float | None
    by_second: Sequence[tuple[int, Mapping[str, int], float | None]]

    @property
    def lists(self) -> Counter[str]:
        """By name, all counted phases together."""
        return sum((Counter(one) for one in self.by_phase.values()), Counter[str]())

    @property
    def without_room(self) -> int:
        """Lists that the ranker had no room for, and requests that failed."""
        return self.lists[NO_ROOM] + self.failed


def ledger_of(run: Run, levels: Sequence[Level]) -> Ledger:
    """The ledger of a run of the shape spike.

    Args:
        run: whose answers tell their levels.
        levels: of the gateway, best first.
    """
    named = {str(level.number): level.name for level in levels}
    worth = {level.name: level.quality for level in levels} | {NO_ROOM: levels[-1].quality}
    counted = {phase.name for phase in run.phases if phase.counts}
    by_phase: dict[str, Counter[str]] = {phase.name: Counter() for phase in run.phases if phase.counts}
    by_second, degraded = [], 0
    for second in run.per_second:
        told = Counter({named.get(number, number): count for number, count in second.levels.items()})
        later, found = told[LATER_PAGE], Counter({name: told[name] for name in told if name != LATER_PAGE})
        by_second.append((second.second, dict(found), _mean(found, worth)))
        if second.phase in counted:
            by_phase[second.phase] += found
            degraded += later + found[NO_ROOM] + found[levels[-1].name]
    together = sum(by_phase.values(), Counter[str]())
    # The run counts pages without the ranker as failed; what is left was no page at all.
    failed = sum(run.totals.failed.values()) - degraded
    return Ledger(by_phase, failed, _mean(together, worth), _recovery(run, by_second), by_second)


def verdicts(act: Ledger) -> list[Verdict]:
    """What the run with levels has to keep."""
    quality, recovery = act.quality, act.recovery_seconds
    return [
        Verdict(
            objective="lists without room",
            phase="all",
            wanted="<= 0",
            limit=0,
            found=act.without_room,
            met=not act.without_room,
            why=f"{act.lists[NO_ROOM]} in retrieval's order unmeant, {act.failed} failed, of {act.lists.total()}",
        ),
        Verdict(
            objective="NDCG of what was served, of full",
            phase="all",
            wanted=f">= {LEAST_QUALITY:g}",
            limit=LEAST_QUALITY,
            found=None if quality is None else round(quality, 4),
            met=quality is not None and quality >= LEAST_QUALITY,
            why="" if quality is not None else "no list was made",
        ),
        Verdict(
            objective="all in full again",
            phase=SPIKE,
            wanted=f"<= {MOST_RECOVERY_SECONDS:g} s",
            limit=MOST_RECOVERY_SECONDS,
            found=recovery,
            unit="s",
            met=recovery is not None and recovery <= MOST_RECOVERY_SECONDS,
            why="" if recovery is not None else "lists were not in full at the end of the run",
        ),
    ]


def _mean(lists: Mapping[str, int], worth: Mapping[str, float]) -> float | None:
    count = sum(lists.values())
    return sum(number * worth[name] for name, number in lists.items()) / count if count else None


def _recovery(run: Run, by_second: Sequence[tuple[int, Mapping[str, int], float | None]]) -> float | None:
    spike = run.phase(SPIKE)
    if spike is None:
        return None
    after = [(second, lists) for second, lists, _ in by_second if second >= spike.end_second and lists]
    cheaper = [second for second, lists in after if set(lists) - {FULL}]
    if not after or (cheaper and cheaper[-1] == after[-1][0]):
        return None
    return round(cheaper[-1] + 1 - spike.end_second, 3) if cheaper else 0.0
