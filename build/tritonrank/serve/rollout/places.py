"""Where gateways and Tritons are: addresses that are named, or looked up again and again.

http://127.0.0.1:8081              one
dns:gateway-headless:8081          one for each address that the name has now (a headless Service of Kubernetes)
file:/run/fleet/gateways           one for each line of a file; # begins a remark
"""

import socket
from collections.abc import Sequence
from pathlib import Path

from tritonrank.artifacts.store.faults import UnreachableStoreError
from tritonrank.artifacts.store.urls import is_store, parse_source
from tritonrank.errors import ServerError


def check_places(places: Sequence[str], what: str) -> None:
    """Raises ServerError where one cannot be an address; ``what`` they are of, as the message says it."""
    for place in places:
        kind, _, rest = place.partition(":")
        host, _, port = rest.rpartition(":")
        if not (kind in ("http", "https", "file") or (kind == "dns" and host and port.isdecimal())):
            raise ServerError(f"{what} {place!r}: expected http://HOST:PORT, dns:NAME:PORT or file:PATH")


def urls_of(places: Sequence[str], scheme: str = "http") -> list[str]:
    """The addresses as they are now.

    Args:
        places: see the module.
        scheme: of those that are looked up.

    Raises:
        OSError: a name has no address, or a file cannot be read.
    """
    found: list[str] = []
    for place in places:
        kind, _, rest = place.partition(":")
        if kind == "dns":
            host, _, port = rest.rpartition(":")
            answers = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
            addresses = sorted({str(answer[4][0]) for answer in answers})
            found += [f"{scheme}://{f'[{one}]' if ':' in one else one}:{port}" for one in addresses]
        elif kind == "file":
            lines = (line.partition("#")[0].strip() for line in Path(rest).read_text(encoding="utf-8").splitlines())
            found += [line if "://" in line else f"{scheme}://{line}" for line in lines if line]
        else:
            found.append(place.rstrip("/"))
    return list(dict.fromkeys(found))


def pinned(source: str) -> str:
    """A store's URL with the version that its tag leads to now: a tag moves, and every Triton has to load the same,
    one that is started next week, too. Where the store cannot be reached from here the tag stays.

    Raises:
        StoreError: there is no such version, or nobody trusted has signed it.
    """
    if not is_store(source):
        return source
    from tritonrank.artifacts.store.cache import resolve

    place = parse_source(source)
    try:
        return source if place.is_digest else f"{place.url}@{resolve(place)}"
    except UnreachableStoreError:
        return source
