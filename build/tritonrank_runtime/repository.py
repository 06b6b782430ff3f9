"""Where the files of a repository's models lie: in one folder, or in those of three steps."""

from pathlib import Path
from typing import NamedTuple

IDENTITY_FILE = "artifact.json"
"""What answers name as their artifact."""


class ModelFolders(NamedTuple):
    """The version folders of an assembled ranker; all the same where one model does every step."""

    texts: Path
    """tokenizer and text rules"""
    scorer: Path
    """graphs or weights"""
    answers: Path
    """the identity"""

    @property
    def text_config(self) -> Path:
        """config.pbtxt of the model that reads texts."""
        return self.texts.parent / "config.pbtxt"


def model_folders(repository: Path) -> ModelFolders:
    """Of a repository whose models' folders are there."""
    ranker = repository / "ranker" / "1"
    if ranker.is_dir():
        return ModelFolders(ranker, ranker, ranker)
    return ModelFolders(*(repository / name / "1" for name in ("tokenize", "score", "select")))
