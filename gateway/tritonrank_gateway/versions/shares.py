"""Which users are in a canary's share: always the same ones, at every gateway, and more of them as the share grows."""

import hashlib

PLACES = 2**64


def place_of(key: str, name: str) -> float:
    """Where a user stands between 0 and 1; in a version's share are those below it.

    Args:
        key: who asks, or with what context where nobody is named (``replicas.routing_key``).
        name: of the version: another one takes other users, so that it is not always the same who get what is new.
    """
    digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8, key=name.encode()).digest()
    return int.from_bytes(digest) / PLACES
