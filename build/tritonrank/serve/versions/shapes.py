"""What the private API for versions says (``tritonrank serve --admin-port``), as both of its sides know it.

    GET    /versions          -> Versions
    PUT    /versions/NAME     {"source": PATH or URL} -> 202 and Version: it is fetched, checked, loaded, warmed, and
                              asked the golden requests; ``state`` says how far it is. Repeating it changes nothing;
                              after a failure it is another try.
    DELETE /versions/NAME     -> 202 and Version: it leaves once its requests in flight are answered
    PUT    /live              {"name": NAME} -> 200 and Live: the ensemble ``rank`` is this version from now on

Each request has ``Authorization: Bearer KEY``. What is refused comes as {"error": {"code": ..., "message": ...}}:
401 (no key or another one), 404 (no such version), 409 (not now: another source has the name, it is not ready, it is
live), 422 (not readable).
"""

import re
from dataclasses import dataclass
from typing import Literal

State = Literal["waiting", "fetching", "loading", "proving", "ready", "failed", "leaving"]
"""waiting: another one is being loaded; proving: golden requests are asked."""
UNDER_WAY: frozenset[State] = frozenset({"waiting", "fetching", "loading", "proving"})

NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?")
"""Of a version: a part of its models' names, of labels and of paths."""
KEY_VARIABLE = "TRITONRANK_ADMIN_KEY"
FEWEST_KEY_CHARACTERS = 16


@dataclass(frozen=True)
class Version:
    """One version as the server has it.

    Attributes:
        name: chosen by whoever asked for it; of what the server started with: the artifact's.
        state: how far it is. ``ready`` only after every golden request was answered as the artifact does in process.
        source: path or URL that it was asked for with.
        artifact: as answers name it; empty until it was read.
        model: the ensemble to ask, ``rank-NAME``.
        golden: file with the golden requests, on the server's machine; None until it was read.
        blend: folder of the blend that belongs to it, on the server's machine.
        catalogue: folder of the catalogue that belongs to it.
        reason: why it failed.
        seconds: that it took to be ready.
        resident_bytes: memory of its processes; 0 where they are not its own (ONNX Runtime or TensorRT in the server).
    """

    name: str
    state: State
    source: str
    artifact: str = ""
    model: str = ""
    golden: str | None = None
    blend: str | None = None
    catalogue: str | None = None
    reason: str | None = None
    seconds: float = 0.0
    resident_bytes: int = 0

    @property
    def is_ready(self) -> bool:
        return self.state == "ready"


@dataclass(frozen=True)
class Versions:
    """All of them.

    Attributes:
        live: the name of the one that ``rank`` is.
        versions: in the order in which they came.
        grpc: HOST:PORT of the server, for a gateway's ``triton``.
    """

    live: str
    versions: tuple[Version, ...]
    grpc: str = ""

    def find(self, name: str) -> Version | None:
        return next((version for version in self.versions if version.name == name), None)


@dataclass(frozen=True)
class Live:
    """What ``rank`` is now.

    Attributes:
        name: of the version.
        before: the one that it was until now.
        recorded: what a restart follows, in words: ``build ID``; None where nothing that outlives the server says so,
            and a restart serves what it was started with.
    """

    name: str
    before: str
    recorded: str | None = None
