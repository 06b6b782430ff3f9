"""What a gateway works with by its settings: what ranks, and what recommends."""

from tritonrank_recommend.engine import EngineSettings, Recommender
from tritonrank_recommend.stores.interface import StoreError
from tritonrank_recommend.streams.settings import StreamSettings

from tritonrank_gateway.metrics import Metrics
from tritonrank_gateway.settings import GatewaySettings
from tritonrank_gateway.tracing import Tracing
from tritonrank_gateway.versions.arm import Arm
from tritonrank_gateway.versions.opening import Opener, first_version
from tritonrank_gateway.versions.versions import Versions


def compose(settings: GatewaySettings, metrics: Metrics, tracing: Tracing | None = None) -> Versions:
    """What ranks for a gateway with these settings; each call of a Triton is a span of ``tracing``.

    Raises:
        ValueError: a replica is named twice, or the golden file cannot be read.
    """
    opener, first = Opener(settings, metrics, tracing), first_version(settings)
    return Versions(Arm(first, opener.open(first, "live")), opener)


def compose_recommender(settings: GatewaySettings) -> Recommender | None:
    """What recommends for a gateway with these settings; None where it has neither a catalogue nor a store.

    Raises:
        ValueError: the store's URL or the rules file is wrong.
    """
    if settings.catalogue is None and not settings.store:
        return None
    try:
        return Recommender.open(
            catalogue=settings.catalogue,
            blend=settings.blend,
            store_url=settings.store,
            rules=settings.rules,
            events_log=settings.events_log,
            events_stream=StreamSettings(
                url=settings.events_stream, keep=settings.events_stream_keep, dead_letters=settings.dead_letters
            ),
            settings=EngineSettings(
                candidates=settings.candidates,
                ranked=settings.ranked,
                page_minutes=settings.page_minutes,
                warm_context=settings.warm_context,
            ),
        )
    except StoreError as error:
        raise ValueError(str(error)) from error
