"""What a ranker's score means: the activation that its checkpoint names, and a calibration where one was fitted.

The server's scores are raw logits. Who shows them to people wants numbers between 0 and 1, and checkpoints differ in
what they were trained to be read by: sentence-transformers names an ``activation_fn``, and takes a sigmoid for heads
with one label where none is named. Both facts lie in ``scores.json`` beside tokenizer and text rules, travel with every
model made of the checkpoint, and become parameters of the ensemble's config.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tritonrank_runtime.text import SCORES_FILE

from tritonrank.errors import ArtifactError
from tritonrank.rankers.checkpoint_files import CONFIG, SENTENCE_TRANSFORMERS, read_object

SIGMOID = "sigmoid"
NONE = "none"


@dataclass(frozen=True)
class ScoreMeaning:
    """How a logit is to be read."""

    activation: str = SIGMOID
    """by the checkpoint's own config; ``none`` where it names another than a sigmoid: its logits are the scores"""
    calibration: dict[str, Any] | None = None
    """method and numbers, as the stage ``calibrate`` fitted them; None without"""

    def save(self, folder: Path) -> None:
        (folder / SCORES_FILE).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @property
    def parameters(self) -> dict[str, str]:
        """As the ensemble's config tells clients."""
        return {
            "activation": self.activation,
            "calibration": json.dumps(self.calibration) if self.calibration else "",
        }


def score_meaning(folder: Path) -> ScoreMeaning:
    """What a model folder says of its scores: ours by scores.json, any other checkpoint by its own config.

    Raises:
        ArtifactError: a file of these is damaged.
    """
    told = read_object(folder / SCORES_FILE)
    if not told:
        return ScoreMeaning(_named_activation(folder))
    try:
        return ScoreMeaning(**told)
    except TypeError as error:
        raise ArtifactError(
            f"{folder / SCORES_FILE}: damaged ({error}). To make it anew, run tritonrank build again"
        ) from None


def _named_activation(folder: Path) -> str:
    """sentence-transformers looks at its own file first, then at config.json, where older versions had another key."""
    config = read_object(folder / CONFIG)
    section = config.get("sentence_transformers")
    places = (
        read_object(folder / SENTENCE_TRANSFORMERS).get("activation_fn"),
        section.get("activation_fn") if isinstance(section, dict) else None,
        config.get("sbert_ce_default_activation_function"),
    )
    named = next((place for place in places if isinstance(place, str)), "Sigmoid")
    return SIGMOID if named.rpartition(".")[2] == "Sigmoid" else NONE
