"""The shelf of ``tritonrank serve --admin-port``: what a source is, and what remembers which version is live."""

from pathlib import Path

from tritonrank.artifacts.builds import recorded_builds
from tritonrank.artifacts.promotions import promote
from tritonrank.artifacts.store import fetch
from tritonrank.errors import ArtifactError
from tritonrank.serve.servable import repository_of
from tritonrank.serve.serving import CheckedRepository
from tritonrank.serve.supervisor import Succession
from tritonrank.serve.versions.shelf import VersionShelf

BY = "live"
"""What the history of promotions calls it."""


def open_shelf(first: CheckedRepository, root: Path | None, succession: Succession | None) -> VersionShelf:
    """The shelf for a server that is about to start.

    Args:
        first: what it starts with.
        root: the recipe's folder, whose promotions are followed; None where none are.
        succession: says when something else was promoted.
    """

    # The folder itself, so that it can be loaded again once another build is served.
    source = str(first.folder.resolve())
    return VersionShelf(first, source, open_source, lambda repository: remember(root, repository), succession)


def remember(root: Path | None, repository: Path) -> str | None:
    """Promote the build that a repository belongs to, so that a restart serves it; says which it is.

    Args:
        root: the recipe's folder; None: nobody follows its promotions.
        repository: what is live now.

    Returns:
        None where the repository is none of its builds.

    Raises:
        ArtifactError: the build is damaged.
        StorageError: the link cannot be written.
    """
    for build in recorded_builds(root) if root else ():
        if build.repository.resolve() == repository.resolve():
            promote(build.root, build.name, BY)
            return f"build {build.name}"
    return None


def open_source(source: str) -> CheckedRepository:
    """What can be served of a path or a model store's URL.

    Raises:
        ArtifactError: there is nothing that can be served.
        StoreError: the store does not have it.
    """
    if "://" not in source and not Path(source).is_absolute():
        raise ArtifactError(f"{source}: expected a path that begins with /, or a model store's URL")
    return CheckedRepository(repository_of(fetch(source)))
