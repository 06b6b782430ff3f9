"""What is said about versions on the port of metrics, in JSON.

A version is one built artifact as it serves: an ensemble in one Triton or several, and what goes with it.

    GET    /versions                      Versions
    PUT    /versions/{live|shadow|canary} body Version -> Versions; returns when that version serves
    DELETE /versions/{shadow|canary}      -> Versions; returns when its requests in flight are done
    GET    /versions/comparison           Comparison, see ``comparison.py``
"""

from typing import Annotated, Literal, get_args

import msgspec
from msgspec import Meta

Role = Literal["live", "shadow", "canary"]
"""live answers; shadow gets a share of what live has answered, and nobody sees its answers; canary answers a share of
the users."""
ROLES: tuple[Role, ...] = get_args(Role)
SHARED_ROLES: tuple[Role, ...] = ("shadow", "canary")
FIRST = "first"
"""The name of the version that a gateway starts with, by its flags."""
Address = Annotated[str, Meta(min_length=1, max_length=256, pattern=r"^[^\s,]+\Z")]
File = Annotated[str, Meta(min_length=1, max_length=4_096, pattern=r"^[^\x00]+\Z")]


class Version(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A version, and how much it gets.

    Attributes:
        name: for people and for metrics. It also decides, with a hash, which users a canary gets: the same name takes
            the same ones at every gateway, and who is in at a share is in at every larger one.
        triton: addresses of Tritons, as of the flag ``--triton``.
        model: the ensemble there.
        share: of requests (shadow) or of users (canary); live has what is left, whatever is said here.
        blend: folder of the blend that was learned for this version; None: the gateway's own.
        golden: its ``golden.json``; None: its replicas are held to each other.
    """

    name: Annotated[str, Meta(pattern=r"^[a-z0-9-]{1,32}\Z")]
    triton: Annotated[list[Address], Meta(min_length=1, max_length=256)]
    model: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,128}\Z")] = "rank"
    share: Annotated[float, Meta(ge=0, le=1)] = 0.0
    blend: File | None = None
    golden: File | None = None

    def is_same_as(self, other: "Version") -> bool:
        """Whether both are one version, though with another share."""
        return msgspec.structs.replace(self, share=other.share) == other


class Versions(msgspec.Struct, frozen=True, kw_only=True):
    """What a gateway serves now.

    Attributes:
        generation: rises with every change; the same request again changes nothing.
        started: unix seconds when this gateway began; after a restart only the flags hold, and all sums begin at 0.
        live, shadow, canary: None where there is none.
    """

    generation: int
    started: float
    live: Version
    shadow: Version | None = None
    canary: Version | None = None
