"""Versions on this machine, by digest: a server starts from them when the store is away.

    CACHE/versions/<digest>/            a version's folder, whole
    CACHE/versions/<digest>.json        its description in its envelope
    CACHE/stores/<hash of URL and tag>.json    the newest move of that tag that was seen
    CACHE/drafts/<digest>/              what is being pulled

CACHE is TRITONRANK_CACHE, else ``tritonrank`` in XDG_CACHE_HOME or ~/.cache. A tag never goes back: whoever could put
an older, rightly signed move in place of a newer one could make everybody serve what was replaced, so a number that is
lower than one seen before is refused.
"""

import fcntl
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tritonrank.artifacts import whole_file, write_whole
from tritonrank.artifacts.locks import only_writer
from tritonrank.artifacts.store.faults import UnreachableStoreError, UntrustedError
from tritonrank.artifacts.store.index import SHOWN, Index, Move
from tritonrank.artifacts.store.objects import open_objects
from tritonrank.artifacts.store.pull import Pulled, is_whole, pull_version, wanted_files
from tritonrank.artifacts.store.signing import Envelope, Trust, trust_of
from tritonrank.artifacts.store.transfer import console, shown_progress
from tritonrank.artifacts.store.urls import Source, is_store, parse_source
from tritonrank.artifacts.store.versions import KIND, Version, digest_of, read_version
from tritonrank.errors import StoreError, TritonRankError

CACHE = "TRITONRANK_CACHE"
VERSIONS, STORES, DRAFTS = "versions", "stores", "drafts"
MOST_HELD = 4
"""Versions that a process keeps others from pruning: live, shadow, canary, and the one before."""

_held: dict[Path, int] = {}
_holding = threading.Lock()


@dataclass(frozen=True)
class Fetched:
    """A version on this machine."""

    folder: Path
    digest: str
    version: Version
    pulled: Pulled | None = None
    """None: nothing had to be brought"""
    away: str = ""
    """why the store could not be asked; empty where it was"""


def cache_folder() -> Path:
    """Where versions are kept on this machine."""
    if said := os.environ.get(CACHE):
        return Path(said)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "tritonrank"


def fetch(source: str, *, cache: Path | None = None) -> Path:
    """The local folder of an artifact: a path as it is, what a store's URL names pulled and verified.

    Where the store does not answer, the version that was pulled last for that tag is taken, and that is said.

    Args:
        source: a folder, or ``URL[@TAG|@DIGEST]`` (``urls.py``).
        cache: where versions are kept; default: ``cache_folder``.

    Raises:
        StoreError: nothing is there that may be taken.
        StorageError: it cannot be written here.
    """
    if not is_store(source):
        return Path(source)
    found = fetch_version(parse_source(source), cache)
    if found.away:
        console.print(
            f"{source}: {found.away}\nVersion {found.digest[:SHOWN]}, which was pulled before, is taken in its place",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    return found.folder


def fetch_version(
    source: Source, cache: Path | None = None, *, trust: Trust | None = None, ranks: Collection[int] | None = None
) -> Fetched:
    """As ``fetch``, of a store alone, with what was done; ``trust`` is the environment's where it is not given."""
    kept = _Cache(cache or cache_folder(), trust if trust is not None else trust_of())
    try:
        index = Index(open_objects(source.url), kept.trust)
        digest, move = index.find(source)
        kept.require_forward(source, move)
        found = kept.version(index, digest, ranks)
        kept.saw(source, digest, move)
        kept.hold(digest)
        return found
    except UnreachableStoreError as error:
        last = kept.last(source)
        if last is None or (version := kept.whole(last, ranks)) is None:
            raise
        kept.hold(last)
        return Fetched(kept.folder(last, ranks), last, version, away=str(error))


def resolve(source: Source, *, trust: Trust | None = None) -> str:
    """The digest of what a store's URL names now; raises as ``fetch``, also where the store does not answer."""
    return Index(open_objects(source.url), trust if trust is not None else trust_of()).find(source)[0]


def cached_versions(cache: Path | None = None) -> Iterator[tuple[Path, Version]]:
    """Versions that are on this machine, with their folders, newest first; nothing of them is verified."""
    return _Cache(cache or cache_folder(), Trust()).others()


def prune_cache(keep: int, cache: Path | None = None) -> tuple[list[str], int]:
    """Remove versions from this machine, the oldest first, but none that a running process fetched.

    Args:
        keep: so many of those fetched last stay.
        cache: where versions are kept; default: ``cache_folder``.

    Returns:
        The digests that are gone, and how many stay.
    """
    return _Cache(cache or cache_folder(), Trust()).prune(keep)


class _Cache:
    def __init__(self, root: Path, trust: Trust) -> None:
        self._root, self.trust = root, trust

    def folder(self, digest: str, ranks: Collection[int] | None) -> Path:
        """Of a version, or of that part of it that some ranks need."""
        suffix = "" if ranks is None else "-ranks-" + "-".join(map(str, sorted(ranks)))
        return self._root / VERSIONS / f"{digest}{suffix}"

    def version(self, index: Index, digest: str, ranks: Collection[int] | None) -> Fetched:
        """A version, brought from the store where it is not whole here."""
        folder = self.folder(digest, ranks)
        if (version := self.whole(digest, ranks)) is not None:
            return Fetched(folder, digest, version)
        draft = self._root / DRAFTS / folder.name
        with only_writer(draft):
            if (version := self.whole(digest, ranks)) is not None:  # brought by whom we waited for
                return Fetched(folder, digest, version)
            envelope = index.envelope(digest)
            version = read_version(envelope.payload, f"{index.objects.url}: version {digest[:SHOWN]}")
            _set_aside(folder)
            with whole_file(self._envelope(digest)) as file:
                file.write_bytes(envelope.to_bytes())
            total = sum(file.size for file in wanted_files(version, ranks))
            with shown_progress(f"pull {digest[:SHOWN]}", total) as advance:
                pulled = pull_version(
                    index.objects, version, folder, draft, ranks=ranks, others=self.others, advance=advance
                )
        return Fetched(folder, digest, version, pulled)

    def whole(self, digest: str, ranks: Collection[int] | None) -> Version | None:
        """A version that is here undamaged, and signed by whom it has to be; None: it is not.

        Raises:
            UntrustedError: it is here, and nobody who is trusted signed it.
        """
        version = self._described(digest, check=True)
        if version is None or not is_whole(self.folder(digest, ranks), wanted_files(version, ranks)):
            return None
        return version

    def require_forward(self, source: Source, move: Move | None) -> None:
        """Raise StoreError where a tag went back to a number that was passed before."""
        file = self._state(source)
        seen = _read_state(file).get("number", 0)
        if move is not None and isinstance(seen, int) and move.number < seen:
            raise StoreError(
                f"{source}: this tag was at move {seen} before and is at {move.number} now, so somebody removed moves "
                "or put an older copy of the store in place. Where that is meant, set the tag anew (tritonrank store "
                f"tag {source.url} {source.wanted} DIGEST) until it is past {seen}, or forget it here: rm {file}"
            )

    def saw(self, source: Source, digest: str, move: Move | None) -> None:
        """Remember what a tag led to."""
        state = {"source": str(source), "digest": digest, "number": move.number if move else 0}
        if _read_state(self._state(source)) != state:
            write_whole(self._state(source), json.dumps(state) + "\n")

    def last(self, source: Source) -> str | None:
        """What a tag led to when the store was asked last; None: it never was."""
        digest = _read_state(self._state(source)).get("digest")
        return digest if isinstance(digest, str) else None

    def hold(self, digest: str) -> None:
        """Let nobody prune a version while this process lives, or until it has fetched others."""
        file = self._envelope(digest)
        with _holding, suppress(OSError):
            if file in _held:
                return
            descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            _held[file] = descriptor
            while len(_held) > MOST_HELD:
                os.close(_held.pop(next(iter(_held))))

    def prune(self, keep: int) -> tuple[list[str], int]:
        """See ``prune_cache``."""
        files = sorted((self._root / VERSIONS).glob("*.json"), key=lambda file: file.stat().st_mtime_ns)
        gone = [file for file in files[: max(0, len(files) - keep)] if self._remove(file)]
        return [file.stem for file in gone], len(files) - len(gone)

    def _remove(self, file: Path) -> bool:
        """Remove a version; False where somebody holds it."""
        with file.open("rb") as opened:
            try:
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return False
            file.unlink()
            for folder in file.parent.glob(f"{file.stem}*"):
                shutil.rmtree(folder, ignore_errors=True)
        return True

    def _described(self, digest: str, *, check: bool) -> Version | None:
        what = f"{self._envelope(digest)}"
        try:
            envelope = Envelope.from_bytes(self._envelope(digest).read_bytes(), KIND, what)
            if digest_of(envelope.payload) != digest:
                return None
            if check:
                self.trust.signers_of(envelope, what)
            return read_version(envelope.payload, what)
        except UntrustedError:
            raise
        except (OSError, TritonRankError):
            return None

    def others(self) -> Iterator[tuple[Path, Version]]:
        """Versions that are here, newest first."""
        with suppress(FileNotFoundError):
            files = sorted(
                (self._root / VERSIONS).glob("*.json"), key=lambda file: file.stat().st_mtime_ns, reverse=True
            )
            for file in files:
                if (version := self._described(file.stem, check=False)) is not None:
                    yield file.with_suffix(""), version

    def _envelope(self, digest: str) -> Path:
        return self._root / VERSIONS / f"{digest}.json"

    def _state(self, source: Source) -> Path:
        return self._root / STORES / f"{hashlib.sha256(str(source).encode()).hexdigest()[:16]}.json"


def _read_state(file: Path) -> dict[str, object]:
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}


def _set_aside(folder: Path) -> None:
    """Make room where a damaged version lies; a server that has its files open keeps them."""
    if folder.exists():
        aside = folder.with_name(f".{folder.name}.damaged.{os.getpid()}")
        folder.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)
