"""Whether a checkpoint can become what a recipe wants of it, judged by its files before anything is loaded or trained.

Each refusal names the file and the next step. No code of a checkpoint runs, whatever it says of itself: only
safetensors weights are read, and a checkpoint that names code of its own, beside it or at the hub, is refused here and
by everything that loads one (``refuse_code``).
"""

import importlib.util
import json
import shlex
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

from rich.console import Console
from safetensors import SafetensorError, safe_open
from tritonrank_runtime.joint import JOINT
from tritonrank_runtime.shared_context import SHARED_CONTEXT
from tritonrank_runtime.text import TOKENIZER_FILE

from tritonrank.errors import ArtifactError
from tritonrank.rankers.checkpoint_files import (
    ADAPTER,
    CONFIG,
    MODULES,
    SENTENCE_TRANSFORMERS,
    TOKENIZER_CONFIG,
    WEIGHTS,
    WEIGHTS_INDEX,
    module_folders,
    modules_of,
    read_object,
    shards_of,
)
from tritonrank.rankers.checkpoint_source import DETERMINING_SUFFIXES, folder_of, is_hub_id
from tritonrank.rankers.modeling import counts_from_padding

POINTERS = (b"version https://git-lfs", b"# xet version")
"""How a file begins that stands for another one, which git-lfs or git-xet fetches."""
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
OTHER_WEIGHTS = {".bin": "pickle", ".pt": "pickle", ".pth": "pickle", ".ckpt": "pickle", ".onnx": "ONNX"} | {
    ".gguf": "GGUF", ".h5": "TensorFlow", ".msgpack": "Flax", ".mlmodel": "Core ML"
}  # fmt: skip
SENTENCEPIECE = {".model", ".spm"}
VOCABULARIES = ("vocab.txt", "vocab.json")
RANKER_HEAD = "ForSequenceClassification"
PLAIN_TOKENIZER_CLASSES = {"PreTrainedTokenizerFast", "TokenizersBackend"}
"""Names of the tokenizer that is its tokenizer.json and nothing more; the second is what transformers 5 writes."""

console = Console(stderr=True)


class Purpose(StrEnum):
    """The setting that names a checkpoint."""

    CHECKPOINT = "model.checkpoint"
    BASE = "model.base"
    TEACHER = "finetune.teacher"


def check_checkpoint(name: str, purpose: Purpose, architecture: str = JOINT, revision: str | None = None) -> None:
    """Refuse by its files what cannot be used.

    Args:
        name: a folder, a hub id, or the packaged MiniLM.
        purpose: what for.
        architecture: the recipe's; a teacher may be of either.
        revision: of a hub id.

    Raises:
        ArtifactError: with the next step to take.
    """
    folder = folder_of(name, revision, weights=False)
    try:
        _refuse_pointers(name, folder)
        refuse_code(name, folder)
        _check_config(name, folder, purpose, architecture)
        _check_tokenizer_files(name, folder)
        _check_weights(name, folder_of(name, revision), purpose)
    except OSError as error:
        raise ArtifactError(f"{name}: {error.filename} cannot be read: {error.strerror}") from None


def refuse_code(name: str, folder: Path) -> None:
    """Refuse a checkpoint that names code of its own to load it with; none is ever run.

    Raises:
        ArtifactError: it does.
    """
    for file in (CONFIG, TOKENIZER_CONFIG):
        for key, value in _pairs(read_object(folder / file)):
            if key == "auto_map" and value:
                raise ArtifactError(
                    f"{name}: {file} wants code of the checkpoint to run (auto_map: {_in_short(value)}), and "
                    "none ever does. Choose a checkpoint whose architecture is part of transformers; if this one's is, "
                    f"take auto_map out of a copy of {file}, and name the copy's folder"
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
                "checkpoint of sentence-transformers' own modules"
            )
    kind = read_object(folder / TOKENIZER_CONFIG).get("tokenizer_class")
    if kind is not None and not _is_tokenizer_class(kind):
        raise ArtifactError(
            f"{name}: {TOKENIZER_CONFIG} names a tokenizer_class {kind}, which transformers does not have, and whose "
            f"code never runs. If {TOKENIZER_FILE} says everything, write PreTrainedTokenizerFast there in a copy, and "
            "name the copy's folder"
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


def _refuse_pointers(name: str, folder: Path) -> None:
    files = sorted(path for one in (folder, *_module_folders(folder)) if one.is_dir() for path in one.iterdir())
    if not files:
        raise ArtifactError(f"{name}: {folder} is empty; name the folder that holds config.json")
    if broken := [path.name for path in files if not path.exists() and path.suffix in DETERMINING_SUFFIXES]:
        raise ArtifactError(
            f"{name}: links to files that are not there: {', '.join(broken)}. Copy the folder with what its links lead "
            "to: cp -rL"
        )
    counted = set(DETERMINING_SUFFIXES)
    if not any(path.suffix == ".safetensors" for path in files):
        counted |= set(OTHER_WEIGHTS)
    pointers = [path.name for path in files if path.suffix in counted and path.is_file() and _is_pointer(path)]
    if pointers:
        raise ArtifactError(
            f"{name}: {', '.join(pointers)}: only pointers, the contents were not downloaded. Run in that folder: "
            f"cd {shlex.quote(str(folder.absolute()))} && git lfs install --local && git lfs pull"
        )


def _module_folders(folder: Path) -> list[Path]:
    """The modules' folders; modules.json may itself be a pointer."""
    return [] if (folder / MODULES).is_file() and _is_pointer(folder / MODULES) else module_folders(folder)


def _is_pointer(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(64).startswith(POINTERS)


def _check_config(name: str, folder: Path, purpose: Purpose, architecture: str) -> None:
    _refuse_adapter(name, folder)
    if not (folder / CONFIG).is_file():
        raise ArtifactError(f"{name}: no {CONFIG} in {folder}. {_what_lies_there(name, folder)}")
    config = read_object(folder / CONFIG)
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise ArtifactError(
            f"{name}: {CONFIG} names no model_type, so nobody knows what the weights are. Save the model again with "
            "transformers' save_pretrained"
        )
    if model_type == SHARED_CONTEXT:
        return _check_shared_context(name, purpose, architecture)
    _refuse_unknown_type(name, model_type)
    if method := config.get("quantization_config"):
        method = method.get("quant_method", "an unknown method") if isinstance(method, dict) else method
        raise ArtifactError(
            f"{name}: its weights are quantized ({method}); full precision is needed here, and quantized at the end of "
            "the build. Name the checkpoint that it was quantized from"
        )
    if counts_from_padding(model_type) and not isinstance(config.get("pad_token_id", 0), int):
        raise ArtifactError(
            f"{name}: a {model_type} counts positions from its padding token, and {CONFIG} has no pad_token_id. Write "
            "the id there that the tokenizer gives it"
        )
    _check_architectures(name, folder, config, purpose)
    if purpose is Purpose.CHECKPOINT and architecture == SHARED_CONTEXT:
        raise ArtifactError(
            f"{name}: not a shared-context ranker, but a {model_type}. It is served as it is with model.architecture: "
            "joint; to train one under the shared-context mask, name it as model.base"
        )


def _refuse_adapter(name: str, folder: Path) -> None:
    if not (folder / ADAPTER).is_file():
        return
    base = read_object(folder / ADAPTER).get("base_model_name_or_path") or "ITS_BASE"
    merged = f"{_local_name(name)}-merged"
    line = (
        "from peft import AutoPeftModelForSequenceClassification as M; from transformers import AutoTokenizer as T; "
        f"m = M.from_pretrained({json.dumps(_spelled(name))}, num_labels=1).merge_and_unload(); "
        f"m.save_pretrained({json.dumps(merged)}); "
        f"T.from_pretrained({json.dumps(str(base))}).save_pretrained({json.dumps(merged)})"
    )
    raise ArtifactError(
        f"{name}: an adapter ({ADAPTER}) for {base}, not a whole model. Merge it with its base, and name the result:\n"
        f"  pip install peft\n  python -c {shlex.quote(line)}"
    )


def _spelled(name: str) -> str:
    """A name as Python takes it."""
    return str(Path(name).expanduser()) if name.startswith("~") else name


def _local_name(name: str) -> str:
    """The folder that something made of a checkpoint goes to: its own, or for a model of the hub one of its name."""
    return name.rpartition("/")[2] if is_hub_id(name) else _spelled(name)


def _what_lies_there(name: str, folder: Path) -> str:
    """A folder without a config: what it may be instead."""
    below = sorted(path.parent for path in folder.glob(f"*/{CONFIG}"))
    if (folder / "snapshots").is_dir() and folder.name.startswith("models--"):
        return f"This is the hub's cache; name the model: {folder.name.removeprefix('models--').replace('--', '/')}"
    if below:
        return f"Did you mean {', '.join(map(str, below[:3]))}?"
    kinds = sorted({OTHER_WEIGHTS[path.suffix] for path in folder.iterdir() if path.suffix in OTHER_WEIGHTS})
    if "ONNX" in kinds or "GGUF" in kinds:
        return _original_wanted(kinds)
    return "Name the folder of a Hugging Face checkpoint, as save_pretrained writes it, or a model of the hub"


def _original_wanted(kinds: list[str]) -> str:
    return (
        f"Only {' and '.join(kinds)} weights lie there, which were made from a checkpoint; name that checkpoint "
        f"(config.json, {WEIGHTS}, {TOKENIZER_FILE}): the build writes its own graphs"
    )


def _refuse_unknown_type(name: str, model_type: str) -> None:
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    if model_type not in CONFIG_MAPPING_NAMES:
        raise ArtifactError(
            f"{name}: {CONFIG} names the model_type {model_type}, which transformers {transformers.__version__} does "
            "not have. It needs code of its own, which is never run, or a later transformers than this build takes; "
            "choose another checkpoint"
        )


def _check_shared_context(name: str, purpose: Purpose, architecture: str) -> None:
    if purpose is Purpose.BASE:
        raise ArtifactError(
            f"{name}: a shared-context ranker, not an encoder. Name it as model.checkpoint with model.architecture: "
            f"{SHARED_CONTEXT}; to go on training, name what it was trained from as model.base"
        )
    if purpose is Purpose.CHECKPOINT and architecture != SHARED_CONTEXT:
        raise ArtifactError(f"{name}: a shared-context ranker; set model.architecture: {SHARED_CONTEXT}")


def _check_architectures(name: str, folder: Path, config: Mapping[str, Any], purpose: Purpose) -> None:
    named = config.get("architectures")
    architectures = [str(one) for one in named] if isinstance(named, list) else []
    kind = ", ".join(architectures) or "unnamed"
    has_head = any(RANKER_HEAD in one for one in architectures)
    modules = [str(module.get("type", "")).rpartition(".")[2] for module in modules_of(folder)]
    if any(one.endswith(("ForCausalLM", "LMHeadModel")) for one in architectures) and "XLNet" not in kind:
        raise ArtifactError(
            f"{name}: a causal language model ({kind}). It would rank by the probability of its answer, which is not "
            "served here; choose a cross-encoder, or an encoder as model.base"
        )
    if not has_head and (
        config.get("is_encoder_decoder") or any(one.endswith("ConditionalGeneration") for one in architectures)
    ):
        raise ArtifactError(
            f"{name}: a sequence-to-sequence model ({kind}), which answers with text and not with a score; choose a "
            "cross-encoder, or an encoder as model.base"
        )
    if purpose is Purpose.BASE:
        return _check_base(name, config)
    if len(modules) > 1:
        is_cross_encoder = read_object(folder / SENTENCE_TRANSFORMERS).get("model_type") == "CrossEncoder"
        if is_cross_encoder or "Dense" in modules:
            raise ArtifactError(
                f"{name}: its score comes from modules of sentence-transformers ({MODULES}: {', '.join(modules)}), "
                f"which are not served; a {RANKER_HEAD} head is. Choose a cross-encoder that is one transformers "
                "checkpoint, or name this one as model.base: its encoder is then fine-tuned with a head of its own"
            )
        raise ArtifactError(
            f"{name}: an embedder that encodes two texts apart ({MODULES}: {', '.join(modules)}), not a ranker of "
            "pairs. Name it as model.base, and it is fine-tuned into one"
        )
    if not has_head:
        hint = f"If it is a ranker, write its class there, such as Bert{RANKER_HEAD}" if not architectures else (
            "It has no head for ranking: name it as model.base, and it is fine-tuned with one"
        )  # fmt: skip
        raise ArtifactError(
            f"{name}: a ranker is a checkpoint of a {RANKER_HEAD} class with one label; architectures in {CONFIG}: "
            f"{kind}. {hint}"
        )
    labels = _label_count(config)
    if labels != 1:
        pair = (
            " The yes/no heads of some rerankers (score = difference of both logits) are not served yet: subtract one "
            "row of the head's weight and bias from the other, and save the model with num_labels 1."
            if labels == 2
            else ""
        )
        raise ArtifactError(
            f"{name}: a ranker has one label, this one {labels} ({CONFIG}: id2label).{pair} To fine-tune it with a new "
            "head, name it as model.base"
        )


def _label_count(config: Mapping[str, Any]) -> int:
    """As transformers counts: two, unless something else is said."""
    labels = config.get("id2label")
    if isinstance(labels, dict):
        return len(labels)
    return int(config["num_labels"]) if isinstance(config.get("num_labels"), int) else 2


def _check_base(name: str, config: Mapping[str, Any]) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

    if config["model_type"] not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES:
        raise ArtifactError(
            f"{name}: transformers has no {RANKER_HEAD} class for the model_type {config['model_type']}, so it cannot "
            "become a ranker; choose an encoder of text such as BERT, RoBERTa, DeBERTa or ModernBERT"
        )


def _check_tokenizer_files(name: str, folder: Path) -> None:
    if (folder / TOKENIZER_FILE).is_file():
        return
    files = sorted(path.name for path in folder.iterdir())
    pieces = [file for file in files if Path(file).suffix in SENTENCEPIECE]
    if pieces and importlib.util.find_spec("sentencepiece") is None:
        line = (
            "from transformers import AutoTokenizer as T; "
            f"T.from_pretrained({json.dumps(_spelled(name))}).save_pretrained({json.dumps(_local_name(name))})"
        )
        raise ArtifactError(
            f"{name}: its tokenizer is a SentencePiece model ({', '.join(pieces)}) without {TOKENIZER_FILE}, which the "
            "server needs. Convert it once; these packages are needed for that alone:\n"
            f"  pip install sentencepiece protobuf\n  python -c {shlex.quote(line)}"
        )
    if not pieces and not any(file in files for file in VOCABULARIES):
        raise ArtifactError(
            f"{name}: no tokenizer: {TOKENIZER_FILE} is missing. Copy it, and {TOKENIZER_CONFIG}, from the model that "
            "this one was trained from"
        )
    if "vocab.json" in files and "merges.txt" not in files:
        raise ArtifactError(f"{name}: vocab.json without merges.txt is half a tokenizer. Add merges.txt, or "
                            f"{TOKENIZER_FILE}, from the model that this one was trained from")  # fmt: skip


def _check_weights(name: str, folder: Path, purpose: Purpose) -> None:
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
        return _original_wanted(kinds)
    auto = "AutoModel" if purpose is Purpose.BASE else "AutoModelForSequenceClassification"
    local = _local_name(name)
    line = (
        f"from transformers import {auto} as M, AutoTokenizer as T; "
        f"M.from_pretrained({json.dumps(_spelled(name))}).save_pretrained({json.dumps(local)}); "
        f"T.from_pretrained({json.dumps(_spelled(name))}).save_pretrained({json.dumps(local)})"
    )
    others = " pickle, which can hold code, is not." if kinds in ([], ["pickle"]) else (
        f" {' and '.join(kinds)} weights are not."
    )  # fmt: skip
    return f"Only safetensors are read;{others} If you trust the weights, convert them, and name {local}:\n" + (
        f"  python -c {shlex.quote(line)}"
    )


def mention_prompts(name: str, revision: str | None = None) -> None:
    """Say which prompts sentence-transformers would put before the texts: there is no setting for them."""
    settings = read_object(folder_of(name, revision, weights=False) / SENTENCE_TRANSFORMERS)
    prompts = settings.get("prompts")
    stored = {key: text for key, text in prompts.items() if text} if isinstance(prompts, dict) else {}
    if not stored:
        return
    default = settings.get("default_prompt_name")
    named = "; ".join(f"{key}: {text!r}" for key, text in stored.items())
    console.print(
        f"{name}: {SENTENCE_TRANSFORMERS} stores prompts, which are not used here ({named}; default: {default}): a "
        "query is encoded as it is sent. Where the model was trained with a prompt, send it at the beginning of each "
        "query, and of each item by text.item_template",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
