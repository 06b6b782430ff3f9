"""The controller of a gateway by its settings."""

from dataclasses import replace
from typing import cast

from tritonrank_recommend.blend import BlendError, LevelsFile, open_levels

from tritonrank_gateway.adapt.pace import Mode, Pace, PaceSettings, SmallerRanker
from tritonrank_gateway.load import Load
from tritonrank_gateway.metrics import Metrics
from tritonrank_gateway.model import KnownModel
from tritonrank_gateway.settings import GatewaySettings
from tritonrank_gateway.versions.opening import Opener, first_version


def pace_of(settings: GatewaySettings, load: Load, metrics: Metrics) -> Pace:
    """What decides at which level requests are ranked.

    Raises:
        ValueError: the blend's levels.json is damaged.
    """
    return Pace(
        PaceSettings(
            mode=cast(Mode, settings.adapt),
            candidates=settings.candidates,
            ranked=settings.ranked,
            floor=min(settings.adapt_floor, settings.candidates),
            queue_s=settings.adapt_queue_s,
        ),
        load,
        metrics,
        smaller_of(settings),
        _levels(settings),
        lambda: metrics.replicas(),
    )


def _levels(settings: GatewaySettings) -> LevelsFile | None:
    try:
        return None if settings.blend is None else open_levels(settings.blend)
    except BlendError as error:
        raise ValueError(str(error)) from error


def smaller_of(settings: GatewaySettings) -> SmallerRanker | None:
    """The cheaper ranker that is named, on the same Tritons where no address is; None where there is none."""
    if not settings.smaller_model:
        return None
    name, _, address = settings.smaller_model.partition("@")
    # Its replicas are counted in a registry that nobody reads: they are the same machines, told of already.
    own = replace(
        settings, model=name, triton=(address,) if address else settings.triton, cache_mb=0, golden=None,
        smaller_model="",
    )  # fmt: skip
    backend = Opener(own, Metrics()).open(first_version(own), "live").backend
    return SmallerRanker(backend, KnownModel(backend))
