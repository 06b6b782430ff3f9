"""Builds that outlive a session of tests, for as long as nothing changes that they are made of.

The name of a kept folder ends with a hash of every source that makes it, of the versions of everything installed, and
of what the processor can do, because the kernels of INT8 depend on it. Whatever changes, the next session builds anew.
A session works on copies, so nothing that a test does reaches the next one. Of several processes that test at once
(``pytest -n 2``), one builds and the others wait for it.
"""

import fcntl
import hashlib
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from importlib.metadata import distributions
from pathlib import Path

TESTS = Path(__file__).parent
SOURCES = ("build", "model_repository", "clients")
MAKERS = ("conftest.py", "kept_builds.py", "tiny_models.py", "tiny.yaml")


def kept(root: Path, name: str, make: Callable[[Path], object]) -> Path:
    """The folder that ``make`` fills, now or in an earlier session; nobody may change it.

    Args:
        root: what outlives sessions.
        name: of the folder, among those in ``root``.
        make: gets an empty folder. What it writes must not name that folder, which moves.
    """
    with (root / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the system gives it back when the process ends, in whatever way
        folder = root / f"{name}-{state_of_everything()}"
        if folder.is_dir():
            return folder
        for outdated in root.glob(f"{name}-*"):
            shutil.rmtree(outdated, ignore_errors=True)
        scratch = Path(tempfile.mkdtemp(dir=root, prefix="making-"))
        try:
            make(scratch)
            scratch.chmod(0o755)
            scratch.rename(folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return folder


@cache
def state_of_everything() -> str:
    """A hash of sources, versions and processor."""
    digest = hashlib.sha256()
    for part in _everything():
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()[:16]


def _everything() -> Iterator[bytes]:
    files = [path for folder in SOURCES for path in (TESTS.parent / folder).rglob("*")]
    for path in sorted([*files, *(TESTS / name for name in MAKERS)]):
        if path.is_file() and path.suffix != ".pyc":
            yield str(path.relative_to(TESTS.parent)).encode()
            yield path.read_bytes()
    yield from sorted(f"{one.name}=={one.version}".encode() for one in distributions())
    yield f"{sys.version} {platform.machine()}".encode()
    cpuinfo = Path("/proc/cpuinfo")
    yield next((line for line in cpuinfo.read_bytes().splitlines() if line.startswith(b"flags")), b"")
