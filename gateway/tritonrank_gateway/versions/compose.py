"""The versions of a gateway by its settings, and what else follows when another one goes live."""

from contextlib import suppress
from pathlib import Path

from tritonrank_recommend.blend import BlendError, open_levels

from tritonrank_gateway.call import Gateway
from tritonrank_gateway.golden import GoldenRequest
from tritonrank_gateway.metrics import Metrics
from tritonrank_gateway.ranking import Backend
from tritonrank_gateway.settings import GatewaySettings
from tritonrank_gateway.tracing import Tracing
from tritonrank_gateway.versions.arm import Arm
from tritonrank_gateway.versions.backend_metrics import Opened
from tritonrank_gateway.versions.changing import Changing
from tritonrank_gateway.versions.metrics import VersionMetrics
from tritonrank_gateway.versions.opening import Opener, first_version
from tritonrank_gateway.versions.versions import Versions

GRACE_SECONDS = 5.0
"""Beyond the longest deadline, after which nobody waits for a version that went."""


def versions_of(backend: Backend, settings: GatewaySettings, metrics: Metrics, tracing: Tracing) -> Versions:
    """Versions as they are, or around the one backend that there is to begin with."""
    if isinstance(backend, Versions):
        versions = backend
    else:
        arm = Arm(first_version(settings), Opened(backend, GoldenRequest()))
        versions = Versions(arm, Opener(settings, metrics, tracing))
    metrics.registry.register(VersionMetrics(versions))
    return versions


def change_versions(gateway: Gateway) -> Changing:
    """What changes a gateway's versions while it runs."""
    versions, load, pace, recommender = gateway.versions, gateway.load, gateway.pace, gateway.recommender
    own_blend = None if recommender is None else recommender.parts.blend

    def is_busy() -> bool:
        """Whether there is enough to do for those who wait for an answer."""
        return (
            pace.level_for(1, in_order=True).number > 0
            or load.queued_seconds > pace.settings.queue_s
            or load.in_flight > load.max_in_flight // 2
        )

    def promoted(arm: Arm) -> None:
        """What goes with the ranker: what drift is measured against, the last model of a page, the measured levels. The
        catalogue does not: it is the gateway's own, and comes with the next gateway (``--catalogue``)."""
        if arm.version.golden is not None:
            gateway.quality.follow(Path(arm.version.golden).with_name("reference.json"))
        if recommender is not None and own_blend is not None:
            recommender.parts.blend = arm.blend or own_blend
            folder = arm.version.blend or gateway.settings.blend
            with suppress(BlendError):  # then the levels are those of before
                pace.measured(None if folder is None else open_levels(Path(folder)))

    versions.is_busy = is_busy
    return Changing(
        versions,
        versions.opener,
        has_blend=own_blend is not None,
        promoted=promoted,
        finish_seconds=gateway.settings.deadline_s + GRACE_SECONDS,
    )
