"""Serve what a model store's URL names: which folder it is on this machine, and what it follows."""

from dataclasses import dataclass
from pathlib import Path

from tritonrank.artifacts.store.cache import fetch_version
from tritonrank.artifacts.store.index import SHOWN
from tritonrank.artifacts.store.urls import is_store, parse_source
from tritonrank.errors import StoreError
from tritonrank.serve.succession import Followed, StoreTag


@dataclass(frozen=True)
class Named:
    """What was named to be served."""

    folder: Path
    """on this machine"""
    followed: Followed | None = None
    """says what is to be served later; None: the folder's own link, if it has one"""
    notes: tuple[str, ...] = ()
    """for the user, each in one line"""
    model: str = ""
    """as the store calls it; empty where a folder was named"""


def served_source(named: str, build: str | None = None) -> Named:
    """A folder as it is; of a store's URL the version that it names, fetched and verified.

    Args:
        named: a folder, or ``URL[@TAG|@DIGEST]``; a tag is followed.
        build: of a recipe's folder, the one to serve.

    Raises:
        StoreError: see ``fetch``; or a build was named, too.
    """
    if not is_store(named):
        return Named(Path(named))
    if build is not None:
        raise StoreError(f"{named}: a store's version is named by its URL, not by --build {build}: URL@TAG, URL@DIGEST")
    source = parse_source(named)
    found = fetch_version(source)
    notes = [f"version {found.digest[:SHOWN]} of {found.version.model}: {found.version.name}"]
    if found.away:
        notes.append(f"the store does not answer, so this is what was fetched last: {found.away}")
    return Named(found.folder, None if source.is_digest else StoreTag(source), tuple(notes), found.version.model)
