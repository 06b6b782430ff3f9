"""The options of ``tritonrank workload``: defaults and meanings, without the library that checks values.

The command line shows them on machines that only serve, which do not have it; ``workload_settings.py`` says what they
may be.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Option(NamedTuple):
    """One option."""

    default: Any
    meaning: str


OPTIONS: Mapping[str, Option] = {
    "requests": Option(1_000, "Requests in the file"),
    "candidates": Option(
        "100",
        # Not lognormal:100:...: rich, which prints the help, takes :100: for an emoji.
        "Candidates per request: a number, lognormal:80:0.9 (median, sigma; clipped to 1 and 1000) or "
        "10:0.5,100:0.4,1000:0.1 (numbers with weights). With the length of the judged lists, judged requests keep "
        "theirs, with labels",
    ),
    "users": Option(
        "fresh",
        "fresh: no context twice, so no cache of contexts can help. zipf:1.1: users return, drawn by Zipf's law with "
        "this exponent, and keep their context",
    ),
    "returns": Option(0.0, "Share of requests of users who come back soon, with the same context and other candidates"),
    "returns_within": Option(50, "How soon: one of so many requests ago, at the most"),
    "rate": Option(10.0, "Mean requests per second; arrivals are Poisson"),
    "arrivals": Option(
        "steady",
        "steady: the same rate all along. day:4: a day's curve compressed into requests / rate seconds, the busiest "
        "moment 4 times the quietest. spike:10: 10 times the rate for a tenth of that time, in the middle",
    ),
    "seed": Option(17, "The same seed gives the same file, byte for byte"),
    "history_items": Option(None, "Newest history items per request; default: as many as the model's text rules"),
}
