"""Whether a checkpoint can become what a recipe wants of it, judged by its files before anything is loaded or trained.

Each refusal names the file and the next step. No code of a checkpoint runs, whatever it says of itself: only
safetensors weights are read, and a checkpoint that names code of its own, beside it or at the hub, is refused here and
by everything that loads one (``refuse_code``). The one exception is ``tritonrank up --trust-remote-code``, which makes
graphs with it, so that none runs where they are served.
"""

import importlib.util
import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from tritonrank_runtime.decoder import DECODER
from tritonrank_runtime.joint import JOINT
from tritonrank_runtime.shared_context import SHARED_CONTEXT
from tritonrank_runtime.text import TOKENIZER_FILE

from tritonrank.errors import ArtifactError
from tritonrank.rankers.checkpoint_code import refuse_code
from tritonrank.rankers.checkpoint_decoder import (
    RANKER_HEAD,
    check_decoder,
    check_gguf,
    check_own_decoder,
    is_language_model,
    refuse_language_model,
)
from tritonrank.rankers.checkpoint_files import (
    ADAPTER,
    ADAPTER_WEIGHTS,
    CONFIG,
    MODULES,
    SENTENCE_TRANSFORMERS,
    TOKENIZER_CONFIG,
    adapter_base,
    module_folders,
    modules_of,
    read_object,
)
from tritonrank.rankers.checkpoint_gguf import gguf_file
from tritonrank.rankers.checkpoint_source import DETERMINING_SUFFIXES, folder_of
from tritonrank.rankers.checkpoint_weights import (
    OTHER_WEIGHTS,
    Purpose,
    check_weights,
    local_name,
    original_wanted,
    spelled,
)
from tritonrank.rankers.modeling import counts_from_padding
from tritonrank.rankers.modular_head import HEAD_MODULES, kinds_of

POINTERS = (b"version https://git-lfs", b"# xet version")
"""How a file begins that stands for another one, which git-lfs or git-xet fetches."""
SENTENCEPIECE = {".model", ".spm"}
VOCABULARIES = ("vocab.txt", "vocab.json")
TRUST = "--trust-remote-code"

console = Console(stderr=True)


def check_checkpoint(
    name: str,
    purpose: Purpose,
    architecture: str = JOINT,
    revision: str | None = None,
    *,
    trust_remote_code: bool = False,
) -> None:
    """Refuse by its files what cannot be used.

    Args:
        name: a folder, a hub id, or the packaged MiniLM.
        purpose: what for.
        architecture: the recipe's; a teacher may be of either.
        revision: of a hub id.
        trust_remote_code: whether code of the checkpoint may run where the graphs are made.

    Raises:
        ArtifactError: with the next step to take.
    """
    folder = folder_of(name, revision, weights=False)
    try:
        refuse_pointers(name, folder)
        if gguf_file(name, folder):
            return check_gguf(name, purpose, architecture)
        if purpose is Purpose.UP and (folder / ADAPTER).is_file():
            return _check_adapter(name, folder, trust_remote_code)
        if not trust_remote_code:
            flag = f", or, if you trust it, let it make the graphs: {TRUST}" if purpose is Purpose.UP else ""
            refuse_code(name, folder, flag)
        _check_config(name, folder, purpose, architecture, trust_remote_code)
        _check_tokenizer_files(name, folder)
        check_weights(name, folder_of(name, revision), purpose)
    except OSError as error:
        raise ArtifactError(f"{name}: {error.filename} cannot be read: {error.strerror}") from None


def refuse_pointers(name: str, folder: Path) -> None:
    """Refuse a folder that is empty, whose links lead nowhere, or whose files stand for others not yet downloaded.

    Raises:
        ArtifactError: with the command that brings the files.
    """
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


def _check_config(name: str, folder: Path, purpose: Purpose, architecture: str, trust_remote_code: bool) -> None:
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
    if model_type == DECODER:
        return check_own_decoder(name, purpose, architecture)
    if not trust_remote_code:
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
    if architecture == DECODER:
        return check_decoder(name, folder, config, purpose, _label_count(config))
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
    merged = f"{local_name(name)}-merged"
    line = (
        "from peft import AutoPeftModelForSequenceClassification as M; from transformers import AutoTokenizer as T; "
        f"m = M.from_pretrained({json.dumps(spelled(name))}, num_labels=1).merge_and_unload(); "
        f"m.save_pretrained({json.dumps(merged)}); "
        f"T.from_pretrained({json.dumps(str(base))}).save_pretrained({json.dumps(merged)})"
    )
    raise ArtifactError(
        f"{name}: an adapter ({ADAPTER}) for {base}, not a whole model. Merge it with its base, and name the result:\n"
        f"  pip install peft\n  python -c {shlex.quote(line)}"
    )


def _what_lies_there(name: str, folder: Path) -> str:
    """A folder without a config: what it may be instead."""
    below = sorted(path.parent for path in folder.glob(f"*/{CONFIG}"))
    if (folder / "snapshots").is_dir() and folder.name.startswith("models--"):
        return f"This is the hub's cache; name the model: {folder.name.removeprefix('models--').replace('--', '/')}"
    if below:
        return f"Did you mean {', '.join(map(str, below[:3]))}?"
    kinds = sorted({OTHER_WEIGHTS[path.suffix] for path in folder.iterdir() if path.suffix in OTHER_WEIGHTS})
    if "ONNX" in kinds or "GGUF" in kinds:
        return original_wanted(kinds)
    return "Name the folder of a Hugging Face checkpoint, as save_pretrained writes it, or a model of the hub"


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
    modules = kinds_of(modules_of(folder))
    refuse_language_model(name, folder, architectures, purpose)
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
        if purpose is Purpose.UP and is_cross_encoder:
            return _check_modules(name, modules)
        if is_cross_encoder or "Dense" in modules:
            raise ArtifactError(
                f"{name}: its score comes from modules of sentence-transformers ({MODULES}: {', '.join(modules)}), "
                f"which a recipe cannot build; a {RANKER_HEAD} head it can. tritonrank up serves it as it is. Or "
                "name this one as model.base: its encoder is then fine-tuned with a head of its own"
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
    if labels != 1 and not (purpose is Purpose.UP and labels == 2):
        pair = (
            " For a yes/no head (score = difference of both logits) subtract one row of its weight and bias from the "
            "other, and save the model with num_labels 1."
            if labels == 2
            else ""
        )
        raise ArtifactError(
            f"{name}: a ranker has one label, this one {labels} ({CONFIG}: id2label).{pair} To fine-tune it with a new "
            "head, name it as model.base"
        )


def _check_modules(name: str, modules: list[str]) -> None:
    if unknown := [kind for kind in modules[1:] if kind not in HEAD_MODULES]:
        raise ArtifactError(
            f"{name}: {MODULES} names {', '.join(unknown)}, which is not served; after the backbone come "
            f"{', '.join(sorted(HEAD_MODULES))}"
        )


def _check_adapter(name: str, folder: Path, trust_remote_code: bool) -> None:
    """An adapter that ``up`` will merge: peft is there, weights are safe, and its base is a ranker or an encoder."""
    if importlib.util.find_spec("peft") is None:
        raise ArtifactError(f"{name}: an adapter ({ADAPTER}), which peft merges with its base: pip install peft")
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise ArtifactError(
            f"{name}: no {ADAPTER_WEIGHTS}; a pickle is never read. Convert it: tritonrank convert-weights "
            f"{shlex.quote(str(folder))}"
        )
    kind = read_object(folder / ADAPTER).get("task_type")
    if kind != "SEQ_CLS":
        raise ArtifactError(
            f"{name}: an adapter for the task {kind} ({ADAPTER}: task_type); a ranker's is SEQ_CLS. Name its base, or "
            "another adapter"
        )
    base = adapter_base(folder)
    base_folder = folder_of(base, weights=False)
    if not trust_remote_code:
        refuse_code(base, base_folder, f", or, if you trust it, let it make the graphs: {TRUST}")
    if is_language_model(base, base_folder):
        raise ArtifactError(
            f"{name}: an adapter of a causal language model ({base}), which is served merged: merge it with its base "
            "(peft's merge_and_unload), and name the result"
        )
    _check_tokenizer_files(base, base_folder)
    check_weights(base, folder_of(base), Purpose.UP)


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
            f"T.from_pretrained({json.dumps(spelled(name))}).save_pretrained({json.dumps(local_name(name))})"
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
