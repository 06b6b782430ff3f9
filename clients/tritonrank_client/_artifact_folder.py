"""A folder with an artifact: what it is, whether it is whole, and what its configurations say."""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ._options import DEFAULT_MODEL

MANIFEST = "manifest.json"
TEXT_RULES = "text.json"
REPOSITORY = "repository"
SERVED = "served"
ASSEMBLE = "assemble"
RANKER = "ranker"
STEPS = ("tokenize", "score", "select")
"""The models of a repository whose steps are apart: of TensorRT plans, of shards, and of older releases."""
ANY = -1
INPUTS = (
    ("query", "BYTES", 1),
    ("history", "BYTES", ANY),
    ("items", "BYTES", ANY),
    ("item_ids", "BYTES", ANY),
    ("top_k", "INT32", 1),
    ("max_item_tokens", "INT32", 1),
    ("truncate_left", "BOOL", 1),
    ("strict", "BOOL", 1),
)
OUTPUTS = (
    ("indices", "INT32", ANY),
    ("scores", "FP32", ANY),
    ("artifact", "BYTES", 1),
    ("item_tokens", "INT32", ANY),
    ("truncated", "BOOL", ANY),
    ("context_tokens", "INT32", 1),
    ("unknown_tokens", "INT32", 2),
    ("unscored", "BYTES", ANY),
    ("fields", "BYTES", 1),
)
"""Name, datatype and size of what a server of the same release would declare, for a graph that has no config."""


@dataclass(frozen=True, slots=True)
class ArtifactFolder:
    """An artifact on this machine.

    Attributes:
        path: its folder.
        is_repository: assembled, with the runtime beside the models; else one stage's graph and texts.
    """

    path: Path
    is_repository: bool

    @classmethod
    def find(cls, target: Path) -> "ArtifactFolder":
        """The artifact that a folder is or, for a build, holds as its repository: of several builds the one that is
        served, as `tritonrank serve` would choose.

        Raises:
            ValueError: there is none; the message says what to name instead.
        """
        if not target.is_dir():
            raise ValueError(f"{target}: no such folder; name a build (artifacts/NAME), its repository, or a URL")
        # Where the link points to now: it may move while the artifact is being read.
        served = (target / SERVED).resolve() if (target / SERVED).is_symlink() else target
        holders = [folder / REPOSITORY for folder in (served, target)]
        path = next((holder for holder in holders if (holder / MANIFEST).is_file()), target)
        if not (path / MANIFEST).is_file():
            raise ValueError(
                f"{target}: no artifact ({MANIFEST} is missing); name a build (artifacts/NAME) or its repository. "
                "Build one: tritonrank build RECIPE"
            )
        return cls(path, _manifest(path).get("stage") == ASSEMBLE)

    def check_files(self) -> None:
        """Compare the files with the manifest's hashes, as `tritonrank serve` does.

        Raises:
            ValueError: one is missing, or is not what was written.
        """
        for name, expected in _manifest(self.path).get("files", {}).items():
            if self.is_repository and name.partition("/")[0] not in (RANKER, *STEPS):
                continue
            try:
                with (self.path / name).open("rb") as file:
                    found = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError as error:
                raise ValueError(
                    f"{self.path / name}: cannot be read ({error.strerror}); copy the artifact again"
                ) from error
            if found != expected:
                raise ValueError(
                    f"{self.path / name}: not the file that {MANIFEST} names; copy or assemble the artifact again"
                )

    @property
    def reader(self) -> str:
        """The model of a repository that reads texts."""
        return RANKER if (self.path / RANKER).is_dir() else STEPS[0]

    @property
    def scorer(self) -> str:
        """The model of a repository that computes."""
        return RANKER if (self.path / RANKER).is_dir() else STEPS[1]

    def parameters(self, model: str) -> dict[str, str]:
        """The parameters in a model's configuration."""
        return {name: value["string_value"] for name, value in self._config(model).get("parameters", {}).items()}

    def metadata(self) -> dict[str, Any]:
        """What a server would say of the ensemble."""
        if self.is_repository:
            config = self._config(DEFAULT_MODEL)
            inputs, outputs = ([_as_metadata(tensor) for tensor in config[role]] for role in ("input", "output"))
        else:
            inputs, outputs = (
                [{"name": name, "datatype": kind, "shape": [size]} for name, kind, size in tensors]
                for tensors in (INPUTS, OUTPUTS)
            )
        return {
            "name": DEFAULT_MODEL,
            "versions": ["1"],
            "platform": "ensemble" if self.is_repository else "in process",
            "inputs": inputs,
            "outputs": outputs,
        }

    def config(self) -> dict[str, Any]:
        """The ensemble's configuration; of an artifact that is not assembled, what its text rules say."""
        if self.is_repository:
            return self._config(DEFAULT_MODEL)
        template = _read_object(self.path / TEXT_RULES)["item_template"]
        told = {"item_template": template, "item_fields": ",".join(dict.fromkeys(re.findall(r"\{(\w+)\}", template)))}
        return {"parameters": {name: {"string_value": value} for name, value in told.items()}}

    def _config(self, model: str) -> dict[str, Any]:
        from google.protobuf import text_format
        from tritonclient.grpc import model_config_pb2

        from ._plain import plain

        path = self.path / model / "config.pbtxt"
        try:
            return plain(text_format.Parse(path.read_text(encoding="utf-8"), model_config_pb2.ModelConfig()))
        except (OSError, text_format.ParseError) as error:
            raise ValueError(f"{path}: cannot be read ({error}); assemble the artifact again") from error


def _as_metadata(tensor: dict[str, Any]) -> dict[str, Any]:
    """A tensor of a config as a server would declare it."""
    kind = str(tensor["data_type"]).removeprefix("TYPE_")
    return {"name": tensor["name"], "datatype": "BYTES" if kind == "STRING" else kind, "shape": tensor["dims"]}


def _manifest(folder: Path) -> dict[str, Any]:
    return _read_object(folder / MANIFEST)


def _read_object(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); copy the artifact again") from error
