"""Whether the weights of a checkpoint are there, whole, and of a kind that cannot hold code."""

import json
import shlex
from enum import StrEnum
from pathlib import Path

from safetensors import SafetensorError, safe_open
from tritonrank_runtime.text import TOKENIZER_FILE

from tritonrank.errors import ArtifactError
from tritonrank.rankers.checkpoint_files import WEIGHTS, WEIGHTS_INDEX, shards_of
from tritonrank.rankers.checkpoint_source import is_hub_id

PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
OTHER_WEIGHTS = {".bin": "pickle", ".pt": "pickle", ".pth": "pickle", ".ckpt": "pickle", ".onnx": "ONNX"} | {
    ".gguf": "GGUF", ".h5": "TensorFlow", ".msgpack": "Flax", ".mlmodel": "Core ML"
}  # fmt: skip


class Purpose(StrEnum):
    """The setting or the command that names a checkpoint."""

    CHECKPOINT = "model.checkpoint"
    BASE = "model.base"
    TEACHER = "finetune.teacher"
    UP = "tritonrank up"


def check_weights(name: str, folder: Path, purpose: Purpose) -> None:
    files = [WEIGHTS] if (folder / WEIGHTS).is_file() else []
    if not files and (folder / WEIGHTS_INDEX).is_file():
        files = sorted(shards_of(folder))
        if missing := [file for file in files if not (folder / file).is_file()]:
            raise ArtifactError(
                f"{name}: {WEIGHTS_INDEX} names files that are missing: {', '.join(missing)}. Download them again"
            )
    if not files:
        raise ArtifactError(f"{name}: no {WEIGHTS} in {folder}. {_other_weights(name, folder, purpose)}")
    for file in files:
        try:
            with safe_open(folder / file, framework="np") as weights:
                weights.keys()
        except SafetensorError as error:
            raise ArtifactError(
                f"{name}: {file} ({(folder / file).stat().st_size} bytes) is truncated or damaged ({error}). "
                "Download it again"
            ) from None


def _other_weights(name: str, folder: Path, purpose: Purpose) -> str:
    paths = sorted(folder.iterdir())
    if other := [path.name for path in paths if path.suffix == ".safetensors"]:
        return (
            f"Transformers does not look at {', '.join(other)}: rename it if it is the whole model, or add "
            f"{WEIGHTS_INDEX} if these are its parts"
        )
    kinds = sorted({OTHER_WEIGHTS[path.suffix] for path in paths if path.suffix in OTHER_WEIGHTS})
    if "ONNX" in kinds and not any(path.name in PICKLES for path in paths):
        return original_wanted(kinds)
    if kinds == ["pickle"] and not is_hub_id(name):
        return (
            "Only safetensors are read; a pickle, which can hold code, is not. Convert it; nothing but tensors is read "
            f"for that:\n  tritonrank convert-weights {shlex.quote(spelled(name))}"
        )
    auto = "AutoModel" if purpose is Purpose.BASE else "AutoModelForSequenceClassification"
    local = local_name(name)
    line = (
        f"from transformers import {auto} as M, AutoTokenizer as T; "
        f"M.from_pretrained({json.dumps(spelled(name))}).save_pretrained({json.dumps(local)}); "
        f"T.from_pretrained({json.dumps(spelled(name))}).save_pretrained({json.dumps(local)})"
    )
    others = " pickle, which can hold code, is not." if kinds in ([], ["pickle"]) else (
        f" {' and '.join(kinds)} weights are not."
    )  # fmt: skip
    return f"Only safetensors are read;{others} If you trust the weights, convert them, and name {local}:\n" + (
        f"  python -c {shlex.quote(line)}"
    )


def spelled(name: str) -> str:
    """A name as Python takes it."""
    return str(Path(name).expanduser()) if name.startswith("~") else name


def local_name(name: str) -> str:
    """The folder that something made of a checkpoint goes to: its own, or for a model of the hub one of its name."""
    return name.rpartition("/")[2] if is_hub_id(name) else spelled(name)


def original_wanted(kinds: list[str]) -> str:
    return (
        f"Only {' and '.join(kinds)} weights lie there, which were made from a checkpoint; name that checkpoint "
        f"(config.json, {WEIGHTS}, {TOKENIZER_FILE}): the build writes its own graphs"
    )
