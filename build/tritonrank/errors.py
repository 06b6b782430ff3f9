"""The errors a user of the pipeline can meet.

    TritonRankError
    ├── RecipeError      a setting is missing or wrong
    ├── DataError        a row or column of the input data
    ├── ArtifactError    a stage's output is missing, damaged or made for something else
    ├── StorageError     a file or folder cannot be read or written
    ├── StoreError       the model store cannot be reached, refuses, or holds what is not to be trusted
    ├── GateError        a step made the ranking worse than its budget allows
    └── ServerError      the server did not start, or died

Every message says what happened, to which file or model, and what to do next. The command line prints
the message without a traceback and exits with ``exit_code``.
"""

import errno
import os
import re
from pathlib import Path

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
NEXT_STEPS = {
    FULL: "Free some space, or write elsewhere: --artifacts FOLDER",
    frozenset({errno.EACCES, errno.EPERM, errno.EROFS}): "Give this user access to it, or write elsewhere: "
    "--artifacts FOLDER",
    frozenset({errno.ENOENT, errno.ESTALE}): "It was removed meanwhile, or the folder around it: run the command again",
    frozenset({errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENOTEMPTY}): "Something else is in its place: move it "
    "away, or write elsewhere: --artifacts FOLDER",
    frozenset({errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ}): "Choose another name",
    frozenset({errno.ELOOP, errno.EIO, errno.EXDEV, errno.EBUSY, errno.ETXTBSY}): "Look at the disk and its links",
    frozenset({errno.EMFILE, errno.ENFILE}): "Allow more open files: ulimit -n 4096",
}
"""What to do, by the number of the operating system's error. Others, those of connections among them, are no matter of
files."""


class TritonRankError(Exception):
    """Base of all errors that are the user's to mend; anything else is a bug."""

    exit_code = 2


class RecipeError(TritonRankError):
    """A recipe has faults; the message lists all of them with file, line and key."""


class DataError(TritonRankError):
    """Input data has faults; the message lists all of them with file, line and what was expected."""


class ArtifactError(TritonRankError):
    """An artifact is missing, damaged, or does not fit what it is used for."""


class StorageError(TritonRankError):
    """A file or folder cannot be read or written: no space, no permission, something else in its place."""


class StoreError(TritonRankError):
    """A model store (docs/store.md) cannot be reached, refuses, is damaged, or holds what is not to be trusted."""


class GateError(TritonRankError):
    """A step made the ranking worse than the recipe allows; nothing was published."""

    exit_code = 1


class ServerError(TritonRankError):
    """The server did not start or died; the message ends with the last lines of its log."""


def storage_error(error: BaseException, file: Path | None = None) -> StorageError | None:
    """What an error of the operating system, or of a library that met one, says of which file.

    Libraries outside Python wrap such errors in types of their own and keep the number in the text; of these only a
    full disk is recognised.

    Args:
        error: what was raised.
        file: what was being written, for errors that do not name a file.

    Returns:
        The error to raise in its place; None where it is about something else, so that a bug keeps its traceback.
    """
    code, name = _number_and_file(error)
    steps = [step for codes, step in NEXT_STEPS.items() if code in codes]
    unnamed = {errno.ENOENT: "the folder that this command runs in"} | dict.fromkeys(
        FULL, "a file that was being written"
    )
    if not steps or code is None or (name is None and file is None and code not in unnamed):
        return None
    place = name or (str(file) if file else unnamed[code])
    return StorageError(f"{place}: {os.strerror(code)}. {steps[0]}")


def _number_and_file(error: BaseException) -> tuple[int | None, str | None]:
    if isinstance(error, TritonRankError | ConnectionError | ChildProcessError | TimeoutError | InterruptedError):
        return None, None
    if isinstance(error, OSError) and error.errno is not None:
        written = error.filename2 if error.errno in FULL else None  # copying: the first name is what was read
        name = written or (None if error.filename2 and error.errno in FULL else error.filename)
        return error.errno, None if name is None or isinstance(name, int) else os.fsdecode(name)
    numbers = {int(number) for number in re.findall(r"(?:os error |\[Errno )(\d+)", str(error))}
    if full := sorted(numbers & FULL):
        return full[0], None
    # PyTorch's writer tells neither number nor reason.
    return (errno.ENOSPC if "inline_container.cc" in str(error) and "unexpected pos" in str(error) else None), None
