"""The rules of a rollout, read from a TOML file: what it takes to go a step on, and what takes a version back."""

import difflib
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self

from tritonrank.errors import ServerError

UNDECIDED = ("hold", "back")
LARGEST_FILE_BYTES = 64 * 1024


def _rule(default: Any, least: float | None, most: float | None, said: str) -> Any:
    """A setting: its default, its bounds, and what it is, with unit and reason."""
    return field(default=default, metadata={"least": least, "most": most, "said": said})


@dataclass(frozen=True)
class Rules:
    """Every rule, with a default that suits a nightly build of the same recipe."""

    shadow_share: float = _rule(0.2, 0.001, 1, "of the requests, repeated to the new version after live's answer")
    canary_shares: Sequence[float] = _rule((0.01, 0.05, 0.25, 0.5), 0.0001, 1, "of the users, one step each, rising")
    least_minutes: float = _rule(10.0, 0, 100_000, "at each step: caches fill, slow leaks and rare requests show")
    most_minutes: float = _rule(240.0, 0.01, 100_000, "at one step without a decision; then `when_undecided`")
    when_undecided: str = _rule("hold", None, None, "hold: wait for a person, with an alert; back: take it back")
    confidence: float = _rule(
        0.95, 0.5, 0.9999, "that chance alone takes no sound version back and promotes no bad one"
    )
    least_pairs: int = _rule(200, 2, 10_000_000, "requests that both versions ranked, before anything is promoted")
    least_answers: int = _rule(100, 1, 10_000_000, "rankings that the canary gave at a step, before it goes on")
    least_overlap: float = _rule(0.6, 0, 1, "mean rank-biased overlap (p = 0.9) with live's lists")
    least_top_ten: float = _rule(0.3, 0, 1, "mean share that the ten best of both have in common")
    most_score_difference: float = _rule(1.0, 0, 1_000, "mean absolute difference of scores, in spreads of live's")
    most_score_psi: float = _rule(
        0.5, 0, 1_000, "population stability index of scores; from 0.25 it is another population"
    )
    latency_quantile: float = _rule(0.99, 0.5, 0.9999, "of the times that are compared, beside the median")
    most_latency_ratio: float = _rule(1.5, 0.01, 1_000, "the new version's times by live's, at both")
    most_not_ranked: float = _rule(0.01, 0, 1, "share of rankings that it was asked for and did not give")
    most_fallbacks: int = _rule(
        1_000, 0, 1_000_000_000, "canary's rankings that live gave in its place, in all: a budget"
    )
    most_error_excess: float = _rule(
        0.002, 0, 1, "share of the canary's calls that failed or were refused, above live's"
    )
    most_degraded_excess: float = _rule(0.01, 0, 1, "share of the canary's answers without a part, above live's")
    least_click_ratio: float = _rule(
        0.9, 0, 10, "clicks on the canary's lists, by what live gets at the same positions"
    )
    least_impressions: int = _rule(1_000, 1, 10_000_000_000, "before clicks may take back; they never hold one up")
    keep_minutes: float = _rule(60.0, 0, 100_000, "that the version before stays loaded, so that `back` takes a second")

    @classmethod
    def read(cls, path: Path) -> Self:
        """The rules in a file; what it does not name has its default.

        Raises:
            ServerError: the file cannot be read, or a rule is unknown or out of bounds; all such are named.
        """
        return cls.made(read_toml(path), str(path))

    @classmethod
    def made(cls, said: dict[str, Any], place: str) -> Self:
        """The rules that a mapping names.

        Args:
            said: rule -> value.
            place: where it is written, for errors.

        Raises:
            ServerError: as ``read``.
        """
        known = {one.name: one for one in fields(cls)}
        faults = [f"{name}: {fault}" for name, value in said.items() if (fault := _fault(known, name, value))]
        if faults:
            raise ServerError(f"{place}: " + "; ".join(faults) + ". docs/rollout.md lists the rules")
        if isinstance(shares := said.get("canary_shares"), list):
            said = said | {"canary_shares": tuple(shares)}
        return replace(cls(), **said)

    def told(self) -> dict[str, Any]:
        """Every rule by name, as JSON has it."""
        return asdict(self) | {"canary_shares": list(self.canary_shares)}


def read_toml(path: Path) -> dict[str, Any]:
    """What a rules file says; raises ServerError where it cannot be read."""
    try:
        with path.open("rb") as file:
            text = file.read(LARGEST_FILE_BYTES + 1)
        if len(text) > LARGEST_FILE_BYTES:
            raise ServerError(f"{path}: has more than {LARGEST_FILE_BYTES} bytes, and no rules file has")
        return tomllib.loads(text.decode())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ServerError(f"{path}: no rules file ({error}). docs/rollout.md shows one") from error


def _fault(known: dict[str, Any], name: str, value: Any) -> str:
    """What is wrong with a rule; "" for nothing."""
    if name not in known:
        close = difflib.get_close_matches(name, known, 1)
        return "is no rule" + (f"; {close[0]} is" if close else "")
    least, most = known[name].metadata["least"], known[name].metadata["most"]
    if name == "when_undecided":
        return "" if value in UNDECIDED else f"is {value!r}, expected one of {', '.join(UNDECIDED)}"
    if name == "canary_shares":
        if not isinstance(value, list | tuple) or not value:
            return "expected a list of shares, such as [0.01, 0.1]"
        if fault := next((fault for one in value if (fault := _number_fault(one, least, most))), ""):
            return fault
        return "" if list(value) == sorted(set(value)) else "expected each share larger than the one before"
    return _number_fault(value, least, most)


def _number_fault(value: Any, least: float, most: float) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        return f"is {value!r}, expected a number from {least:g} to {most:g}"
    return ""
