"""Where Tritons are now: addresses that are written down, or looked up again and again.

    HOST:PORT           always the same one
    dns:HOST:PORT       every address that HOST has, such as a headless Service of Kubernetes
    file:PATH           every line of a file, HOST:PORT each; what follows a # is a remark

A name that cannot be resolved, a file that cannot be read and a list without any address change nothing: what was
known before stays, because a fault of whoever tells must not take Tritons away that answer. Golden requests say which
of them do (``replicas.py``).
"""

import asyncio
import logging
import re
import socket
from collections.abc import Iterable, Sequence
from pathlib import Path

LOG = logging.getLogger("tritonrank_gateway.discovery")
DNS, FILE = "dns:", "file:"
ADDRESS = re.compile(r"(?:[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]):[0-9]{1,5}")
MOST_ADDRESSES = 256
"""Of one entry; each gets a connection and its own metrics."""
MOST_BYTES = 2**16
"""Of a file of addresses."""


class UnknownPlaceError(Exception):
    """An entry does not tell now where Tritons are; the message says why."""


def is_followed(entries: Sequence[str]) -> bool:
    """Whether any of these entries may tell other addresses later."""
    return any(entry.startswith((DNS, FILE)) for entry in entries)


def is_entry(entry: str) -> bool:
    """Whether this says where Tritons are."""
    if entry.startswith(FILE):
        return len(entry) > len(FILE)
    return ":" in entry.removeprefix(DNS)


def names_of(urls: Iterable[str]) -> list[str]:
    """A name for each replica: what its URL says beside the scheme.

    Raises:
        ValueError: one is named twice; it would get a double share and a single failure.
    """
    names = [url.partition("://")[2].rstrip("/") or url for url in urls]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"replicas: {', '.join(twice)} named twice")
    return names


class Addresses:
    """What several entries tell together. Used from one event loop.

    Args:
        entries: see above.
    """

    def __init__(self, entries: Sequence[str]) -> None:
        self.entries = tuple(entries)
        self._known: dict[str, tuple[str, ...]] = {}
        self._told: dict[str, str] = {}

    async def now(self) -> tuple[str, ...]:
        """All addresses, each once, in the order of the entries; empty while nothing was ever told."""
        for entry in self.entries:
            try:
                self._known[entry] = await _addresses_of(entry)
            except UnknownPlaceError as error:
                if self._told.get(entry) != str(error):
                    self._told[entry] = str(error)
                    LOG.warning("%s: %s; %d known before stay", entry, error, len(self._known.get(entry, ())))
            else:
                self._told.pop(entry, None)
        return tuple(dict.fromkeys(address for entry in self.entries for address in self._known.get(entry, ())))


async def _addresses_of(entry: str) -> tuple[str, ...]:
    """Those of one entry, sorted; at least one.

    Raises:
        UnknownPlaceError: it tells none now.
    """
    if entry.startswith(DNS):
        found = await _resolved(entry.removeprefix(DNS))
    elif entry.startswith(FILE):
        found = await asyncio.to_thread(_written, Path(entry.removeprefix(FILE)))
    else:
        return (entry,)
    if not found:
        raise UnknownPlaceError("it names no address")
    if len(found) > MOST_ADDRESSES:
        raise UnknownPlaceError(f"it names {len(found)} addresses; at most {MOST_ADDRESSES} are used")
    return tuple(sorted(found))


async def _resolved(place: str) -> set[str]:
    host, _, port = place.rpartition(":")
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise UnknownPlaceError(f"the name cannot be resolved ({error.strerror or error})") from None
    numbers = [str(address[0]) for *_, address in found]
    return {f"[{number}]:{port}" if ":" in number else f"{number}:{port}" for number in numbers}


def _written(path: Path) -> set[str]:
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise UnknownPlaceError(f"the file cannot be read ({error.strerror})") from None
    if len(content) > MOST_BYTES:
        raise UnknownPlaceError(f"the file has more than {MOST_BYTES} bytes")
    lines = (line.partition("#")[0].strip() for line in content.decode("utf-8", "replace").splitlines())
    found = {}
    for number, line in enumerate(lines, 1):
        if line and not ADDRESS.fullmatch(line):
            raise UnknownPlaceError(f"line {number} of the file is no HOST:PORT")
        found[line] = number
    return {line for line in found if line}
