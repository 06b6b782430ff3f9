"""What the GPU engine was to reach on an H100, held against a record; docs/gpu-engine.md says why these figures."""

import operator
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from tritonrank.gpu_check.report import Goal, Row, Saturation, UnderLoad

IN_PROCESS_MS = {100: 0.45, 1_000: 1.7}
SATURATED_SHARE = 0.40
ONE_CLIENT_MS = 6.0
REQUESTS_PER_SECOND = 1_000.0
CANDIDATES = 100


def goals(
    packed: Sequence[str],
    rows: Sequence[Row],
    product_tflops: float | None,
    saturation: Sequence[Saturation],
    under_load: Sequence[UnderLoad],
    *,
    is_measured: bool,
) -> list[Goal]:
    """Each goal with its figure.

    Args:
        packed: names of the rows that are packed engines; the best of them counts.
        rows, product_tflops, saturation, under_load: as in ``Report``.
        is_measured: on a GPU; of a rehearsal no goal is said to hold.
    """

    def goal(what: str, values: Iterator[float], best: Callable[..., float], holds: Callable[[float], bool]) -> Goal:
        if (measured := best(values, default=None)) is None or not is_measured:
            return Goal(what, None, None)
        return Goal(what, measured, holds(measured))

    found = [
        goal(
            f"{candidates:,} candidates in process, p50 at most {most} ms",
            (one.p50_ms for row in rows if row.name in packed for one in row.latencies if one.candidates == candidates),
            min,
            partial(operator.ge, most),
        )
        for candidates, most in IN_PROCESS_MS.items()
    ]
    shares = (one.useful_tflops / product_tflops for one in saturation) if product_tflops else iter(())
    of_size = [one for one in under_load if one.candidates == CANDIDATES]
    return [
        *found,
        goal(
            f"several requests a launch: at least {SATURATED_SHARE:.0%} of the product's speed",
            shares,
            max,
            lambda value: value >= SATURATED_SHARE,
        ),
        goal(
            f"through Triton, {CANDIDATES} candidates, one client: p50 at most {ONE_CLIENT_MS} ms",
            (one.p50_ms for one in of_size if one.clients == 1),
            min,
            lambda value: value <= ONE_CLIENT_MS,
        ),
        goal(
            f"through Triton, {CANDIDATES} candidates: at least {REQUESTS_PER_SECOND:,.0f} requests/s",
            (one.requests_per_second for one in of_size),
            max,
            lambda value: value >= REQUESTS_PER_SECOND,
        ),
    ]
