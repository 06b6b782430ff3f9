"""What the files of a Hugging Face checkpoint are called, and how those that say what it is are read.

Nothing of torch or transformers is needed here, so a recipe's model can be judged before anything is loaded.
"""

import json
from pathlib import Path
from typing import Any

from tritonrank.errors import ArtifactError

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
MODULES = "modules.json"
SENTENCE_TRANSFORMERS = "config_sentence_transformers.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
ADAPTER = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


def read_json(path: Path) -> Any:
    """The contents of a file, None where there is none.

    Raises:
        ArtifactError: it is not JSON, or cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: not JSON ({error}). Download it again") from None


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object of a file, empty where there is none.

    Raises:
        ArtifactError: it is something else.
    """
    value = read_json(path)
    if not isinstance(value, dict | None):
        raise ArtifactError(f"{path}: a JSON object is expected, not {type(value).__name__}. Download it again")
    return value or {}


def modules_of(folder: Path) -> list[dict[str, Any]]:
    """The parts of a sentence-transformers model; none if it is not one.

    Raises:
        ArtifactError: modules.json is damaged.
    """
    modules = read_json(folder / MODULES)
    if not isinstance(modules, list | None) or not all(isinstance(module, dict) for module in modules or []):
        raise ArtifactError(f"{folder / MODULES}: a list of modules is expected. Download it again")
    return modules or []


def module_folders(folder: Path) -> list[Path]:
    """The folders of its modules beside its own."""
    paths = [str(module.get("path") or "") for module in modules_of(folder)]
    return [folder / path for path in paths if path and ".." not in Path(path).parts and not Path(path).is_absolute()]


def shards_of(folder: Path) -> set[str]:
    """The files that hold a sharded checkpoint's weights.

    Raises:
        ArtifactError: the index is damaged.
    """
    weight_map = read_object(folder / WEIGHTS_INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise ArtifactError(f"{folder / WEIGHTS_INDEX}: has no weight_map of file names. Download it again")
    return set(weight_map.values())


def adapter_base(folder: Path) -> str:
    """What an adapter belongs to: a folder beside it, or a hub id.

    Raises:
        ArtifactError: it does not say.
    """
    base = read_object(folder / ADAPTER).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ArtifactError(f"{folder / ADAPTER}: base_model_name_or_path is missing; write the base's name there")
    return str(folder / base) if not Path(base).is_absolute() and (folder / base).is_dir() else base
