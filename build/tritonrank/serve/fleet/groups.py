"""The members of one kind: how many there should be, who is ready, and how they end."""

import time
from dataclasses import dataclass, field

from tritonrank.serve.fleet.members import Member, Spec

END_SECONDS = 30.0
"""For all of them together to finish what they have, when the fleet goes down."""


@dataclass
class Group:
    """The members of one kind.

    Attributes:
        spec: what new ones are started from.
        wanted: so many.
        surge: more of them for the moment.
        failures: of members that never became ready, with the revision that they were of, since one did.
    """

    spec: Spec
    wanted: int
    surge: int = 0
    members: list[Member] = field(default_factory=list)
    failures: list[tuple[int, str]] = field(default_factory=list)
    held_until: float = 0.0
    started: int = 0

    @property
    def active(self) -> list[Member]:
        """Those that are not about to end."""
        return [one for one in self.members if not one.is_draining]

    @property
    def ready(self) -> list[Member]:
        return [one for one in self.members if one.state == "ready"]

    def failed(self, spec: Spec) -> list[str]:
        """Why members of this spec did not become ready."""
        return [said for revision, said in self.failures if revision == spec.revision]

    @property
    def is_settled(self) -> bool:
        return len(self.ready) == len(self.members) == self.wanted


def has_new(group: Group, spec: Spec, count: int) -> bool:
    """Whether so many of a spec are ready, or one of them never will be."""
    return sum(one.spec == spec for one in group.ready) >= count or bool(group.failed(spec))


def is_gone(group: Group, member: Member) -> bool:
    """Whether a member has ended."""
    return member not in group.members


def end(members: list[Member]) -> None:
    """End them side by side, and kill what does not."""
    for member in members:
        member.end_now()
    deadline = time.monotonic() + END_SECONDS
    for member in members:
        if not member.wait(deadline - time.monotonic()):
            member.kill()
            member.wait(5.0)
