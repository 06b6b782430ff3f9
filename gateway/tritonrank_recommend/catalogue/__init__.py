"""The items as retrieval sees them: read from what the stage ``catalogue`` wrote, changed while serving."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tritonrank_recommend.catalogue.opened import OpenCatalogue

__all__ = ["open_catalogue"]


def open_catalogue(folder: Path) -> "OpenCatalogue":
    """Open an artifact of the stage ``catalogue``.

    Hashes of small files are checked, and sizes of large ones. Where a file of one source is missing or damaged, the
    others answer, and ``Candidates.missing`` says so.

    Raises:
        CatalogueError: there is no catalogue, or its items cannot be read.
    """
    # Imported here, because the contract beside it is wanted by many who open nothing.
    from tritonrank_recommend.catalogue.layout import read_facts
    from tritonrank_recommend.catalogue.opened import OpenCatalogue

    return OpenCatalogue(folder, *read_facts(folder))
