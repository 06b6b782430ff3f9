"""What a workload looks like: how many requests, how many candidates each, who asks, and how often.

Kept apart from the making of it, which needs the data libraries.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import Field, ValidationError, field_validator

from tritonrank.data.arrivals import arrival_ratio
from tritonrank.data.workload_options import OPTIONS
from tritonrank.errors import RecipeError
from tritonrank.recipe import Settings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MOST_CANDIDATES = 1_000  # what one request may hold
LARGEST_SIGMA = 5.0
LARGEST_EXPONENT = 10.0

EXPECTED_CANDIDATES = (
    f"expected a number from 1 to {MOST_CANDIDATES} such as 100, a distribution such as lognormal:100:0.8 (median, "
    "sigma), or numbers with weights such as 10:0.5,100:0.4,1000:0.1"
)
EXPECTED_USERS = "expected fresh, or zipf with an exponent such as zipf:1.1"


@dataclass(frozen=True)
class WeightedSizes:
    """Some sizes, each as often as its weight says."""

    sizes: tuple[int, ...]
    weights: tuple[float, ...]

    @property
    def only(self) -> int | None:
        """The size of every request, when there is one size."""
        return self.sizes[0] if len(self.sizes) == 1 else None

    def draw(self, random: "np.random.Generator", requests: int) -> "NDArray[np.int64]":
        total = sum(self.weights)
        shares = [weight / total for weight in self.weights]
        return random.choice(self.sizes, size=requests, p=shares)


@dataclass(frozen=True)
class LognormalSizes:
    """exp(Normal(ln median, sigma)), rounded and clipped to what one request may hold."""

    median: float
    sigma: float

    @property
    def only(self) -> None:
        return None

    def draw(self, random: "np.random.Generator", requests: int) -> "NDArray[np.int64]":
        # Clipped before it becomes an integer, because the tail of a large sigma does not fit into one.
        sizes = (self.median * random.lognormal(0.0, self.sigma, requests)).round()
        return sizes.clip(1, MOST_CANDIDATES).astype("int64")


def _field(name: str, **bounds: Any) -> Any:
    option = OPTIONS[name]
    return Field(option.default, description=option.meaning, **bounds)


class WorkloadSettings(Settings):
    """The settings of ``tritonrank workload``, each an option of the same name."""

    requests: int = _field("requests", ge=1, le=10_000_000)
    candidates: str = _field("candidates", coerce_numbers_to_str=True)
    users: str = _field("users")
    returns: float = _field("returns", ge=0, le=0.99)
    returns_within: int = _field("returns_within", ge=1, le=100_000)
    rate: float = _field("rate", ge=0.001, le=1_000_000)
    arrivals: str = _field("arrivals")
    seed: int = _field("seed", ge=0, lt=2**32)
    history_items: int | None = _field("history_items", ge=0, le=200)

    @field_validator("candidates")
    @classmethod
    def _candidates_are_known(cls, text: str) -> str:
        candidate_sizes(text)
        return text

    @field_validator("arrivals")
    @classmethod
    def _arrivals_are_known(cls, text: str) -> str:
        arrival_ratio(text)
        return text

    @field_validator("users")
    @classmethod
    def _users_are_known(cls, text: str) -> str:
        zipf_exponent(text)
        return text


def workload_settings(values: Mapping[str, Any]) -> WorkloadSettings:
    """Check the settings.

    Raises:
        RecipeError: all faults in one message, each with its option.
    """
    try:
        return WorkloadSettings.model_validate(dict(values))
    except ValidationError as error:
        faults = "\n".join(f"  {_describe(fault)}" for fault in error.errors())
        count = error.error_count()
        raise RecipeError(
            f"{count} fault(s) in the workload's settings:\n{faults}\nSee: tritonrank workload --help"
        ) from None


def candidate_sizes(text: str) -> WeightedSizes | LognormalSizes:
    """What ``candidates`` stands for.

    Raises:
        ValueError: none of the three forms, or a number out of range.
    """
    if text.startswith("lognormal:"):
        parts = text.split(":")[1:]
        if len(parts) != 2:
            raise ValueError(EXPECTED_CANDIDATES)
        median, sigma = (_number(part, EXPECTED_CANDIDATES) for part in parts)
        if not 1 <= median <= MOST_CANDIDATES or not 0 < sigma <= LARGEST_SIGMA:
            raise ValueError(f"the median goes from 1 to {MOST_CANDIDATES}, sigma from above 0 to {LARGEST_SIGMA:g}")
        return LognormalSizes(median, sigma)
    if ":" not in text:
        return WeightedSizes((_size(text),), (1.0,))
    pairs = [part.split(":") for part in text.split(",")]
    if not all(len(pair) == 2 for pair in pairs):
        raise ValueError(EXPECTED_CANDIDATES)
    sizes = tuple(_size(size) for size, _ in pairs)
    weights = tuple(_number(weight, EXPECTED_CANDIDATES) for _, weight in pairs)
    if len(set(sizes)) < len(sizes):
        raise ValueError("a number of candidates occurs twice; give each one weight")
    if not all(0 < weight <= 1e9 for weight in weights):
        raise ValueError("weights are above 0 and at most 1e9; leave out what should not occur")
    return WeightedSizes(sizes, weights)


def zipf_exponent(text: str) -> float | None:
    """The exponent behind ``users``; None for fresh.

    Raises:
        ValueError: neither of the two forms, or an exponent out of range.
    """
    if text == "fresh":
        return None
    if not text.startswith("zipf:"):
        raise ValueError(EXPECTED_USERS)
    exponent = _number(text.removeprefix("zipf:"), EXPECTED_USERS)
    if exponent > LARGEST_EXPONENT:
        raise ValueError(f"the exponent goes from 0 (all users alike) to {LARGEST_EXPONENT:g}")
    return exponent


def _size(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text) or not 1 <= int(text) <= MOST_CANDIDATES:
        raise ValueError(EXPECTED_CANDIDATES)
    return int(text)


def _number(text: str, expected: str) -> float:
    """A plain decimal number: float() alone would take nan, inf, 1_0 and blanks."""
    if not re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,12})?", text):
        raise ValueError(expected)
    return float(text)


def _describe(fault: Any) -> str:
    option = "--" + str(fault["loc"][0]).replace("_", "-")
    if fault["type"] == "extra_forbidden":
        known = ", ".join("--" + name.replace("_", "-") for name in WorkloadSettings.model_fields)
        return f"{option}: no such setting; there are {known}"
    return f"{option} {fault['input']!r}: {str(fault['msg']).removeprefix('Value error, ')}"
