"""The index of a store: its versions and tags, each an object of its own, so that writers do not meet.

    store.json                          what is kept here: the model's name
    versions/<digest>/<key id>.json     a version's description, signed by that key (or ``unsigned.json``)
    tags/<tag>/<number>.json            the moves of a tag, each signed; the highest number counts
    parts/<2 characters>/<sha256>       the bytes
    leases/                             who is writing just now (``leases.py``)

A version is written once and never changed. A tag moves by an object with the next number, which is created only where
none is there: of two writers one is told that the other was quicker, reads again, and takes the number after it. So no
move is lost, and all of them can be read later.
"""

import json
import re
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime

from tritonrank.artifacts.store.faults import ConflictError, DamagedStoreError, MissingObjectError
from tritonrank.artifacts.store.objects import Found, Objects
from tritonrank.artifacts.store.signing import UNSIGNED, Envelope, Signer, Trust, seal
from tritonrank.artifacts.store.urls import MARKER, Source, check_tag
from tritonrank.artifacts.store.versions import (
    KIND,
    MOST_PAYLOAD_BYTES,
    SHA256,
    Version,
    digest_of,
    read_version,
)
from tritonrank.errors import StoreError

TAG_KIND = "application/vnd.tritonrank.tag+json"
MARKER_FORMAT = 1
MOST_MARKER_BYTES = 4_096
MOST_TAG_BYTES = 65_536
MOVE = re.compile(r"tags/([A-Za-z0-9][A-Za-z0-9._-]{0,63})/(\d{10})\.json")
VERSION = re.compile(r"versions/([0-9a-f]{64})/([0-9a-f]{16}|" + UNSIGNED + r")\.json")
MOST_TRIES = 50
ENVELOPE_FACTOR = 2
"""Base64 and signatures make an envelope less than twice as long as its payload."""
SHOWN = 12


@dataclass(frozen=True)
class Move:
    """A tag was set to a version."""

    model: str
    tag: str
    number: int
    """1 for the first move of a tag"""
    version: str
    """the digest"""
    time: str


@dataclass(frozen=True)
class Listed:
    """A version in the store, as far as its object's name says."""

    digest: str
    signers: tuple[str, ...]
    """key ids by the objects' names, not verified; none: unsigned"""
    pushed: datetime


class Index:
    """Versions and tags of one store.

    Args:
        objects: of the store.
        trust: what is read has to be signed by one of its keys, if it has any.
    """

    def __init__(self, objects: Objects, trust: Trust | None = None) -> None:
        self.objects = objects
        self.trust = trust or Trust()

    def model(self) -> str | None:
        """The name of the model that is kept here; None: there is no store yet.

        Raises:
            DamagedStoreError: something else is there.
        """
        try:
            said = json.loads(self._bounded(MARKER, MOST_MARKER_BYTES))
            if said["format"] != MARKER_FORMAT or not isinstance(said["model"], str):
                raise ValueError("another format")
        except MissingObjectError:
            return None
        except (ValueError, KeyError, TypeError):
            raise DamagedStoreError(
                f"{self.objects.url}/{MARKER}: not that of a store of this tritonrank. Name another URL"
            ) from None
        return str(said["model"])

    def claim(self, model: str) -> None:
        """Say that this model is kept here, or see that it is.

        Raises:
            StoreError: another one is.
        """
        marker = json.dumps({"format": MARKER_FORMAT, "model": model}).encode()
        if self.model() is None and self.objects.create(MARKER, marker):
            return
        if (there := self.model()) != model:
            raise StoreError(
                f"{self.objects.url}: holds the model {there}, not {model}; each has a URL of its own. Name another "
                f"URL, or, where it is the same model by another name: --model {there}"
            )

    def versions(self) -> list[Listed]:
        """All versions, oldest first."""
        found: dict[str, list[tuple[str, datetime]]] = {}
        for one in self.objects.below("versions"):
            if match := VERSION.fullmatch(one.name):
                found.setdefault(match[1], []).append((match[2], one.modified))
        listed = [
            Listed(
                digest,
                tuple(sorted(name for name, _ in seen if name != UNSIGNED)),
                min(modified for _, modified in seen),
            )
            for digest, seen in found.items()
        ]
        return sorted(listed, key=lambda one: (one.pushed, one.digest))

    def envelope(self, digest: str) -> Envelope:
        """A version's description in its envelope, signed by a trusted key if any is asked for.

        Raises:
            MissingObjectError: there is no such version.
            DamagedStoreError: the description is not the one of that digest.
            UntrustedError: see Trust.
        """
        what = f"{self.objects.url}: version {digest[:SHOWN]}"
        names = sorted(one.name for one in self.objects.below(f"versions/{digest}") if VERSION.fullmatch(one.name))
        if not names:
            raise MissingObjectError(f"{what}: is not there. List what is: tritonrank store list {self.objects.url}")
        signed = [name for name in names if name.removesuffix(".json").rpartition("/")[2] in self.trust.keys]
        data = self._bounded((signed or names)[0], ENVELOPE_FACTOR * MOST_PAYLOAD_BYTES)
        envelope = Envelope.from_bytes(data, KIND, what)
        self.trust.signers_of(envelope, what)
        if digest_of(envelope.payload) != digest:
            raise DamagedStoreError(
                f"{what}: its description is another one than its digest names. Push it again from where it was "
                f"built: tritonrank push ARTIFACTS {self.objects.url}"
            )
        return envelope

    def version(self, digest: str) -> Version:
        """A version by its whole digest; raises as ``envelope`` and ``read_version``."""
        what = f"{self.objects.url}: version {digest[:SHOWN]}"
        return read_version(self.envelope(digest).payload, what)

    def add(self, version: Version, signer: Signer | None) -> bool:
        """Write a version's description; False: it was there, signed by the same key."""
        envelope = seal(KIND, version.payload(), signer)
        name = f"versions/{version.digest}/{signer.key_id if signer else UNSIGNED}.json"
        if self.objects.find(name) is not None:
            return False
        self.objects.create(name, envelope.to_bytes())
        return True

    def tags(self) -> dict[str, Found]:
        """The newest move of every tag."""
        newest: dict[str, Found] = {}
        for one in self.objects.below("tags"):
            match = MOVE.fullmatch(one.name)
            if match and (match[1] not in newest or newest[match[1]].name < one.name):
                newest[match[1]] = one
        return newest

    def moves(self, tag: str) -> Iterator[Move]:
        """What a tag was set to, newest first; raises as ``move``."""
        found = [one.name for one in self.objects.below(f"tags/{tag}") if MOVE.fullmatch(one.name)]
        yield from (self.move(name) for name in sorted(found, reverse=True))

    def move(self, name: str) -> Move:
        """One move by its object's name.

        Raises:
            DamagedStoreError: it is not one, or lies where it does not belong.
            UntrustedError: see Trust.
        """
        what = f"{self.objects.url}/{name}"
        envelope = Envelope.from_bytes(self._bounded(name, MOST_TAG_BYTES), TAG_KIND, what)
        self.trust.signers_of(envelope, what)
        try:
            said = json.loads(envelope.payload)
            move = Move(said["model"], said["tag"], said["number"], said["version"], said["time"])
            is_right = SHA256.fullmatch(move.version) is not None and _move_name(move.tag, move.number) == name
        except (ValueError, KeyError, TypeError, RecursionError):
            is_right = False
        if not is_right:
            raise DamagedStoreError(
                f"{what}: not the move of a tag that belongs there. Set the tag anew: tritonrank store tag "
                f"{self.objects.url} {name.split('/')[1]} DIGEST"
            )
        return move

    def tagged(self, tag: str) -> Move | None:
        """What a tag leads to; None where it was never set."""
        return next(self.moves(tag), None)

    def set_tag(self, model: str, tag: str, digest: str, signer: Signer | None) -> Move:
        """Let a tag lead to a version; nothing is written where it does already, signed by whom it has to be.

        Raises:
            ConflictError: others moved it again and again meanwhile.
        """
        check_tag(tag)
        for _ in range(MOST_TRIES):
            found = sorted(one.name for one in self.objects.below(f"tags/{tag}") if MOVE.fullmatch(one.name))
            number = int(found[-1].rpartition("/")[2].removesuffix(".json")) if found else 0
            if found and self._leads_to(found[-1], digest, signer):
                return self.move(found[-1])
            made = Move(model, tag, number + 1, digest, time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
            payload = json.dumps(asdict(made), sort_keys=True).encode()
            if self.objects.create(_move_name(tag, made.number), seal(TAG_KIND, payload, signer).to_bytes()):
                return made
        raise ConflictError(
            f"{self.objects.url}: the tag {tag} was moved by others {MOST_TRIES} times meanwhile. See by whom, and try "
            f"again: tritonrank store list {self.objects.url}"
        )

    def find(self, source: Source) -> tuple[str, Move | None]:
        """The digest that is wanted, and the tag's move where a tag was named.

        Raises:
            MissingObjectError: nothing fits.
            StoreError: several versions begin so.
        """
        lister = f"List what is there: tritonrank store list {self.objects.url}"
        if not source.is_digest:
            move = self.tagged(source.wanted)
            if move is None:
                there = "" if self.model() is not None else f"; there is no store (no {MARKER})"
                raise MissingObjectError(f"{self.objects.url}: nothing is tagged {source.wanted}{there}. {lister}")
            return move.version, move
        begins = [one.digest for one in self.versions() if one.digest.startswith(source.digest)]
        if len(begins) == 1:
            return begins[0], None
        if not begins:
            raise MissingObjectError(f"{self.objects.url}: no version begins with {source.digest}. {lister}")
        raise StoreError(f"{self.objects.url}: {len(begins)} versions begin with {source.digest}. {lister}")

    def _leads_to(self, name: str, digest: str, signer: Signer | None) -> bool:
        what = f"{self.objects.url}/{name}"
        try:
            envelope = Envelope.from_bytes(self._bounded(name, MOST_TAG_BYTES), TAG_KIND, what)
            is_signed = signer is None or signer.key_id in envelope.signatures
            return is_signed and self.move(name).version == digest
        except StoreError:
            return False

    def _bounded(self, name: str, most: int) -> bytes:
        """All bytes of an object whose size is looked at first."""
        found = self.objects.find(name)
        if found is None:
            raise MissingObjectError(
                f"{self.objects.url}/{name}: is not there. List what is: tritonrank store list {self.objects.url}"
            )
        if found.size > most:
            raise DamagedStoreError(f"{self.objects.url}/{name}: {found.size:,} bytes; at most {most:,} are read")
        return self.objects.read(name, 0, found.size) if found.size else b""


def _move_name(tag: str, number: int) -> str:
    return f"tags/{tag}/{number:010d}.json"
