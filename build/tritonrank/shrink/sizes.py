"""From the recipe's target to the sizes that the pruned ranker gets.

Sizes that the recipe names are taken as they are. With ``prune.gflop`` the others follow by a fixed rule: depth and
width share the cut evenly, layers = the square root of the share, rounded (fewer layers save the most time per GFLOP,
but each costs more quality than the last); then heads shrink by the share that is left per layer, rounded up; and the
FFN takes what the budget has left. Shapes stay multiples of 8 on each of ``tensor_parallel`` devices.
"""

from collections.abc import Callable
from dataclasses import replace
from math import ceil, floor, gcd, sqrt

from tritonrank.errors import RecipeError
from tritonrank.rankers.anatomy import Sizes
from tritonrank.recipe import PruneSettings

SHAPE_MULTIPLE = 8


def target_sizes(
    full: Sizes,
    head_size: int,
    settings: PruneSettings,
    tensor_parallel: int,
    gflop: Callable[[Sizes], float],
    head_group: int = 1,
) -> Sizes:
    """Layers, heads and FFN neurons of the pruned ranker; vocabulary and positions as given.

    Args:
        full: the teacher's sizes.
        head_size: width of a head.
        settings: the recipe's prune section.
        tensor_parallel: devices that heads and neurons are split over.
        gflop: what a request costs at some sizes.
        head_group: heads that share one of keys and values, and go or stay together.

    Raises:
        RecipeError: a size is larger than the teacher's or does not divide, or the budget cannot be met.
    """
    head_step = head_group * tensor_parallel * (SHAPE_MULTIPLE // gcd(SHAPE_MULTIPLE, head_size))
    neuron_step = SHAPE_MULTIPLE * tensor_parallel
    _check("layers", settings.layers, full.layers, 1)
    _check("heads", settings.heads, full.heads, head_step)
    _check("ffn_neurons", settings.ffn_neurons, full.ffn_neurons, neuron_step)
    for name, size, step in (("heads", full.heads, head_step), ("ffn_neurons", full.ffn_neurons, neuron_step)):
        if size < step:
            raise RecipeError(f"tensor_parallel: the teacher has {size} {name}; {tensor_parallel} devices need {step}")
    named = replace(
        full,
        layers=settings.layers or full.layers,
        heads=settings.heads or _rounded_down(full.heads, head_step),
        ffn_neurons=settings.ffn_neurons or _rounded_down(full.ffn_neurons, neuron_step),
    )
    if settings.gflop is None:
        return named
    budget = settings.gflop * gflop(full)
    if settings.layers is None:
        named = replace(named, layers=max(1, round(full.layers * sqrt(settings.gflop))))
    if settings.heads is None:
        share = min(1.0, budget / gflop(named))
        named = replace(named, heads=min(named.heads, head_step * ceil(full.heads * share / head_step)))
    if settings.ffn_neurons is None:
        named = replace(named, ffn_neurons=_largest_ffn(named, neuron_step, budget, gflop))
    if gflop(named) > budget:
        raise RecipeError(
            f"prune.gflop: {named.layers} layers of {named.heads} heads and {named.ffn_neurons} FFN neurons cost "
            f"{gflop(named) / gflop(full):.3f} of the teacher's GFLOP per request; the budget is {settings.gflop}. "
            "Leave one of prune.layers, prune.heads, prune.ffn_neurons to the budget, or lower it"
        )
    return named


def _largest_ffn(sizes: Sizes, step: int, budget: float, gflop: Callable[[Sizes], float]) -> int:
    """The most neurons within the budget; the cost grows linearly with them."""
    low, high = (gflop(replace(sizes, ffn_neurons=neurons)) for neurons in (step, sizes.ffn_neurons))
    if high <= budget or sizes.ffn_neurons == step:
        return sizes.ffn_neurons
    per_neuron = (high - low) / (sizes.ffn_neurons - step)
    return step + max(0, floor((budget - low) / per_neuron / step)) * step


def _rounded_down(size: int, step: int) -> int:
    return size // step * step


def _check(name: str, wanted: int | None, size: int, step: int) -> None:
    if wanted is not None and (wanted > size or wanted % step):
        raise RecipeError(f"prune.{name}: {wanted} must be at most {size}, what the teacher has, and divide by {step}")
