"""Pickled weights become safetensors, in a child process that can do little: no network, only tensors.

A pickle can run code when it is read. ``torch.load(weights_only=True)`` refuses everything but tensors and plain
containers; the child has no network on top of that where the system allows it (a network namespace of its own), and
what it writes is read back by safetensors here.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

from safetensors import SafetensorError, safe_open

from tritonrank.errors import ArtifactError

SECONDS = 600
PICKLED = {
    "pytorch_model.bin": "model.safetensors",
    "adapter_model.bin": "adapter_model.safetensors",
}
INDEX, SAFE_INDEX = "pytorch_model.bin.index.json", "model.safetensors.index.json"

CHILD = """
import sys
import torch
from safetensors.torch import save_file
for source, target in zip(sys.argv[1::2], sys.argv[2::2], strict=True):
    loaded = torch.load(source, map_location="cpu", weights_only=True)
    loaded = loaded.get("state_dict", loaded)
    tensors = {name: value.detach().clone().contiguous() for name, value in loaded.items() if torch.is_tensor(value)}
    save_file(tensors, target, metadata={"format": "pt"})
"""


def convert_weights(folder: Path) -> list[Path]:
    """Write safetensors beside every pickle of a checkpoint, those of its modules included; gives what was written.

    Raises:
        ArtifactError: there is no pickle, it holds more than tensors, or it is damaged.
    """
    folder = folder.expanduser()
    if not folder.is_dir():
        raise ArtifactError(f"{folder}: no such folder; download the model first: hf download NAME")
    pairs = _pairs(folder)
    if not pairs:
        raise ArtifactError(f"{folder}: no pickled weights ({', '.join([*PICKLED, INDEX])}); nothing to convert")
    drafts = {target.with_name(f"{target.name}.tmp"): target for _, target in pairs}
    try:
        _run_child([str(path) for (source, _), draft in zip(pairs, drafts, strict=True) for path in (source, draft)])
        for draft in drafts:
            _check(draft)
        for draft, target in drafts.items():
            draft.replace(target)
    finally:
        for draft in drafts:
            draft.unlink(missing_ok=True)
    written = [target for _, target in pairs]
    if (folder / INDEX).is_file():
        written.append(_write_index(folder, {source.name: target.name for source, target in pairs}))
    return written


def _pairs(folder: Path) -> list[tuple[Path, Path]]:
    """Each pickle, and the file that takes its place."""
    found = []
    for path in sorted(folder.rglob("*.bin")):
        if len(path.relative_to(folder).parts) > 2:
            continue
        if (name := PICKLED.get(path.name)) is not None:
            found.append((path, path.with_name(name)))
        elif path.name.startswith("pytorch_model-"):
            found.append((path, path.with_name(f"{path.stem.replace('pytorch_model', 'model')}.safetensors")))
    return found


def _run_child(arguments: list[str]) -> None:
    command = [sys.executable, "-I", "-c", CHILD, *arguments]
    if (unshare := shutil.which("unshare")) and _works([unshare, "--net", "--map-root-user", "true"]):
        command = [unshare, "--net", "--map-root-user", *command]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise ArtifactError(f"{arguments[0]}: not converted within {SECONDS} s; is it the whole file?") from None
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["it ended without a word"])[-1][:300]
        raise ArtifactError(
            f"{arguments[0]}: not converted: {reason}. A file of plain tensors can be read; take a checkpoint with "
            "safetensors weights, or load this one where you trust it and save it again"
        )


def _works(command: list[str]) -> bool:
    return subprocess.run(command, capture_output=True, timeout=10, check=False).returncode == 0


def _check(path: Path) -> None:
    try:
        with safe_open(path, framework="np") as weights:
            if not list(weights.keys()):
                raise ArtifactError(f"{path.with_suffix('')}: the pickle holds no tensor")
    except SafetensorError as error:
        raise ArtifactError(f"{path}: damaged after the conversion: {error}") from None


def _write_index(folder: Path, renamed: dict[str, str]) -> Path:
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    index["weight_map"] = {name: renamed[file] for name, file in index["weight_map"].items()}
    target = folder / SAFE_INDEX
    target.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return target
