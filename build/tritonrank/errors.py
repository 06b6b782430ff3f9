"""The errors a user of the pipeline can meet.

    TritonRankError
    ├── RecipeError      a setting is missing or wrong
    ├── DataError        a row or column of the input data
    ├── ArtifactError    a stage's output is missing, damaged or made for something else
    ├── GateError        a step made the ranking worse than its budget allows
    └── ServerError      the server did not start, or died

Every message says what happened, to which file or model, and what to do next. The command line prints
the message without a traceback and exits with ``exit_code``.
"""


class TritonRankError(Exception):
    """Base of all errors that are the user's to mend; anything else is a bug."""

    exit_code = 2


class RecipeError(TritonRankError):
    """A recipe has faults; the message lists all of them with file, line and key."""


class DataError(TritonRankError):
    """Input data has faults; the message lists all of them with file, line and what was expected."""


class ArtifactError(TritonRankError):
    """An artifact is missing, damaged, or does not fit what it is used for."""


class GateError(TritonRankError):
    """A step made the ranking worse than the recipe allows; nothing was published."""

    exit_code = 1


class ServerError(TritonRankError):
    """The server did not start or died; the message ends with the last lines of its log."""
