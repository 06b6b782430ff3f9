"""One repository with another executor: the same model in the same server, computed by something else.

``serve.executor`` reaches the scorer as a parameter of its config. A copy of a repository without that parameter is
computed by ONNX Runtime, so what an executor brings is measured in one run, and no model is built twice.
"""

import hashlib
import json
import re
import shutil
from pathlib import Path

EXECUTOR = re.compile(r'parameters \{\s*key: "executor"\s*value \{\s*string_value: "([^"]*)"\s*\}\s*\}\n?')
ONNX_RUNTIME = "onnxruntime"


def executor_of(repository: Path) -> str:
    """Which executor the repository's scorer is told to use."""
    found = {match[1] for path in _configs(repository) for match in EXECUTOR.finditer(path.read_text(encoding="utf-8"))}
    return found.pop() if found else ONNX_RUNTIME


def with_onnx_runtime(repository: Path, copy: Path) -> Path:
    """A copy whose scorer computes with ONNX Runtime; its manifest tells of the changed files.

    Raises:
        FileNotFoundError: the repository holds no graph that ONNX Runtime could run.
    """
    if not any(repository.rglob("*.onnx")):
        raise FileNotFoundError(f"{repository}: no ONNX graph in it; assemble it with --set serve.executor=onnxruntime")
    shutil.copytree(repository, copy)
    manifest = copy / "manifest.json"
    known = json.loads(manifest.read_text(encoding="utf-8"))
    for path in _configs(copy):
        path.write_text(EXECUTOR.sub("", path.read_text(encoding="utf-8")), encoding="utf-8")
        known["files"][str(path.relative_to(copy))] = hashlib.sha256(path.read_bytes()).hexdigest()
    manifest.write_text(json.dumps(known), encoding="utf-8")
    return copy


def _configs(repository: Path) -> list[Path]:
    return sorted(repository.glob("*/config.pbtxt"))
