"""Whether a checkpoint wants code of its own to run: beside it, at the hub, or in a package that nobody asked for."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tritonrank_runtime.text import TOKENIZER_FILE

from tritonrank.errors import ArtifactError
from tritonrank.rankers.checkpoint_files import CONFIG, MODULES, TOKENIZER_CONFIG, modules_of, read_object

PLAIN_TOKENIZER_CLASSES = {"PreTrainedTokenizerFast", "TokenizersBackend"}
"""Names of the tokenizer that is its tokenizer.json and nothing more; the second is what transformers 5 writes."""


def refuse_code(name: str, folder: Path, remedy: str = "") -> None:
    """Refuse a checkpoint that names code of its own to load it with; only ``tritonrank up`` runs any, where told to.

    Args:
        name: of the checkpoint.
        folder: its files.
        remedy: what else may be done, a whole sentence.

    Raises:
        ArtifactError: it does.
    """
    for file in (CONFIG, TOKENIZER_CONFIG):
        for key, value in _pairs(read_object(folder / file)):
            if key == "auto_map" and value:
                raise ArtifactError(
                    f"{name}: {file} wants code of the checkpoint to run (auto_map: {_in_short(value)}), and "
                    "none ever does. Choose a checkpoint whose architecture is part of transformers; if this one's is, "
                    f"take auto_map out of a copy of {file}, and name the copy's folder{remedy}"
                )
            if key.strip("_").startswith("attn_implementation") and "/" in json.dumps(value):
                raise ArtifactError(
                    f"{name}: {file} wants code from the hub to run ({key}: {value}), and none ever does. Take {key} "
                    f"out of a copy of {file}, and name the copy's folder"
                )
    for module in modules_of(folder):
        module_type = str(module.get("type", ""))
        if not module_type.startswith("sentence_transformers."):
            raise ArtifactError(
                f"{name}: {MODULES} wants code of the checkpoint to run ({module_type}), and none ever does. Choose a "
                f"checkpoint of sentence-transformers' own modules{remedy}"
            )
    kind = read_object(folder / TOKENIZER_CONFIG).get("tokenizer_class")
    if kind is not None and not _is_tokenizer_class(kind):
        raise ArtifactError(
            f"{name}: {TOKENIZER_CONFIG} names a tokenizer_class {kind}, which transformers does not have, and whose "
            f"code never runs. If {TOKENIZER_FILE} says everything, write PreTrainedTokenizerFast there in a copy, and "
            f"name the copy's folder{remedy}"
        )


def _in_short(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, Mapping | list) else str(value)


def _pairs(value: Any) -> Iterator[tuple[str, Any]]:
    """Keys and values at every depth."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield key, inner
            yield from _pairs(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _pairs(inner)


def _is_tokenizer_class(kind: Any) -> bool:
    from transformers import PreTrainedTokenizerBase
    from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

    if not isinstance(kind, str):
        return False
    found = [tokenizer_class_from_name(one) for one in (kind, f"{kind.removesuffix('Fast')}Fast")]
    return kind in PLAIN_TOKENIZER_CLASSES or any(
        isinstance(one, type) and issubclass(one, PreTrainedTokenizerBase) for one in found
    )
