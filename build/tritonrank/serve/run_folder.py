"""The folder that a server has to itself while it runs: where it lies, and the repository as the server sees it.

Triton takes some characters of a path amiss (with a blank in ``--backend-directory`` or ``--model-repository`` a stub
waits for ever), so whatever the user's folders are called, the server gets a run folder whose path is plain, and the
repository as links below it. The links also keep out what the hash check does not cover: Python looks for byte code
beside the source that it imports, and beside a link there is none but what this very server has compiled.
"""

import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from tritonrank.errors import ServerError

BYTE_CODE_FOLDER = "__pycache__"
PLAIN_PATH = re.compile(r"/[A-Za-z0-9/._+-]*")
LONGEST_PARENT = 80
"""Characters; a socket in the folder may have a path of 107, and its own name needs room."""
OTHER_PLACES = (Path("/tmp"), Path("/var/tmp"))


class MoreModels(Protocol):
    """Models beside those of the repository, which come and go while the server runs (``versions/``)."""

    def lay_out(self, models: Path) -> Sequence[str]:
        """Put what belongs there into the server's folder of models; the names of all that are loaded at the start."""
        ...


def make_run_folder(prefix: str, *, holds_programs: bool) -> Path:
    """A new folder for this user alone, in TMPDIR, or elsewhere where a server cannot live there.

    Args:
        prefix: its name begins so.
        holds_programs: a program will be started from it.

    Raises:
        ServerError: there is no place for it; with what is wrong with each.
    """
    faults = []
    for place in dict.fromkeys([_temporary_place(), *OTHER_PLACES]):
        if fault := _fault_of(place, holds_programs):
            faults.append(f"{_shown(place)}: {fault}")
            continue
        try:
            return Path(tempfile.mkdtemp(prefix=prefix, dir=place))
        except OSError as error:
            faults.append(f"{_shown(place)}: {error.strerror}")
    raise ServerError(
        "the server's run folder can be made nowhere:\n"
        + "\n".join(f"  {fault}" for fault in faults)
        + "\nSet TMPDIR to a folder that can be written, with a short and plain path, such as: TMPDIR=/dev/shm"
    )


def link_repository(repository: Path, target: Path) -> None:
    """Lay out ``repository`` in ``target`` as folders of links, without byte code.

    A model without Python code is one link: engines that read weights beside their graph see plain files.
    """
    target.mkdir()
    for model in repository.resolve().iterdir():
        if model.name == BYTE_CODE_FOLDER:
            continue
        if model.is_dir() and any(model.rglob("*.py")):
            _link_files(model, target / model.name)
        else:
            (target / model.name).symlink_to(model)


def _link_files(source: Path, target: Path) -> None:
    target.mkdir()
    for entry in source.iterdir():
        if entry.name == BYTE_CODE_FOLDER:
            continue
        if entry.is_dir():
            _link_files(entry, target / entry.name)
        else:
            (target / entry.name).symlink_to(entry)


def _temporary_place() -> Path:
    try:
        return Path(tempfile.gettempdir())
    except OSError:  # no temporary folder at all
        return OTHER_PLACES[0]


def _fault_of(place: Path, holds_programs: bool) -> str | None:
    if not PLAIN_PATH.fullmatch(str(place)):
        return "its path has characters that Triton takes amiss"
    if len(str(place)) > LONGEST_PARENT:
        return f"its path is longer than {LONGEST_PARENT} characters"
    try:
        forbids_programs = bool(os.statvfs(place).f_flag & os.ST_NOEXEC)
    except OSError as error:
        return error.strerror
    return "no program can be started from it (noexec)" if holds_programs and forbids_programs else None


def _shown(place: Path) -> str:
    return os.fsencode(place).decode(errors="replace")
