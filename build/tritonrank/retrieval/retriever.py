"""Stage ``retriever``: an encoder that finds items by what a user asked and liked, judged on the whole catalogue.

Mean pooling of the base encoder is what there is without training, and what training is held against: towers that find
less are not published, mean pooling serves then. INT8 has a gate of its own; where it closes, FP32 serves. So the stage
always publishes, and says what.
"""

import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from tritonrank_recommend.catalogue.encoder import MODEL_FILE, TextTokenizer, Towers
from tritonrank_runtime.item_text import render_fields

from tritonrank.artifacts import Draft
from tritonrank.artifacts.workspace import Workspace
from tritonrank.data.dataset import Dataset
from tritonrank.judge.budgets import step_budget
from tritonrank.rankers.text_budgets import text_rules
from tritonrank.recipe import Recipe, RetrievalSettings
from tritonrank.retrieval.choices import Choices
from tritonrank.retrieval.encoded import Encoded, Texts
from tritonrank.retrieval.item_table import ItemTable, Mixer, Pass, train_table
from tritonrank.retrieval.item_vectors import Residuals
from tritonrank.retrieval.text_tower import TextTower, load_tower, prove_graph, set_projection, write_graph
from tritonrank.retrieval.tower_int8 import calibration_texts, quantize_tower
from tritonrank.retrieval.tower_judge import Found, TowerJudge, gate
from tritonrank.retrieval.tower_training import train_encoder

MEAN_POOLING, TOWERS, INT8 = "mean pooling", "two towers", "two towers, INT8"

console = Console()


def make_retriever(recipe: Recipe, workspace: Workspace, draft: Draft) -> None:
    """Train, export, quantize and judge.

    Args:
        recipe: its retrieval section, and the base encoder.
        workspace: with the dataset.
        draft: gets model.onnx, tokenizer.json, towers.json and the residuals.

    Raises:
        ArtifactError: the base encoder cannot be used.
    """
    settings = recipe.retrieval or RetrievalSettings()
    dataset, rules = Dataset.read(workspace.dataset), text_rules(recipe, workspace.dataset)
    texts = Texts.of(dataset, [render_fields(rules.item_template, fields) for fields in dataset.items.values()])
    judge, budget = TowerJudge(dataset, workspace.dataset), recipe.gate.budget
    with tempfile.TemporaryDirectory() as scratch:
        shop = _Workshop(recipe, dataset, texts, *load_tower(recipe, rules, draft.folder), Path(scratch))
        base = shop.written("base")
        plain = shop.unlearnt(base)
        mean = judge.judge(MEAN_POOLING, plain.encoded, plain.towers, plain.residuals)
        learnt = shop.learnt(base)
        if settings.epochs:
            learnt = _better(learnt, shop.learnt(shop.trained(base, settings)))
        found = judge.judge(TOWERS, learnt.encoded, learnt.towers, learnt.residuals)
        against_mean = gate(found, mean, budget, recipe.seed)
        if not against_mean.passed or against_mean.drop > 0:
            console.print(f"  {MEAN_POOLING} serves: learning did not find more (docs/retrieval.md)", highlight=False)
            learnt, found = plain, mean
        learnt.save(draft.folder)
        draft.metrics |= {
            "serves": found.name,
            "encoder": learnt.encoder.name,
            "precision": "fp32",
            "recall": {one.name: one.as_metrics() for one in (mean, found)},
            "against_mean_pooling": asdict(against_mean),
            "passes": [asdict(one) for one in learnt.passes],
            "encoder_loss": learnt.encoder.losses,
        }
        if recipe.quantize.method != "none":
            draft.metrics |= _rounded(recipe, shop, learnt, found, judge, draft.folder)


@dataclass(frozen=True)
class _Encoder:
    """An encoder's graph without a learnt projection, and what it makes of the texts."""

    name: str
    folder: Path
    encoded: Encoded
    losses: list[float]
    """of its training; empty for the base"""


@dataclass(frozen=True)
class _Learnt:
    """Towers on top of an encoder."""

    encoder: _Encoder
    projection: NDArray[np.float32]
    towers: Towers
    residuals: Residuals
    passes: list[Pass]

    @property
    def encoded(self) -> Encoded:
        """The texts with the projection."""
        return self.encoder.encoded.projected(self.projection)

    @property
    def validation(self) -> float:
        """Mean of -log p(chosen) on the validation users, at its best."""
        return min(one.validation for one in self.passes)

    def save(self, folder: Path) -> None:
        """Everything but the tokenizer."""
        shutil.copyfile(self.encoder.folder / MODEL_FILE, folder / MODEL_FILE)
        set_projection(folder, self.projection)
        self.towers.save(folder)
        self.residuals.save(folder)


class _Workshop:
    """Makes encoders, and towers on top of them."""

    def __init__(
        self, recipe: Recipe, dataset: Dataset, texts: Texts, tower: TextTower, tokenizer: TextTokenizer, tokens: int,
        scratch: Path,
    ) -> None:  # fmt: skip
        self.texts, self.tokenizer = texts, tokenizer
        self._recipe, self._tower, self._tokens, self._scratch = recipe, tower, tokens, scratch
        self._items = list(dataset.items)
        self._training, self._validation = (Choices.of(dataset, e) for e in (dataset.training, dataset.validation))
        place = {item: number for number, item in enumerate(self._items)}
        met = {place[item] for item in dataset.training_events["item_id"].unique() if item in place}
        self._met = np.array(sorted(met), dtype=np.int64)

    @property
    def training_queries(self) -> list[str]:
        return self._training.queries

    def folder(self, name: str) -> Path:
        """A new one beside the others, with the tokenizer."""
        folder = self._scratch / name
        folder.mkdir()
        self.tokenizer.save(folder)
        return folder

    def written(self, name: str, losses: list[float] | None = None) -> _Encoder:
        """The encoder as it is now, as a graph that was proven to be it."""
        folder = self.folder(name)
        write_graph(self._tower, folder)
        prove_graph(self._tower, self.tokenizer.ids(self.texts.items[:64]), folder)
        self._towers(Mixer()).save(folder)
        return _Encoder(name, folder, self.texts.encoded(folder, name), losses or [])

    def unlearnt(self, encoder: _Encoder) -> _Learnt:
        """Towers that nothing was learnt for."""
        dimension = self._tower.dimension
        unit_matrix = np.eye(dimension, dtype=np.float32)
        return _Learnt(encoder, unit_matrix, self._towers(Mixer()), Residuals.none(dimension), [])

    def learnt(self, encoder: _Encoder) -> _Learnt:
        """Projection, residuals and mixing learnt while the encoder stays as it is."""
        items = torch.from_numpy(encoder.encoded.items)
        training, validation = self._training, self._validation
        queries, others = (torch.from_numpy(encoder.encoded.of(one.queries)) for one in (training, validation))
        table, mixer = ItemTable(items, self._met), Mixer()
        passes = train_table(table, mixer, queries, training, validation, others, self._recipe.seed)
        residuals = Residuals([self._items[number] for number in self._met], table.residuals())
        projection: NDArray[np.float32] = table.projection.detach().numpy()
        return _Learnt(encoder, projection, self._towers(mixer), residuals, passes)

    def trained(self, base: _Encoder, settings: RetrievalSettings) -> _Encoder:
        """The encoder after training, which changes it."""
        losses = train_encoder(
            self._tower,
            self.tokenizer.ids(self.texts.items),
            self.tokenizer.ids(self._training.queries),
            torch.from_numpy(base.encoded.items.copy()),
            self._training,
            epochs=settings.epochs,
            learning_rate=settings.learning_rate,
            seed=self._recipe.seed,
        )
        return self.written("trained", losses)

    def _towers(self, mixer: Mixer) -> Towers:
        query_weight, history_weights = mixer.learnt()
        return Towers(self._tower.dimension, self._tokens, query_weight, history_weights)


def _better(first: _Learnt, second: _Learnt) -> _Learnt:
    """The one that explains better what validation users chose."""
    better = min(first, second, key=lambda one: one.validation)
    figures = ", ".join(f"{one.encoder.name} {one.validation:.3f}" for one in (first, second))
    console.print(f"  loss on validation users by encoder: {figures}; {better.encoder.name} is taken", highlight=False)
    return better


def _rounded(
    recipe: Recipe, shop: _Workshop, learnt: _Learnt, found: Found, judge: TowerJudge, draft: Path
) -> dict[str, Any]:
    """Put the INT8 graph in place of the FP32 one where its gate passes; what the manifest says of it."""
    folder = shop.folder("int8")
    learnt.towers.save(folder)
    calibration = calibration_texts(shop.texts.items, shop.training_queries, recipe.seed)
    nodes = quantize_tower(draft, folder, shop.tokenizer.ids(calibration), recipe.quantize.exclude)
    rounded = judge.judge(INT8, shop.texts.encoded(folder, "INT8"), learnt.towers, learnt.residuals)
    verdict = gate(rounded, found, step_budget(recipe, "quantize"), recipe.seed)
    if verdict.passed:
        shutil.copyfile(folder / MODEL_FILE, draft / MODEL_FILE)
    else:
        console.print("  FP32 serves", highlight=False)
    return {
        "precision": "int8" if verdict.passed else "fp32",
        "recall_int8": rounded.as_metrics(),
        "against_fp32": asdict(verdict),
        "int8_nodes": nodes,
    }
