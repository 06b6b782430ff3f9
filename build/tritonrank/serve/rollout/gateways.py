"""The gateways of a rollout: what each serves and has compared, and how they are brought to what is wanted."""

import ssl
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from tritonrank.serve.rollout.places import urls_of
from tritonrank.serve.rollout.state import GatewayVersion
from tritonrank.serve.versions.admin_client import AdminError, PrivateApi

LOOK_SECONDS = 5.0
CHANGE_SECONDS = 60.0
"""A gateway answers when the new version serves and the requests of the one before are done."""
MOST_AT_ONCE = 16
NOT_THE_VERSION = (0, 401, 403, 404, 405)
"""Statuses that say nothing against the version: no answer, another key, a gateway without such an API."""
ROLES, SHARED = ("live", "shadow", "canary"), ("shadow", "canary")
SAME = ("name", "triton", "model", "blend", "golden")


@dataclass(frozen=True)
class View:
    """One gateway at one look.

    Attributes:
        url: of its private API.
        problem: why it could not be asked, or not be changed; "" where all is well.
        was_refused: it answered, and did not do what was wanted.
        versions: as ``GET /versions`` says.
        compared: as ``GET /versions/comparison`` says.
    """

    url: str
    problem: str = ""
    was_refused: bool = False
    versions: Mapping[str, Any] = field(default_factory=dict)
    compared: Mapping[str, Any] = field(default_factory=dict)


Wish = Mapping[str, GatewayVersion]
"""Per role what is to be there; what is left out may be what it is."""


class Gateways:
    """All gateways, asked side by side.

    Args:
        places: of their private APIs (``--metrics-port``), see ``places.py``.
        key: TRITONRANK_ADMIN_KEY of the gateways.
        tls: for https.
    """

    def __init__(self, places: Sequence[str], key: str, tls: ssl.SSLContext | None = None) -> None:
        self._places, self._key, self._tls = places, key, tls
        self._pool = ThreadPoolExecutor(MOST_AT_ONCE, "gateways")

    def reconcile(self, wish: Wish, gone: str = "") -> list[View]:
        """Look at each, change what is not as wanted, and tell what holds then.

        Args:
            wish: what is to be there.
            gone: a version that is neither shadow nor canary any more, unless that is wished for.

        Raises:
            OSError: the gateways cannot be looked up.
        """
        urls = urls_of(self._places, "https" if self._tls else "http")
        return list(self._pool.map(lambda url: self._one(url, wish, gone), urls))

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _one(self, url: str, wish: Wish, gone: str) -> View:
        look = PrivateApi(url, self._key, self._tls, LOOK_SECONDS)
        change = PrivateApi(url, self._key, self._tls, CHANGE_SECONDS)
        versions: Mapping[str, Any] = {}
        try:
            # Sums first: a change ends the role that they are of.
            compared = look.ask("GET", "/versions/comparison")
            versions = look.ask("GET", "/versions")
            for role in ROLES:
                found, wanted = versions.get(role), wish.get(role)
                if wanted is not None and not agrees(found, wanted, role):
                    change.ask("PUT", f"/versions/{role}", body_of(wanted))
                elif wanted is None and role in SHARED and found is not None and found["name"] == gone:
                    change.ask("DELETE", f"/versions/{role}")
                else:
                    continue
                versions = look.ask("GET", "/versions")
        except AdminError as error:
            return View(url, str(error), error.status not in NOT_THE_VERSION, versions)
        return View(url, versions=versions, compared=compared)


def agrees(found: Mapping[str, Any] | None, wanted: GatewayVersion, role: str) -> bool:
    """Whether a gateway's version is what is wanted there."""
    if found is None or any(found.get(name) != wanted.get(name) for name in SAME):
        return False
    return role not in SHARED or abs(found.get("share", 0.0) - wanted.get("share", 0.0)) < 1e-9


def body_of(version: GatewayVersion) -> GatewayVersion:
    """What a gateway is sent: what is not known is left out."""
    return {name: value for name, value in version.items() if value is not None}
