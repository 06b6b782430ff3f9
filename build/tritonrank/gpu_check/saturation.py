"""What a card can do, and what of it the packed engine does when requests wait: several of them in each launch."""

import time
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace

from tritonrank_runtime.engine import Engine, Tensors

from tritonrank.gpu_check.packed import Pack
from tritonrank.gpu_check.report import Saturation
from tritonrank.rankers.architectures import architecture_of

PRODUCT_SIZES = {"cpu": 512, "cuda": 8_192}
PRODUCT_SECONDS = 1.0
SATURATION_SECONDS = 2.0
LAUNCHES_TOGETHER = 4
"""Given to the engine at once: it packs one while the card computes another."""
MOST_REQUESTS = 2_048


def product_tflops(device: str) -> float:
    """TFLOP/s of a large square product in the precision that serves: the best of those that fit into a second."""
    import torch

    size = PRODUCT_SIZES["cpu" if device == "cpu" else "cuda"]
    dtype = torch.float32 if device == "cpu" else torch.float16
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    seconds: list[float] = []
    until = time.perf_counter() + PRODUCT_SECONDS
    while len(seconds) < 3 or time.perf_counter() < until:
        began = time.perf_counter()
        left @ right
        if device != "cpu":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return 2 * size**3 / min(seconds) / 1e12


def flop_counter(pack: Pack) -> Callable[[Tensors], float]:
    """Operations of a request, padding not counted."""
    from tritonrank_runtime.torch_passes import read_config

    config = SimpleNamespace(**{"pruned_heads": None} | read_config(pack.folder))
    architecture = architecture_of(config)
    return lambda tensors: architecture.flop(config, tensors)


def mean_flop(pack: Pack, timed: Mapping[int, Sequence[Tensors]]) -> dict[int, float]:
    """Operations of a request, by candidates."""
    flop = flop_counter(pack)
    return {size: sum(map(flop, requests)) / len(requests) for size, requests in timed.items()}


def saturate(
    name: str,
    engine: Engine,
    timed: Mapping[int, Sequence[Tensors]],
    launch_rows: int,
    flop: Callable[[Tensors], float],
) -> list[Saturation]:
    """Requests of each size, as many at once as fill several launches, over and over.

    Args:
        name: of the engine, for people.
        engine: packs what it is given.
        timed: requests by candidates.
        launch_rows: tokens of a launch at the most.
        flop: of a request.
    """
    found = []
    for candidates, requests in timed.items():
        tokens = sum(engine.token_counts([one])[1] for one in requests) / len(requests)
        per_launch = max(1, int(launch_rows // tokens))
        many = min(MOST_REQUESTS, LAUNCHES_TOGETHER * per_launch)
        batch = [requests[place % len(requests)] for place in range(many)]
        engine.run(batch)
        runs, began = 0, time.perf_counter()
        while not runs or time.perf_counter() - began < SATURATION_SECONDS:
            engine.run(batch)
            runs += 1
        seconds = time.perf_counter() - began
        per_second = runs * len(batch) / seconds
        found.append(
            Saturation(
                name=name,
                candidates=candidates,
                requests_per_launch=per_launch,
                requests_per_second=round(per_second, 1),
                candidates_per_second=round(candidates * per_second, 1),
                useful_tflops=round(runs * sum(map(flop, batch)) / seconds / 1e12, 4),
            )
        )
    return found
