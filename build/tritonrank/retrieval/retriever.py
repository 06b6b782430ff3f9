"""Stage ``retriever``: an encoder that finds items by what a user asked and liked, judged on the whole catalogue.

Mean pooling of the base encoder is what there is without training, and what training is held against: towers that find
less are not published, mean pooling serves then. INT8 has a gate of its own; where it closes, FP32 serves. So the stage
always publishes, and says what.
"""

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from tritonrank_recommend.catalogue.encoder import ENCODER_FILES, TOKENIZER_FILE, TextTokenizer, Towers
from tritonrank_runtime.item_text import render_fields

from tritonrank.artifacts import Draft
from tritonrank.artifacts.workspace import Workspace
from tritonrank.data.dataset import Dataset
from tritonrank.judge.budgets import step_budget
from tritonrank.rankers.text_budgets import text_rules
from tritonrank.recipe import Recipe
from tritonrank.retrieval.choices import Choices
from tritonrank.retrieval.embed import embed_items
from tritonrank.retrieval.item_table import ItemTable, Mixer, Pass, train_table, unit
from tritonrank.retrieval.item_vectors import RESIDUAL_ITEMS_FILE, RESIDUALS_FILE, Residuals
from tritonrank.retrieval.text_tower import TextTower, load_tower, prove_graph, write_graph
from tritonrank.retrieval.tower_int8 import calibration_texts, quantize_tower
from tritonrank.retrieval.tower_judge import TowerJudge, gate

RETRIEVER_FILES = (*ENCODER_FILES, RESIDUALS_FILE, RESIDUAL_ITEMS_FILE)
MEAN_POOLING, TRAINED, INT8 = "mean pooling", "trained towers", "INT8"

console = Console()


def make_retriever(recipe: Recipe, workspace: Workspace, draft: Draft) -> None:
    """Train, export, quantize and judge.

    Args:
        recipe: its retrieval section, and the base encoder.
        workspace: with the dataset.
        draft: gets ``RETRIEVER_FILES``.

    Raises:
        ArtifactError: the base encoder cannot be used.
    """
    dataset, rules = Dataset.read(workspace.dataset), text_rules(recipe, workspace.dataset)
    texts = [render_fields(rules.item_template, fields) for fields in dataset.items.values()]
    training = Choices.of(dataset, dataset.training)
    judge = TowerJudge(dataset, workspace.dataset, texts)
    with tempfile.TemporaryDirectory() as scratch:
        plain, trained, int8 = (_folder(Path(scratch) / name) for name in ("plain", "trained", "int8"))
        maker = _Maker(*load_tower(recipe, rules, plain), texts)
        maker.write(plain, Mixer(), Residuals.none(maker.tower.dimension))
        mean = judge.judge(MEAN_POOLING, plain)
        passes = _learn(recipe, dataset, maker, training, plain, trained)
        found = judge.judge(TRAINED, trained)
        against_mean = gate(found, mean, recipe.gate.budget, recipe.seed)
        chosen, serves = (trained, found) if against_mean.passed else (plain, mean)
        if not against_mean.passed:
            console.print(f"  {MEAN_POOLING} serves: training did not find more (docs/retrieval.md)", highlight=False)
        _copy(chosen, draft.folder)
        draft.metrics |= {
            "serves": serves.name,
            "precision": "fp32",
            "recall": {one.name: one.as_metrics() for one in (mean, found)},
            "against_mean_pooling": asdict(against_mean),
            "passes": [asdict(one) for one in passes],
        }
        if recipe.quantize.method == "none":
            return
        _copy(chosen, int8)
        calibration = maker.tokenizer.ids(calibration_texts(texts, training.queries, recipe.seed))
        nodes = quantize_tower(chosen, int8, calibration, recipe.quantize.exclude)
        rounded = judge.judge(INT8, int8)
        against_fp32 = gate(rounded, serves, step_budget(recipe, "quantize"), recipe.seed)
        draft.metrics["recall"][INT8] = rounded.as_metrics()
        draft.metrics |= {"against_fp32": asdict(against_fp32), "int8_nodes": nodes}
        if against_fp32.passed:
            _copy(int8, draft.folder)
            draft.metrics["precision"] = "int8"
        else:
            console.print("  FP32 serves", highlight=False)


@dataclass
class _Maker:
    """The tower as it is now, and what writes it."""

    tower: TextTower
    tokenizer: TextTokenizer
    tokens: int
    texts: Sequence[str]

    def write(self, folder: Path, mixer: Mixer, residuals: Residuals) -> None:
        """Write RETRIEVER_FILES; the tokenizer is there where the folder is that of the base."""
        write_graph(self.tower, folder)
        prove_graph(self.tower, self.tokenizer.ids(self.texts[:: max(1, len(self.texts) // 40)]), folder)
        query_weight, history_weights = mixer.learnt()
        Towers(self.tower.dimension, self.tokens, query_weight, history_weights).save(folder)
        residuals.save(folder)


def _learn(
    recipe: Recipe, dataset: Dataset, maker: _Maker, training: Choices, plain: Path, trained: Path
) -> list[Pass]:
    """Train on what ``plain`` makes of the texts, and write the towers that come out."""
    validation = Choices.of(dataset, dataset.validation)
    items = unit(embed_items(plain, maker.texts, "embedding items"))
    queries = [unit(embed_items(plain, choices.queries, "embedding queries")) for choices in (training, validation)]
    place = {item: number for number, item in enumerate(dataset.items)}
    met = sorted({place[item] for item in dataset.training_events["item_id"].unique() if item in place})
    table, mixer = ItemTable(items, np.array(met, dtype=np.int64)), Mixer()
    passes = train_table(table, mixer, queries[0], training, validation, queries[1], recipe.seed)
    ids = list(dataset.items)
    maker.tower.projection = table.projection.detach()
    shutil.copyfile(plain / TOKENIZER_FILE, trained / TOKENIZER_FILE)
    maker.write(trained, mixer, Residuals([ids[number] for number in met], table.residuals()))
    return passes


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def _copy(source: Path, folder: Path) -> None:
    for name in RETRIEVER_FILES:
        shutil.copyfile(source / name, folder / name)
