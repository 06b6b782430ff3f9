"""The fleet itself: so many members as are wanted, each in rotation while it is ready; one at a time is replaced.

Twice or more a second it looks at every member, starts those that are missing and ends those that are too many. Who is
in rotation stands in the file that the gateways read, and at HAProxy. The order is a cluster's:

    start     process, models, golden requests, ready, then in rotation
    end       out of rotation, SIGTERM, served on for the drain, requests in flight finished, gone
    lost      out of rotation at once, another one under a new name
    roll      one more than wanted; when that is ready one of the old ones ends; and again. Tritons first, then gateways

A member that never becomes ready is tried again after a pause that doubles; in a roll it turns the roll around.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

from tritonrank.errors import ServerError, TritonRankError
from tritonrank.serve.fleet.asking import get
from tritonrank.serve.fleet.autoscale import Autoscaler, wish_in
from tritonrank.serve.fleet.balancer import Balancer, Place, Target
from tritonrank.serve.fleet.groups import Group, end, has_new, is_gone
from tritonrank.serve.fleet.members import START_SECONDS, Kind, Member, Spec
from tritonrank.serve.fleet.plan import Plan, check_count, fixed_repository, gateway_spec, triton_spec
from tritonrank.serve.fleet.state_folder import GATEWAYS, TRITON_ADMINS, TRITONS, StateFolder
from tritonrank.serve.server_processes import Part

LOOK_SECONDS = 0.2
AUTOSCALE_SECONDS = 1.0
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 30.0
SETTLE_SECONDS = 600.0
"""For one command to be done."""


class Fleet:
    """Runs until it is told to stop; used from one event loop.

    Args:
        plan: what it is to be.
        folder: taken already.
        tell: is told each event, as a line for people.
    """

    def __init__(self, plan: Plan, folder: StateFolder, tell: Callable[[str], None]) -> None:
        repository = fixed_repository(plan.source)
        self.plan, self.repository = plan, repository
        self._folder, self._tell = folder, tell
        self.groups: dict[Kind, Group] = {
            "triton": Group(triton_spec(plan, repository), plan.replicas),
            "gateway": Group(gateway_spec(plan, repository, folder.tritons), plan.gateways),
        }
        self.balancer = Balancer(folder.path, plan.port, plan.grpc_port, plan.host)
        self._written: dict[str, list[str]] = {}
        self._recorded: list[Part] = []
        self._changing = asyncio.Lock()
        self.stopping = asyncio.Event()

    def members(self) -> Iterator[Member]:
        """All, Tritons first."""
        for group in self.groups.values():
            yield from group.members

    async def run(self) -> None:
        """Start everything, watch over it, and end it in order once ``stopping`` is set.

        Raises:
            ServerError: HAProxy does not start.
        """
        autoscaling: asyncio.Task[None] | None = None
        try:
            self._write(TRITONS, [])
            self.balancer.start()
            await self.balancer.wait()
            if self.plan.autoscale is not None:
                autoscaler = Autoscaler(self.plan.autoscale, self.plan.down_after_seconds)
                autoscaling = asyncio.create_task(self._autoscale(autoscaler))
            while not self.stopping.is_set():
                await self._look()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self.stopping.wait(), LOOK_SECONDS)
        finally:
            if autoscaling is not None:
                autoscaling.cancel()
            await self._end_all()

    async def scale(self, kind: Kind, count: int) -> None:
        """So many members from here on; returns when they are ready, and those too many have ended.

        Raises:
            ServerError: they cannot be.
        """
        check_count(f"scale {kind}", count)
        async with self._changing:
            self._resize(kind, count, "asked")
            await self._settled(kind)

    async def drain(self, name: str) -> None:
        """End one member in order, and start another in its place; returns when that is ready.

        Raises:
            ServerError: there is no such member.
        """
        member = self._named(name)
        async with self._changing:
            self._retire(member, "asked")
            await self._settled(member.spec.kind)

    async def kill(self, name: str) -> None:
        """Kill one as if its machine were gone; returns when another one is ready.

        Raises:
            ServerError: there is no such member.
        """
        member = self._named(name)
        self._note("killed", member)
        member.kill()
        await self._until(lambda: member not in list(self.members()), f"{name} is gone")
        await self._settled(member.spec.kind)

    async def roll(self, source: str) -> None:
        """Replace all members, one by one, by those that serve something else, or the same again.

        Raises:
            TritonRankError: nothing can be served there, or it does not become ready: then what was before serves.
        """
        repository = await asyncio.to_thread(fixed_repository, source or self.plan.source)
        async with self._changing:
            before = {kind: group.spec for kind, group in self.groups.items()}
            revision = 1 + max(spec.revision for spec in before.values())
            after: dict[Kind, Spec] = {
                "triton": triton_spec(self.plan, repository, revision),
                "gateway": gateway_spec(self.plan, repository, self._folder.tritons, revision),
            }
            self._note("roll", to=str(repository), revision=revision)
            try:
                for kind, spec in after.items():
                    await self._replace_all(kind, spec)
            except ServerError as error:
                self._note("rolled back", reason=str(error))
                for kind, spec in before.items():
                    await self._replace_all(kind, spec)
                raise
            self.repository = repository
            self._note("rolled", to=str(repository), revision=revision)

    def status(self) -> dict[str, Any]:
        """What there is now, in JSON's types."""
        now = time.monotonic()
        rows = [
            {
                "name": one.name,
                "kind": one.spec.kind,
                "state": one.state,
                "pid": one.pid,
                "address": one.address,
                "ports": one.ports,
                "revision": one.spec.revision,
                "repository": str(one.spec.repository),
                "seconds": round(now - one.began, 1),
                "log": str(one.log),
            }
            for one in self.members()
        ]
        return {
            "url": f"http://{self.balancer.host}:{self.balancer.port}",
            "grpc_url": f"grpc://{self.balancer.host}:{self.balancer.grpc_port}",
            "haproxy": self.balancer.pid,
            "serves": str(self.repository),
            "wanted": {kind: group.wanted for kind, group in self.groups.items()},
            "is_settled": all(group.is_settled for group in self.groups.values()),
            "autoscale": None if self.plan.autoscale is None else list(self.plan.autoscale),
            "failures": [said for group in self.groups.values() for _, said in group.failures],
            "members": rows,
        }

    async def _look(self) -> None:
        """One look at everything, and what follows from it."""
        for member in list(self.members()):
            before = member.state
            await member.look()
            if ending := member.ended():
                self._gone(member, ending)
            elif member.state != before:
                self._note(member.state, member, after_seconds=round(time.monotonic() - member.began, 2))
                if member.state == "ready":
                    self.groups[member.spec.kind].failures.clear()
            elif member.state == "starting" and time.monotonic() - member.began > START_SECONDS:
                member.kill()
        for kind, group in self.groups.items():
            self._fill(kind, group)
        await self._publish()
        for member in list(self.members()):
            if member.is_draining:
                member.tell_to_end()

    def _fill(self, kind: Kind, group: Group) -> None:
        """Start those that are missing, end those that are too many, the newest first."""
        for _ in range(group.wanted + group.surge - len(group.active)):
            if time.monotonic() < group.held_until:
                break
            group.started += 1
            name = f"{kind}-{group.started}"
            try:
                member = Member(name, group.spec, self._folder.path / name, self.plan.drain_seconds)
            except (OSError, TritonRankError) as error:
                self._failed(group, group.spec.revision, f"{name}: {error}")
                break
            group.members.append(member)
            self._note("starting", member)
        for member in reversed(group.active[group.wanted + group.surge :]):
            self._retire(member, "too many")

    def _gone(self, member: Member, ending: str) -> None:
        group = self.groups[member.spec.kind]
        group.members.remove(member)
        if member.is_draining:
            self._note("ended", member, ending=ending)
        elif member.was_ready:
            self._note("lost", member, ending=ending)
        else:
            said = f"{member.name} ended with {ending} before it was ready: {member.last_lines()}"
            self._failed(group, member.spec.revision, said)
        member.forget()

    def _failed(self, group: Group, revision: int, said: str) -> None:
        group.failures.append((revision, said))
        pause = FIRST_PAUSE_SECONDS * 2 ** min(len(group.failures) - 1, 10)
        group.held_until = time.monotonic() + min(LONGEST_PAUSE_SECONDS, pause)
        self._note("failed", reason=said)

    def _retire(self, member: Member, reason: str) -> None:
        if not member.is_draining:
            member.is_draining = True
            self._note("draining", member, reason=reason)

    def _resize(self, kind: Kind, count: int, reason: str) -> None:
        group = self.groups[kind]
        if group.wanted != count:
            self._note("scale", kind=kind, was=group.wanted, wanted=count, reason=reason)
            group.wanted = count

    async def _replace_all(self, kind: Kind, spec: Spec) -> None:
        """One member after the other.

        Raises:
            ServerError: a new one ended before it was ready.
        """
        group = self.groups[kind]
        group.spec = spec
        group.failures.clear()
        try:
            while old := [one for one in group.active if one.spec != spec]:
                group.surge = 1
                wanted_new = max(1, group.wanted + 1 - len(old))
                await self._until(partial(has_new, group, spec, wanted_new), f"another {kind} is ready")
                if failed := group.failed(spec):
                    raise ServerError(failed[-1])
                group.surge = 0
                for member in [one for one in group.active if one.spec != spec][:1]:
                    self._retire(member, "replaced")
                    await self._until(partial(is_gone, group, member), f"{member.name} ends")
        finally:
            group.surge = 0

    async def _publish(self) -> None:
        """Tell gateways and HAProxy who is in rotation, and the folder who runs."""
        tritons, gateways = self.groups["triton"].ready, self.groups["gateway"].ready
        self._write(TRITONS, [one.address for one in tritons])
        self._write(GATEWAYS, [one.private_address for one in gateways])
        self._write(TRITON_ADMINS, [one.private_address for one in tritons if one.private_address])
        targets: dict[Place, Target] = {
            Place(one.spec.kind, one.name, one.address, one.check_port): "ready" if one.state == "ready" else "drain"
            for one in self.members()
            if one.was_ready
        }
        try:
            if self.balancer.ended():
                self._note("haproxy ended", starts=self.balancer.starts)
                self.balancer.start()
                await self.balancer.wait()
            await self.balancer.show(targets)
        except (OSError, ServerError) as error:
            self._note("haproxy failed", reason=str(error))
        parts = [one.part for one in self.members() if one.part is not None]
        if haproxy := Part.of("haproxy", self.balancer.pid):
            parts.append(haproxy)
        if parts != self._recorded:
            self._folder.record(parts)
            self._recorded = parts

    def _write(self, file: str, addresses: list[str]) -> None:
        if addresses != self._written.get(file):
            self._folder.write_addresses(file, addresses)
            self._written[file] = addresses

    async def _autoscale(self, autoscaler: Autoscaler) -> None:
        while True:
            await asyncio.sleep(AUTOSCALE_SECONDS)
            gateways, group = self.groups["gateway"].ready, self.groups["triton"]
            if not gateways or self._changing.locked():
                continue
            pages = await asyncio.gather(*(get(one.check_port, "/metrics") for one in gateways))
            wishes = [wish_in(page.decode(errors="replace")) for status, page in pages if status == 200]
            count = autoscaler.look(time.monotonic(), wishes, group.wanted)
            if count != group.wanted and not self._changing.locked():
                self._resize(
                    "triton", count, "wished: " + ", ".join("?" if one is None else f"{one:g}" for one in wishes)
                )

    async def _end_all(self) -> None:
        """HAProxy takes no more and finishes; then the gateways end, then the Tritons."""
        await self.balancer.stop()
        for kind in ("gateway", "triton"):
            members = self.groups[kind].members
            await asyncio.to_thread(end, members)
            for member in members:
                member.forget()
        self._note("down")

    def _named(self, name: str) -> Member:
        for member in self.members():
            if member.name == name and not member.is_draining:
                return member
        known = ", ".join(member.name for member in self.members())
        raise ServerError(f"{name}: no such member; there are {known}")

    async def _settled(self, kind: Kind) -> None:
        group = self.groups[kind]
        await self._until(lambda: group.is_settled, f"{group.wanted} of kind {kind} are ready")

    async def _until(self, is_so: Callable[[], bool], what: str) -> None:
        ends = time.monotonic() + SETTLE_SECONDS
        while not is_so():
            if self.stopping.is_set():
                raise ServerError("the fleet goes down")
            if time.monotonic() > ends:
                raise ServerError(f"not within {SETTLE_SECONDS:.0f} s: {what}. See it with: tritonrank fleet status")
            await asyncio.sleep(LOOK_SECONDS / 2)

    def _note(self, event: str, member: Member | None = None, **figures: Any) -> None:
        if member is not None:
            figures = {"member": member.name, "revision": member.spec.revision} | figures
        self._folder.note(event, **figures)
        told = " ".join(f"{name}={value}" for name, value in figures.items() if name not in ("member", "revision"))
        self._tell(" ".join(word for word in (member.name if member else "", event, told) if word))
