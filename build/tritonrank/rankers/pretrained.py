"""Load a model or a tokenizer from wherever a recipe names it: a hub id, a folder, the packaged MiniLM.

Only safetensors weights, and those of GGUF files, are read, and code of a checkpoint is refused, so no checkpoint can
run code while it loads.
What a checkpoint's files say against it is found before, by ``checkpoint_check.py``; here everything else that the
libraries raise becomes one message.
"""

import copy
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from tritonrank_runtime.text import TOKENIZER_FILE

from tritonrank.errors import ArtifactError
from tritonrank.rankers import decoder_modeling
from tritonrank.rankers.architectures import architecture_of
from tritonrank.rankers.checkpoint_check import refuse_pointers
from tritonrank.rankers.checkpoint_code import PLAIN_TOKENIZER_CLASSES, refuse_code
from tritonrank.rankers.checkpoint_files import TOKENIZER_CONFIG, read_object
from tritonrank.rankers.checkpoint_gguf import gguf_file, needs_gguf, reading_gguf
from tritonrank.rankers.checkpoint_source import folder_of
from tritonrank.rankers.modeling import first_position
from tritonrank.system.quiet import quiet_libraries

UNLIMITED = 1_000_000
"""Tokens of a model whose positions are relative, in place of a limit."""
_REASON_CHARACTERS = 400
OWN_CONFIGS = (decoder_modeling.DecoderConfig,)
"""Importing them makes them known to AutoConfig, as that of the shared-context ranker is."""


def load_tokenizer(
    name: str, revision: str | None = None, *, trust_remote_code: bool = False
) -> PreTrainedTokenizerFast:
    """The checkpoint's fast tokenizer; the server needs its tokenizer.json.

    Args:
        name: hub id, folder or the packaged MiniLM.
        revision: of a hub id.
        trust_remote_code: whether code of the checkpoint may run in this process.

    Raises:
        ArtifactError: the checkpoint cannot be found or has no fast tokenizer.
    """
    folder = folder_of(name, revision) if trust_remote_code else _code_free(name, revision)
    refuse_pointers(name, folder)
    if file := gguf_file(name, folder):
        tokenizer = copy.deepcopy(_of_gguf(AutoTokenizer, name, folder / file, (folder / file).stat().st_mtime_ns))
    else:
        is_plain = read_object(folder / TOKENIZER_CONFIG).get("tokenizer_class") in PLAIN_TOKENIZER_CLASSES
        kind = PreTrainedTokenizerFast if is_plain else AutoTokenizer
        tokenizer = quietly(
            name,
            f"tokenizer ({TOKENIZER_FILE})" if (folder / TOKENIZER_FILE).is_file() else "tokenizer",
            lambda: kind.from_pretrained(
                str(folder), use_fast=True, trust_remote_code=trust_remote_code, local_files_only=not trust_remote_code
            ),
        )
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ArtifactError(f"{name}: has no fast tokenizer ({TOKENIZER_FILE}), which the server needs")
    return tokenizer


def load_encoder(name: str, revision: str | None = None) -> PreTrainedModel:
    """The bare encoder, FP32, in evaluation mode.

    Raises:
        ArtifactError: not to be found, not safetensors, or weights are missing.
    """
    encoder, found = _load(AutoModel, name, revision, output_loading_info=True)
    refuse_missing(name, [key for key in found["missing_keys"] if not key.startswith("pooler.")])
    checked: PreTrainedModel = encoder.eval()
    return checked


def load_ranker(name: str, revision: str | None = None, *, new_head: bool) -> PreTrainedModel:
    """A sequence-classification model with one label, FP32.

    Args:
        name: hub id, folder or the packaged MiniLM.
        revision: of a hub id.
        new_head: start from an encoder and put a fresh head on it (torch's random state decides its weights).

    Raises:
        ArtifactError: not to be found, not safetensors, or (without new_head) not a ranker with one label.
    """
    if new_head:
        options = {"num_labels": 1, "ignore_mismatched_sizes": True, "output_loading_info": True}
        model, found = _load(AutoModelForSequenceClassification, name, revision, **options)
        # A head of another size is replaced; an encoder of another size would be random without a word.
        if wrong := [key for key in found["mismatched_keys"] if key.startswith(f"{model.base_model_prefix}.")]:
            raise ArtifactError(f"{name}: weights and config.json do not fit each other: {', '.join(wrong)}")
        encoder = [key for key in found["missing_keys"] if key.startswith(f"{model.base_model_prefix}.")]
        refuse_missing(name, [key for key in encoder if ".pooler." not in key])
        return model
    config = load_config(name, revision)
    if config.num_labels != 1 or not any("SequenceClassification" in a for a in config.architectures or []):
        raise ArtifactError(
            f"{name}: a ranker is a sequence-classification checkpoint with one label; this one is "
            f"{config.architectures} with {config.num_labels} labels. To fine-tune it, name it as model.base instead"
        )
    return load_whole(AutoModelForSequenceClassification, name, revision)


def load_any_ranker(folder: Path) -> PreTrainedModel:
    """The ranker of a checkpoint folder, of whichever architecture, FP32.

    Raises:
        ArtifactError: the folder holds no ranker.
    """
    name = str(folder)
    return architecture_of(load_config(name)).load(name)


def load_whole(model_class: type, name: str, revision: str | None = None) -> PreTrainedModel:
    """A checkpoint all of whose weights are there, FP32.

    Raises:
        ArtifactError: it cannot be loaded, is not safetensors, or weights are missing.
    """
    model: PreTrainedModel
    model, found = _load(model_class, name, revision, output_loading_info=True)
    refuse_missing(name, found["missing_keys"])
    return model


def load_config(name: str, revision: str | None = None) -> Any:
    """The checkpoint's config.

    Raises:
        ArtifactError: there is none.
    """
    folder = _code_free(name, revision)
    if file := gguf_file(name, folder):
        return copy.deepcopy(_of_gguf(AutoConfig, name, folder / file, (folder / file).stat().st_mtime_ns))
    return quietly(
        name,
        "model",
        lambda: AutoConfig.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True),
    )


def longest_input(model: PreTrainedModel) -> int:
    """Tokens that the position embeddings can hold (RoBERTa keeps the first padding_idx + 1 rows for itself)."""
    rows = getattr(model.config, "max_position_embeddings", None)
    if not isinstance(rows, int) or rows <= 0:  # XLNet says -1, Funnel nothing
        return UNLIMITED
    return rows - first_position(model.config)


def _code_free(name: str, revision: str | None) -> Path:
    folder = folder_of(name, revision)
    refuse_code(name, folder)
    return folder


@lru_cache(maxsize=4)
def _of_gguf(auto_class: Any, name: str, path: Path, _changed: int) -> Any:
    """The tokenizer or the config of a GGUF file: to read its hundred thousand entries takes seconds."""
    needs_gguf(name)
    with reading_gguf():
        found = quietly(
            name,
            f"model ({path.name})",
            lambda: auto_class.from_pretrained(str(path.parent), gguf_file=path.name, local_files_only=True),
        )
    if getattr(found, "vocab_file", None):  # the GGUF file, which would be saved with the tokenizer as its vocabulary
        found.vocab_file = None
    return found


def refuse_missing(name: str, missing: Iterable[str]) -> None:
    """Transformers would put random weights in their place."""
    if names := ", ".join(sorted(missing)):
        raise ArtifactError(f"{name}: weights are missing from the checkpoint: {names}")


def _load(auto_class: type, name: str, revision: str | None, **options: Any) -> Any:
    folder = _code_free(name, revision)
    options |= {"dtype": torch.float32, "trust_remote_code": False, "local_files_only": True}
    file = gguf_file(name, folder)
    if file:
        needs_gguf(name)
    options |= {"gguf_file": file} if file else {"use_safetensors": True}
    with reading_gguf() if file else nullcontext():
        return quietly(
            name,
            "model",
            lambda: auto_class.from_pretrained(str(folder), **options),  # type: ignore[attr-defined]  # an Auto class
        )


def quietly(name: str, what: str, load: Callable[[], Any]) -> Any:
    """Load, with whatever the libraries raise as one message.

    Broken files make them raise all kinds of errors, tokenizers a bare Exception, so that no list of types would do.
    """
    try:
        with quiet_libraries():
            return load()
    except Exception as error:  # noqa: BLE001 - what spoiled files raise in libraries is an open set
        reason = " ".join(str(error).split())
        reason = reason if len(reason) <= _REASON_CHARACTERS else f"{reason[:_REASON_CHARACTERS]} ..."
        raise ArtifactError(
            f"{name}: no {what} can be loaded from there: {type(error).__name__}: {reason}. Files that are whole load "
            "with transformers: download it again, or save it again with save_pretrained"
        ) from None


def copy_tokenizer(name: str, folder: Path) -> None:
    """The tokenizer of an artifact's checkpoint into another one's folder."""
    load_tokenizer(name).save_pretrained(folder)
