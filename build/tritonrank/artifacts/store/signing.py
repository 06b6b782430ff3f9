"""Who vouches for a version or a tag: Ed25519 signatures in envelopes, and whose keys are trusted.

An envelope is a DSSE one (https://github.com/secure-systems-lab/dsse): the payload, its type, and signatures over both,
so that a signed tag cannot pass for a signed version. Without a signing key the list of signatures is empty.

    TRITONRANK_SIGNING_KEY     the private key: a PEM file, or the PEM text itself
    TRITONRANK_TRUSTED_KEYS    public keys: PEM files, and folders of ``*.pub``, separated by colons. Once it is set,
                               what no such key signed is refused; without it signatures are not looked at
"""

import base64
import binascii
import hashlib
import json
import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tritonrank.artifacts.store.faults import DamagedStoreError, UntrustedError, not_installed
from tritonrank.errors import StoreError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SIGNING_KEY = "TRITONRANK_SIGNING_KEY"
TRUSTED_KEYS = "TRITONRANK_TRUSTED_KEYS"
KEY_ID_CHARACTERS = 16
PRIVATE_SUFFIX, PUBLIC_SUFFIX = ".key", ".pub"
PRIVATE_MODE = 0o600
UNSIGNED = "unsigned"
MOST_SIGNATURES = 16
MOST_KEY_BYTES = 10_000
KEYGEN = "tritonrank store keygen NAME"


@dataclass(frozen=True)
class Signer:
    """A private key that signs what is pushed."""

    key: "Ed25519PrivateKey"

    @property
    def key_id(self) -> str:
        return key_id(self.key.public_key())


@dataclass(frozen=True)
class Trust:
    """Whose signatures count."""

    keys: Mapping[str, "Ed25519PublicKey"] = field(default_factory=dict)
    """by id; empty: everything is taken, signed or not"""

    def signers_of(self, envelope: "Envelope", what: str) -> list[str]:
        """Ids of the trusted keys that signed; nothing is asked where no key is trusted.

        Args:
            what: for the message.

        Raises:
            UntrustedError: nobody signed, only others did, or a signature is wrong.
        """
        if not self.keys:
            return []
        if not envelope.signatures:
            raise UntrustedError(
                f"{what}: is not signed, and {TRUSTED_KEYS} asks for a signature. Push it again with a key: "
                f"{SIGNING_KEY}=FILE.key tritonrank push ARTIFACTS URL"
            )
        known = [one for one in envelope.signatures if one in self.keys]
        if not known:
            raise UntrustedError(
                f"{what}: signed by {', '.join(envelope.signatures)}, trusted are {', '.join(self.keys)}. Where that "
                f"key is to be trusted, add its public half to {TRUSTED_KEYS}"
            )
        return [one for one in known if self._is_right(envelope, one, what)]

    def _is_right(self, envelope: "Envelope", signer: str, what: str) -> bool:
        from cryptography.exceptions import InvalidSignature

        try:
            self.keys[signer].verify(envelope.signatures[signer], _signed_bytes(envelope.kind, envelope.payload))
        except InvalidSignature:
            raise UntrustedError(
                f"{what}: the signature of {signer} does not fit what it signs: somebody changed it. Push it again "
                "from where it was built: tritonrank push ARTIFACTS URL"
            ) from None
        return True


@dataclass(frozen=True)
class Envelope:
    """A payload and who signed it."""

    kind: str
    """of the payload, such as application/vnd.tritonrank.version+json"""
    payload: bytes
    signatures: Mapping[str, bytes] = field(default_factory=dict)
    """by key id"""

    def to_bytes(self) -> bytes:
        """As JSON, in DSSE's form."""
        signatures = [{"keyid": name, "sig": _text(one)} for name, one in self.signatures.items()]
        said = {"payloadType": self.kind, "payload": _text(self.payload), "signatures": signatures}
        return json.dumps(said, sort_keys=True).encode()

    @classmethod
    def from_bytes(cls, data: bytes, kind: str, what: str) -> "Envelope":
        """Read an envelope; nothing is verified yet.

        Args:
            data: of bounded size.
            kind: that the payload has to be of.
            what: for the message.

        Raises:
            DamagedStoreError: it is none.
        """
        try:
            said = json.loads(data)
            if said["payloadType"] != kind or len(said["signatures"]) > MOST_SIGNATURES:
                raise ValueError("another kind")
            signatures = {str(one["keyid"]): base64.b64decode(one["sig"], validate=True) for one in said["signatures"]}
            return cls(kind, base64.b64decode(said["payload"], validate=True), signatures)
        except (ValueError, KeyError, TypeError, RecursionError, binascii.Error):
            raise DamagedStoreError(
                f"{what}: damaged, or not written by tritonrank. Look at all of it: tritonrank store verify URL"
            ) from None


def seal(kind: str, payload: bytes, signer: Signer | None) -> Envelope:
    """An envelope, signed where there is somebody to sign."""
    if signer is None:
        return Envelope(kind, payload)
    return Envelope(kind, payload, {signer.key_id: signer.key.sign(_signed_bytes(kind, payload))})


def key_id(key: "Ed25519PublicKey") -> str:
    """The beginning of the SHA-256 of the public key's 32 bytes."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()[:KEY_ID_CHARACTERS]


def make_keys(name: Path) -> tuple[Path, Path, str]:
    """Write a new pair of keys, ``NAME.key`` (for this user alone) and ``NAME.pub``.

    Returns:
        Both files, and the id.

    Raises:
        StoreError: one of them is there already; no key is ever replaced.
    """
    private, _ = _cryptography()
    from cryptography.hazmat.primitives import serialization

    key = private.generate()
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    open_half = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    files = name.with_name(name.name + PRIVATE_SUFFIX), name.with_name(name.name + PUBLIC_SUFFIX)
    for file in files:
        if file.exists() or file.is_symlink():
            raise StoreError(f"{file}: is there already, and a key is not replaced. Choose another name: {KEYGEN}")
    for file, data, mode in ((files[0], secret, PRIVATE_MODE), (files[1], open_half, 0o644)):
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with os.fdopen(descriptor, "wb") as out:
            out.write(data)
    return *files, key_id(key.public_key())


def signer_of(source: str | None = None) -> Signer | None:
    """The key that signs: a PEM file, or what the environment names; None where neither does.

    Raises:
        StoreError: it cannot be read, others may read it, or it is no Ed25519 key.
    """
    said = source or os.environ.get(SIGNING_KEY, "")
    if not said:
        return None
    private, _ = _cryptography()
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    is_text = said.lstrip().startswith("-----BEGIN")
    what = SIGNING_KEY if is_text else said
    try:
        if not is_text:
            _require_private(Path(said))
        data = said.encode() if is_text else _bounded(Path(said))
        key = load_pem_private_key(data, None)
    except OSError as error:
        raise StoreError(f"{what}: cannot be read ({error.strerror}). Make a key: {KEYGEN}") from None
    except (ValueError, TypeError):
        raise StoreError(f"{what}: no private key in PEM, or one with a passphrase. Make a key: {KEYGEN}") from None
    if not isinstance(key, private):
        raise StoreError(f"{what}: no Ed25519 key. Make one: {KEYGEN}")
    return Signer(key)


def trust_of(source: str | None = None) -> Trust:
    """The public keys that are trusted: files and folders separated by colons, or what the environment names.

    Raises:
        StoreError: one cannot be read, or a folder holds none: nothing is trusted by mistake.
    """
    said = source or os.environ.get(TRUSTED_KEYS, "")
    if not said:
        return Trust()
    _, public = _cryptography()
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    keys: dict[str, Ed25519PublicKey] = {}
    for place in (Path(one) for one in said.split(":") if one):
        files = sorted(place.glob(f"*{PUBLIC_SUFFIX}")) if place.is_dir() else [place]
        for file in files:
            with suppress(ValueError):
                try:
                    key = load_pem_public_key(_bounded(file))
                except OSError as error:
                    raise StoreError(f"{file}: cannot be read ({error.strerror}); {TRUSTED_KEYS} names it") from None
                if isinstance(key, public):
                    keys[key_id(key)] = key
                    continue
            raise StoreError(f"{file}: no public Ed25519 key in PEM. {KEYGEN} writes a pair, NAME.pub is this half")
        if not files:
            raise StoreError(f"{place}: holds no *{PUBLIC_SUFFIX} file; {TRUSTED_KEYS} names it. Put public keys there")
    return Trust(keys)


def _signed_bytes(kind: str, payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding."""
    return b"DSSEv1 %d %s %d %s" % (len(kind.encode()), kind.encode(), len(payload), payload)


def _cryptography() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ModuleNotFoundError:
        raise not_installed("cryptography") from None
    return ed25519.Ed25519PrivateKey, ed25519.Ed25519PublicKey


def _require_private(file: Path) -> None:
    mode = file.stat().st_mode
    if stat.S_IMODE(mode) & 0o007 or (mode & 0o020 and stat.S_ISREG(mode)):
        raise StoreError(f"{file}: others may read or change this private key. Close it: chmod 600 {file}")


def _bounded(file: Path) -> bytes:
    with file.open("rb") as opened:
        data = opened.read(MOST_KEY_BYTES + 1)
    if len(data) > MOST_KEY_BYTES:
        raise ValueError("too long for a key")
    return data


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
