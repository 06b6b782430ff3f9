"""Versions take roles and leave them: opened and checked first, closed when the last of their requests is done."""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from tritonrank_client import RankError
from tritonrank_recommend.blend.interface import Blend
from tritonrank_recommend.engine.artifact_folder import ArtifactFolder

from tritonrank_gateway.versions.arm import Arm
from tritonrank_gateway.versions.backend_metrics import Opens
from tritonrank_gateway.versions.checking import READY_SECONDS, NotTakenError, check
from tritonrank_gateway.versions.versions import Versions
from tritonrank_gateway.versions.wire import Role, Version

FINISH_SECONDS = 15.0
LOG = logging.getLogger("tritonrank_gateway.versions")


class Changing:
    """Changes which versions serve, one change after the other. Used from one event loop.

    Args:
        versions: that serve.
        opener: makes what ranks for one, and tells of the parts of those that serve.
        has_blend: whether anything is recommended here; else no version's blend is opened.
        finish_seconds: that the requests in flight of a version that goes may take.
        promoted: called with what is live from now on, within the same turn of the event loop.
        ready_seconds: that a version may take until it answers.
    """

    def __init__(
        self,
        versions: Versions,
        opener: Opens,
        *,
        has_blend: bool = False,
        promoted: Callable[[Arm], None] = lambda arm: None,
        ready_seconds: float = READY_SECONDS,
        finish_seconds: float = FINISH_SECONDS,
    ) -> None:
        self.versions, self._opener = versions, opener
        self._has_blend, self._promoted, self._ready_seconds = has_blend, promoted, ready_seconds
        self._finish_seconds = finish_seconds
        self._turn = asyncio.Lock()

    async def put(self, role: Role, version: Version) -> None:
        """A version takes a role; the one before is closed when this returns. The same again changes nothing.

        Raises:
            NotTakenError: it may not; what serves stays.
        """
        async with self._turn:
            current = self.versions.arm(role)
            if current is not None and current.version == version:
                return
            if current is not None and current.version.is_same_as(version):
                self.versions.share(role, version)
                return
            arm = await self._arm(role, version)
            before = self.versions.take(role, arm)
            self._opener.metrics.now[role] = arm.opened
            if role == "live":
                self._promoted(arm)
            LOG.warning("%s: version %s (%s)", role, version.name, version.model)
        if before is not None:
            await before.finish(self._finish_seconds)

    async def delete(self, role: Role) -> None:
        """Nobody has a role any more; whoever had it is closed when this returns."""
        async with self._turn:
            before = self.versions.leave(role)
            self._opener.metrics.now.pop(role, None)
        if before is not None:
            LOG.warning("%s: version %s is gone", role, before.version.name)
            await before.finish(self._finish_seconds)

    async def _arm(self, role: Role, version: Version) -> Arm:
        """A version that has shown that it is well."""
        try:
            opened = self._opener.open(version, role)
        except ValueError as error:
            raise NotTakenError(str(error)) from error
        try:
            blend = await asyncio.to_thread(_blend, version) if self._has_blend else None
            await check(version, opened, self._ready_seconds)
            arm = Arm(version, opened, blend)
            await arm.model.get()
        except (NotTakenError, RankError, ValueError) as error:
            await opened.backend.close()
            raise NotTakenError(str(error)) from error
        except BaseException:
            await opened.backend.close()
            raise
        return arm


def _blend(version: Version) -> ArtifactFolder[Blend] | None:
    if version.blend is None:
        return None
    try:
        from tritonrank_recommend.blend import open_blend
    except ImportError as error:
        raise NotTakenError(f"blend: {error}; pip install 'tritonrank[recommend]', and start again") from error
    folder: ArtifactFolder[Blend] = ArtifactFolder(Path(version.blend), open_blend, "blend")
    if folder.opened is None:
        raise NotTakenError(f"blend: {version.blend} is {folder.problem}; name the folder blend of the version's build")
    return folder
