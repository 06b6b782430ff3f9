"""GET and PUT /adapt on the port of metrics: what can be changed while the gateway runs, within bounds, and logged.

What is not named stays. A request is taken whole or not at all. A restart brings back what the settings say.
"""

import logging
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tritonrank_gateway.adapt.pace import Mode, PaceSettings
from tritonrank_gateway.call import Gateway

LOG = logging.getLogger("tritonrank_gateway.adapt")
MOST_BODY_BYTES = 4_096


class Changes(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """What may be changed, each within its bounds.

    Attributes:
        mode: off, advise or act.
        candidates: of a full list.
        floor: fewest that are ranked.
        queue_s: seconds of waiting work above which a cheaper level is taken.
        max_queued_s: seconds of waiting work above which requests are refused.
        max_in_flight: requests at once, above which they are refused.
    """

    mode: Mode | UnsetType = UNSET
    candidates: Annotated[int, Meta(ge=1, le=1_000)] | UnsetType = UNSET
    floor: Annotated[int, Meta(ge=1, le=1_000)] | UnsetType = UNSET
    queue_s: Annotated[float, Meta(gt=0, le=10)] | UnsetType = UNSET
    max_queued_s: Annotated[float, Meta(gt=0, le=60)] | UnsetType = UNSET
    max_in_flight: Annotated[int, Meta(ge=1, le=10_000)] | UnsetType = UNSET


DECODER = msgspec.json.Decoder(Changes)


async def adapt(request: Request, gateway: Gateway) -> Response:
    """Answers what holds now; with PUT, after changing it."""
    if request.method == "PUT":
        body = b""
        async for piece in request.stream():
            body += piece
            if len(body) > MOST_BODY_BYTES:
                return _wrong(413, f"the body has more than {MOST_BODY_BYTES} bytes")
        try:
            change(gateway, DECODER.decode(body))
        except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
            return _wrong(422, str(error))
    return JSONResponse(told(gateway))


def change(gateway: Gateway, changes: Changes) -> None:
    """Other settings from here on.

    Raises:
        ValueError: together they make no sense; nothing was changed.
    """
    pace, load = gateway.pace, gateway.load
    wanted = {name: value for name, value in msgspec.structs.asdict(changes).items() if value is not UNSET}
    own = {name: wanted.get(name, getattr(pace.settings, name)) for name in ("mode", "candidates", "floor", "queue_s")}
    if own["floor"] > own["candidates"]:
        raise ValueError(f"floor: {own['floor']} is more than candidates, {own['candidates']}")
    before = told(gateway)["settings"]
    pace.change(PaceSettings(**own, ranked=pace.settings.ranked))
    load.max_in_flight = wanted.get("max_in_flight", load.max_in_flight)
    load.max_queued_s = wanted.get("max_queued_s", load.max_queued_s)
    if gateway.recommender is not None:
        gateway.recommender.tune(candidates=own["candidates"])
    for name, value in wanted.items():
        LOG.warning("%s: %s after %s", name, value, before[name])


def told(gateway: Gateway) -> dict[str, Any]:
    """What holds, and what the controller sees."""
    pace, load = gateway.pace, gateway.load
    controller, own = pace.controller, pace.settings
    return {
        "settings": {
            "mode": own.mode,
            "candidates": own.candidates,
            "floor": own.floor,
            "queue_s": own.queue_s,
            "max_queued_s": load.max_queued_s,
            "max_in_flight": load.max_in_flight,
        },
        "level": {"number": controller.level.number, "name": controller.level.name, "reason": controller.reason},
        "levels": [
            {
                "number": level.number,
                "name": level.name,
                "candidates": level.ranked(pace.in_full),
                "model": level.model,
                "quality": None if level.quality != level.quality else level.quality,
                "utilisation": round(controller.utilisation(level.number), 4),
            }
            for level in controller.levels
        ],
        "arrivals_per_second": round(controller.arrivals_per_second, 4),
        "queue_seconds": round(controller.queue_seconds, 4),
        "wished_replicas": controller.wished_replicas,
    }


def _wrong(status: int, message: str) -> Response:
    place, at, where = message.partition(" - at `$.")
    return JSONResponse({"error": f"{where.rstrip('`')}: {place}" if at else message}, status_code=status)
