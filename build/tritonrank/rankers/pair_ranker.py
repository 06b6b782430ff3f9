"""Any checkpoint that scores pairs, as one PyTorch module: rows of a pair of texts in, one logit a row out.

Checkpoints come in more shapes than transformers' one-label classifiers. Here each becomes the same thing, which is
then exported, judged and served like any other joint ranker:

- one label: its logit. Two labels (yes/no heads): the logit of label 1 less that of label 0, so that its sigmoid is
  what a softmax gives label 1;
- an adapter (LoRA and its relatives) is merged with its base by peft;
- modules of sentence-transformers (backbone, pooling, dense layers): ``modular_head.py``;
- code of the checkpoint's own: only where the caller trusts it, and only here, where graphs are made.

Attention is transformers' eager one: it exports for every family, and the graph is optimized afterwards anyway.
"""

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification
from tritonrank_runtime.architectures import DEFAULT

from tritonrank.errors import ArtifactError
from tritonrank.rankers.checkpoint_files import ADAPTER, ADAPTER_WEIGHTS, adapter_base, modules_of, read_object
from tritonrank.rankers.checkpoint_source import folder_of
from tritonrank.rankers.modeling import first_position
from tritonrank.rankers.modular_head import ModularHead
from tritonrank.rankers.pretrained import quietly, refuse_missing

ONE_LABEL = "the logit of its one label"
TWO_LABELS = "the logit of label 1 less that of label 0 (its sigmoid is the softmax of label 1)"
MODULES_SCORE = "the score of its sentence-transformers modules"


@dataclass(frozen=True)
class Loaded:
    """A ranker of pairs, ready to score in FP32."""

    ranker: "PairRanker"
    config: Any
    score: str
    """what the logit is, for people"""


class PairRanker(nn.Module):
    """Rows -> (rows, 1) logits; the tensors come in the order of ``input_names``, as an export wants them."""

    def __init__(self, network: nn.Module, input_names: list[str], head: ModularHead | None = None) -> None:
        super().__init__()
        self.network = network
        self.head = head
        self.input_names = input_names

    def forward(self, *tensors: Tensor) -> Tensor:
        inputs = {name: tensor.long() for name, tensor in zip(self.input_names, tensors, strict=True)}
        found = self.network(**inputs)
        if self.head is not None:
            scores: Tensor = self.head(found.last_hidden_state, inputs["attention_mask"])
            return scores
        logits: Tensor = found.logits
        return logits if logits.shape[-1] == 1 else logits[:, 1:] - logits[:, :1]


def load_pair_ranker(name: str, revision: str | None = None, *, trust_remote_code: bool = False) -> Loaded:
    """Load what ``check_checkpoint`` let pass.

    Args:
        name: a folder, a hub id, or the packaged MiniLM.
        revision: of a hub id.
        trust_remote_code: whether code of the checkpoint may run in this process.

    Raises:
        ArtifactError: it cannot be loaded, or weights are missing.
    """
    folder = folder_of(name, revision)
    if (folder / ADAPTER).is_file():
        model = _merged(name, folder, trust_remote_code)
    elif len(modules_of(folder)) > 1:
        backbone = _pretrained(AutoModel, name, folder, trust_remote_code)
        ranker = PairRanker(backbone, _input_names(backbone), ModularHead.load(name, folder))
        return Loaded(ranker.eval(), backbone.config, MODULES_SCORE)
    else:
        model = _pretrained(AutoModelForSequenceClassification, name, folder, trust_remote_code)
    labels = int(model.config.num_labels)
    if labels > 2:
        raise ArtifactError(f"{name}: a ranker has one label or two, this one {labels} (config.json: id2label)")
    ranker = PairRanker(model, _input_names(model)).eval()
    return Loaded(ranker, model.config, ONE_LABEL if labels == 1 else TWO_LABELS)


def load_pair_config(name: str, revision: str | None = None, *, trust_remote_code: bool = False) -> Any:
    """The config alone, of an adapter its base's; takes no time.

    Raises:
        ArtifactError: there is none that can be read.
    """
    folder = folder_of(name, revision)
    folder = folder_of(adapter_base(folder)) if (folder / ADAPTER).is_file() else folder
    shared = {"trust_remote_code": trust_remote_code, "local_files_only": not trust_remote_code}
    return quietly(name, "model", lambda: AutoConfig.from_pretrained(str(folder), **shared))


def _pretrained(auto_class: Any, name: str, folder: Path, trust_remote_code: bool) -> Any:
    shared = {"trust_remote_code": trust_remote_code, "local_files_only": not trust_remote_code}

    def load() -> Any:
        config = AutoConfig.from_pretrained(str(folder), **shared)
        _take_over_from_transformers_5(config, read_object(folder / "config.json"))
        if getattr(config, "reference_compile", None) is not None:
            config.reference_compile = False  # ModernBERT would compile itself while it is traced
        arguments = {"config": config, "dtype": torch.float32, "use_safetensors": True, "output_loading_info": True}
        try:
            return auto_class.from_pretrained(str(folder), attn_implementation="eager", **arguments, **shared)
        except ValueError:  # code of its own may know no eager attention
            if not trust_remote_code:
                raise
            return auto_class.from_pretrained(str(folder), **arguments, **shared)

    model, found = quietly(name, "model", load)
    # A backbone's own pooler is not read: the modules pool.
    is_backbone = auto_class is AutoModel
    refuse_missing(name, [key for key in found["missing_keys"] if not (is_backbone and key.startswith("pooler."))])
    return model.eval()


def _take_over_from_transformers_5(config: Any, written: dict[str, Any]) -> None:
    """ModernBERT's rotary bases, which transformers 5 writes under another name and this one would not see."""
    rope = written.get("rope_parameters")
    if config.model_type != "modernbert" or not isinstance(rope, dict):
        return
    for kind, setting in (("full_attention", "global_rope_theta"), ("sliding_attention", "local_rope_theta")):
        found = rope.get(kind)
        if isinstance(found, dict) and "rope_theta" in found:
            setattr(config, setting, float(found["rope_theta"]))


def _merged(name: str, folder: Path, trust_remote_code: bool) -> Any:
    """The adapter's base with the adapter in its weights."""
    from peft import PeftModel

    base = adapter_base(folder)
    labels = _adapter_labels(folder)
    options = {"num_labels": labels} if labels else {}
    model = _pretrained_base(base, folder_of(base), trust_remote_code, **options)
    merged: Any = quietly(name, "adapter", lambda: PeftModel.from_pretrained(model, str(folder)).merge_and_unload())
    return merged.eval()


def _pretrained_base(name: str, folder: Path, trust_remote_code: bool, **options: Any) -> Any:
    """As ``_pretrained``, but a head may be missing: an adapter brings its own."""

    def load() -> Any:
        return AutoModelForSequenceClassification.from_pretrained(
            str(folder),
            dtype=torch.float32,
            use_safetensors=True,
            attn_implementation="eager",
            trust_remote_code=trust_remote_code,
            local_files_only=not trust_remote_code,
            **options,
        )

    return quietly(name, "base of the adapter", load)


def _adapter_labels(folder: Path) -> int:
    """Labels of the head that an adapter brings with it; 0 where it brings none."""
    with safe_open(folder / ADAPTER_WEIGHTS, framework="np") as weights:
        names = list(weights.keys())
        heads = [key for key in names if key.endswith(("classifier.weight", "out_proj.weight", "score.weight"))]
        return int(weights.get_slice(heads[0]).get_shape()[0]) if heads else 0


def _input_names(model: Any) -> list[str]:
    """By the config, less what a model with code of its own does not take."""
    taken = inspect.signature(model.forward).parameters
    return [name for name in DEFAULT.input_names(model.config) if name in taken or "kwargs" in taken]


def longest_pair(config: Any, tokenizer_limit: int) -> int:
    """Tokens of a row that a model has positions for, or was trained with; at most what its tokenizer says."""
    rows = getattr(config, "max_position_embeddings", None)
    positions = rows - first_position(config) if isinstance(rows, int) and rows > 0 else tokenizer_limit
    return int(min(positions, tokenizer_limit))
