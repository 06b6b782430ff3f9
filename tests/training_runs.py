"""Rankers that are fine-tuned in a second: a small shop, one layer of BERT, and what was trained on them."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from stage_runs import run_verb
from tiny_models import save_ranker
from tritonrank.artifacts import sha256_file
from tritonrank.artifacts.workspace import Workspace
from tritonrank.recipe import Recipe, load_recipe

STEPS = 48
EVALUATIONS = 3
SETTINGS = {
    "name": "small",
    "data": {"source": "sample", "items": 60, "users": 60},
    "text": {"item_template": "{title}", "query_tokens": 8, "history_items": 2, "history_tokens": 16}
    | {"candidate_tokens": 12},
    "examples": {"training_examples": 32, "training_negatives": 3, "judged_negatives": 9}
    | {"validation_users": 10, "test_users": 10},
    "finetune": {"epochs": 12, "learning_rate": 0.01, "evaluations": EVALUATIONS},
}


@dataclass(frozen=True)
class Run:
    """One fine-tuned artifact, and what it was made from."""

    recipe_path: Path
    recipe: Recipe
    dataset: Path
    folder: Path

    def again(self, root: Path, *overrides: str) -> Path:
        """Fine-tune once more, below another folder; where the checkpoint is."""
        workspace = Workspace(root)
        if not workspace.dataset.exists():
            shutil.copytree(self.dataset, workspace.dataset)
        run_verb("finetune", load_recipe(self.recipe_path, overrides), workspace)
        return workspace.teacher


def make_run(root: Path, architecture: str) -> Run:
    """Prepare and fine-tune once below ``root``."""
    torch.set_num_threads(1)
    # Hardly any dropout, so that so few steps teach something; none would hide a random state that is not restored.
    dropout = {"hidden_dropout_prob": 0.01, "attention_probs_dropout_prob": 0.01}
    base = save_ranker("bert", root / "base", head=False, num_hidden_layers=1, initializer_range=0.05, **dropout)
    model = {"base": str(base)} | ({} if architecture == "shared-context" else {"architecture": architecture})
    recipe_path = root / "small.yaml"
    recipe_path.write_text(yaml.safe_dump(SETTINGS | {"model": model}))
    recipe = load_recipe(recipe_path)
    assert recipe.model.architecture == architecture
    made = Run(recipe_path, recipe, root / "dataset", root / "teacher")
    run_verb("prepare", recipe, Workspace(root))
    run_verb("finetune", recipe, Workspace(root))
    return made


def weights_of(folder: Path) -> str:
    return sha256_file(folder / "model.safetensors")
