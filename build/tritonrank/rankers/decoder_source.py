"""From a language model's checkpoint to a decoder of ours: one logit a row, in place of one for each word.

- A language model that answers yes or no: the rows of its vocabulary head that belong to the answers. Their difference
  is the log-odds of yes against no, so its sigmoid is the softmax of the two.
- A class for sequences (``...ForSequenceClassification``) with one label: its row; with two: the difference of both.
- A base without answers gets a fresh row.

The rest of the vocabulary head is dropped: it is the largest matrix of a small language model, and nothing reads it.
"""

from typing import TYPE_CHECKING

from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel
from tritonrank_runtime.decoder import DECODER
from tritonrank_runtime.frame import Frame

from tritonrank.errors import ArtifactError
from tritonrank.rankers.checkpoint_decoder import RANKER_HEAD, is_language_model
from tritonrank.rankers.checkpoint_source import folder_of
from tritonrank.rankers.decoder_weights import decoder_from, yes_no_head
from tritonrank.rankers.pretrained import load_config, load_encoder, load_whole
from tritonrank.recipe import ModelSettings

if TYPE_CHECKING:
    from tritonrank.rankers.decoder_modeling import DecoderRanker

ANSWERS_SCORE = "the logit of its answer yes less that of no (its sigmoid is the softmax of yes)"
ANSWER_SCORE = "the logit of its answer yes"
SCALAR_SCORE = "what its head for sequences gives"
FRESH_SCORE = "what a fresh head gives, which means nothing before it is trained"


def decoder_of(model: ModelSettings, frame: Frame | None) -> "DecoderRanker":
    """The decoder that a recipe's model becomes, FP32, in evaluation mode.

    Args:
        model: what is named, as checkpoint or as base.
        frame: its prompt, with the ids of the answers.

    Raises:
        ArtifactError: it cannot be loaded, or the network does not know something of it.
    """
    name, revision = model.source, model.revision
    config = load_config(name, revision)
    if config.model_type == DECODER:
        from tritonrank.rankers.decoder import load_decoder_ranker

        return load_decoder_ranker(name, revision)
    if frame is not None and frame.yes is not None and is_language_model(name, folder_of(name, revision)):
        loaded = load_whole(AutoModelForCausalLM, name, revision)
        return decoder_from(loaded, name, _head(loaded, name, frame.yes, frame.no))
    if model.checkpoint is not None and any(RANKER_HEAD in str(one) for one in config.architectures or []):
        loaded = load_whole(AutoModelForSequenceClassification, name, revision)
        return decoder_from(loaded, name, _one_row(loaded))
    return decoder_from(load_encoder(name, revision), name)


def score_in_words(frame: Frame | None, *, is_ready: bool) -> str:
    """What a decoder's logit is, for people."""
    if frame is None or frame.yes is None:
        return SCALAR_SCORE if is_ready else FRESH_SCORE
    return ANSWER_SCORE if frame.no is None else ANSWERS_SCORE


def _head(model: PreTrainedModel, name: str, yes: int, no: int | None) -> Tensor:
    rows = int(model.get_output_embeddings().weight.shape[0])
    if beyond := [token for token in (yes, no) if token is not None and not 0 <= token < rows]:
        raise ArtifactError(
            f"{name}: its answer has the id {beyond[0]}, and its head {rows} rows: the tokenizer, or the ids in "
            "1_LogitScore/config.json, are another model's"
        )
    return yes_no_head(model, yes, no)


def _one_row(model: PreTrainedModel) -> Tensor:
    weight: Tensor = model.score.weight
    return weight if len(weight) == 1 else weight[1:] - weight[:1]
