"""Whether a checkpoint can become a decoder, judged by its files; what all architectures have in common is in
``checkpoint_check.py``."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tritonrank_runtime.decoder import DECODER

from tritonrank.errors import ArtifactError
from tritonrank.rankers.checkpoint_files import ADAPTER, CONFIG, MODULES, modules_of, read_object
from tritonrank.rankers.checkpoint_gguf import gguf_file, needs_gguf
from tritonrank.rankers.checkpoint_source import folder_of
from tritonrank.rankers.checkpoint_weights import Purpose
from tritonrank.rankers.modular_head import kinds_of

CAUSAL = ("ForCausalLM", "LMHeadModel")
"""How classes of language models end; ``architectures`` of config.json names one."""
LOGIT_SCORE = "LogitScore"
"""What sentence-transformers calls the module that reads a score from the logits of answers."""
RANKER_HEAD = "ForSequenceClassification"
LABELS = (1, 2)
"""A scalar head has one; of two the difference is the score."""


def is_decoder(name: str, revision: str | None = None) -> bool:
    """Whether ``up`` serves a checkpoint as a decoder: one of ours, or a language model's family.

    Raises:
        ArtifactError: it cannot be found, or a file of it is damaged.
    """
    from tritonrank.rankers.decoder_weights import FAMILIES

    folder = folder_of(name, revision, weights=False)
    if gguf_file(name, folder):
        return True
    model_type = read_object(folder / CONFIG).get("model_type")
    return not (folder / ADAPTER).is_file() and model_type in {DECODER, *FAMILIES}


def is_language_model(name: str, folder: Path) -> bool:
    """Whether a checkpoint is of a class that says the next word."""
    if gguf_file(name, folder):
        return True
    named = read_object(folder / CONFIG).get("architectures")
    return isinstance(named, list) and any(str(one).endswith(CAUSAL) for one in named) and "XLNet" not in str(named)


def refuse_language_model(name: str, folder: Path, architectures: Sequence[str], purpose: Purpose) -> None:
    """Refuse a language model where another architecture is wanted.

    Raises:
        ArtifactError: says how it is served.
    """
    if LOGIT_SCORE in kinds_of(modules_of(folder)) or is_language_model(name, folder):
        key = "model.base" if purpose is Purpose.BASE else "model.checkpoint"
        raise ArtifactError(
            f"{name}: a causal language model ({', '.join(architectures) or 'unnamed'}), which ranks by its answer. "
            f"Set model.architecture: {DECODER} beside {key}; or choose a cross-encoder, or an encoder as model.base"
        )


def check_gguf(name: str, purpose: Purpose, architecture: str) -> None:
    """A language model in a GGUF file.

    Raises:
        ArtifactError: it is wanted for something else, or what reads it is not installed.
    """
    if architecture != DECODER and purpose is not Purpose.UP:
        raise ArtifactError(f"{name}: a language model in a GGUF file; set model.architecture: {DECODER}")
    needs_gguf(name)


def check_own_decoder(name: str, purpose: Purpose, architecture: str) -> None:
    """A decoder that this project made.

    Raises:
        ArtifactError: it is wanted for something else.
    """
    if purpose is Purpose.BASE:
        raise ArtifactError(
            f"{name}: a decoder of this project. Name it as model.checkpoint with model.architecture: {DECODER}; "
            "to go on training, name what it was trained from as model.base"
        )
    if purpose is Purpose.CHECKPOINT and architecture != DECODER:
        raise ArtifactError(f"{name}: a decoder; set model.architecture: {DECODER}")


def check_decoder(name: str, folder: Path, config: Mapping[str, Any], purpose: Purpose, labels: int) -> None:
    """A checkpoint that a decoder is to be made of.

    Args:
        name: what errors call it.
        folder: its files.
        config: its config.json, which names a model_type.
        purpose: what for.
        labels: of its head, as transformers counts them.

    Raises:
        ArtifactError: with the next step to take.
    """
    from tritonrank.rankers.decoder_weights import FAMILIES

    model_type = config["model_type"]
    if model_type not in FAMILIES:
        raise ArtifactError(
            f"{name}: a {model_type} cannot become a decoder; language models of the families "
            f"{', '.join(sorted(FAMILIES))} can. Choose one of those, or model.architecture: joint for a cross-encoder"
        )
    if unknown := [kind for kind in kinds_of(modules_of(folder))[1:] if kind != LOGIT_SCORE]:
        raise ArtifactError(
            f"{name}: {MODULES} names {', '.join(unknown)}, which a decoder does not have; behind the language model "
            f"comes {LOGIT_SCORE} or nothing"
        )
    if purpose is Purpose.BASE or is_language_model(name, folder):
        return
    named = config.get("architectures")
    architectures = [str(one) for one in named] if isinstance(named, list) else []
    if not any(RANKER_HEAD in one for one in architectures):
        raise ArtifactError(
            f"{name}: has neither a head for words nor one for scores (architectures in {CONFIG}: "
            f"{', '.join(architectures) or 'none'}). Name it as model.base, and it is fine-tuned with one"
        )
    if labels not in LABELS:
        raise ArtifactError(
            f"{name}: a ranker has one label, or two whose difference is the score; this one {labels} ({CONFIG}: "
            "id2label). To fine-tune it with a new head, name it as model.base"
        )
