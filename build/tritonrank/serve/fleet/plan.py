"""What a fleet is to be: settings, and what is served as flags of its members."""

import re
from dataclasses import dataclass
from pathlib import Path

from tritonrank.artifacts.store import fetch
from tritonrank.errors import ServerError
from tritonrank.serve.fleet.autoscale import Bounds
from tritonrank.serve.fleet.members import Spec
from tritonrank.serve.gateway_child import missing_packages
from tritonrank.serve.recommending import INSTALL, NEEDED, Recommending, has_catalogue
from tritonrank.serve.servable import repository_of
from tritonrank.serve.serving import GOLDEN_FILE, REFERENCE_FILE

MOST_MEMBERS = 64
ADVISE = ("--adapt", "advise")
"""So that gateways measure what they wish for; lists are ranked in full all the same."""


@dataclass(frozen=True)
class Plan:
    """Settings of a fleet.

    Attributes:
        source: what is served at first: artifacts/<recipe>, a repository folder, or a model store's URL.
        replicas: Tritons.
        gateways: before them.
        host, port, grpc_port: where HAProxy listens, HTTP and gRPC.
        drain_seconds: that a member serves on after it was told to end, until all who send have heard of it.
        autoscale: Tritons by the gateways' wish; None: so many as are asked for.
        down_after_seconds: see ``Autoscaler``.
        store: of users, for builds with a catalogue; "": the recipe's own.
        gateway_flags: more of them.
        has_admin: whether Tritons listen for versions, with the key of TRITONRANK_ADMIN_KEY.
    """

    source: str
    replicas: int = 3
    gateways: int = 2
    host: str = "127.0.0.1"
    port: int = 8080
    grpc_port: int = 8001
    drain_seconds: float = 2.0
    autoscale: Bounds | None = None
    down_after_seconds: float = 60.0
    store: str = ""
    gateway_flags: tuple[str, ...] = ()
    has_admin: bool = False

    def __post_init__(self) -> None:
        for name, value in (("--replicas", self.replicas), ("--gateways", self.gateways)):
            check_count(name, value)
        if self.drain_seconds < 1.5:
            # Gateways read each second where Tritons are.
            raise ServerError(f"--drain-s {self.drain_seconds:g}: expected 1.5 or more, as gateways look once a second")


def check_count(name: str, value: int) -> None:
    """Whether so many members can be wanted.

    Raises:
        ServerError: they are too few or too many.
    """
    if not 1 <= value <= MOST_MEMBERS:
        raise ServerError(f"{name} {value}: expected 1 to {MOST_MEMBERS}")


def fixed_repository(source: str) -> Path:
    """The repository that a source leads to now. A fleet stays with it: followers of a promotion would all restart at
    once, and ``fleet roll`` replaces them one by one.

    Raises:
        ArtifactError: nothing can be served there.
    """
    return repository_of(fetch(source)).resolve()


def triton_spec(plan: Plan, repository: Path, revision: int = 1) -> Spec:
    """Of the Tritons that serve a repository."""
    return Spec("triton", repository, (), revision, plan.has_admin)


def gateway_spec(plan: Plan, repository: Path, tritons: Path, revision: int = 1) -> Spec:
    """Of the gateways before them.

    Args:
        tritons: the file with their addresses.

    Raises:
        ServerError: a package is missing that the gateway needs.
    """
    missing = missing_packages(NEEDED if has_catalogue(repository) else ()) or missing_packages()
    if missing:
        raise ServerError(f"{', '.join(missing)} not installed: {INSTALL}")
    recommends = Recommending.of(repository, plan.store)
    flags = ["--triton", f"file:{tritons}", "--model-name", name_of(repository), "--no-access-log"]
    flags += ["--golden", str(repository / GOLDEN_FILE)]
    if (repository / REFERENCE_FILE).is_file():
        flags += ["--reference", str(repository / REFERENCE_FILE)]
    flags += recommends.flags(repository)
    if plan.autoscale is not None and "--adapt" not in plan.gateway_flags:
        flags += ADVISE
    return Spec("gateway", repository, (*flags, *plan.gateway_flags), revision)


def name_of(repository: Path) -> str:
    """The recipe's, as callers may call the model."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", Recommending.of(repository).root.resolve().name) or "rank"
