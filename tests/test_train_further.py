"""An accepted ranker is trained further: its own weights, head and tokenizer, in the time that there is."""

from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from tritonrank.artifacts import read_manifest, verify_artifact, write_artifact
from tritonrank.artifacts.workspace import Workspace
from tritonrank.judge.open_scorer import open_scorer
from tritonrank.rankers.scorers import Request
from tritonrank.recipe import FinetuneSettings, Recipe
from tritonrank.train.adapters import ADAPTER_FOLDER
from tritonrank.train.further import train_further
from tritonrank.train.time_limit import TimeLimit


@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_a_ranker_is_trained_further_until_its_time_is_over(
    workspace: Workspace,
    tiny_recipe: Recipe,
    held_out: list[Request],
    tmp_path: Path,
    adapter: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    a_second_each_time_it_is_read = map(float, count())
    clocked = partial(TimeLimit, clock=lambda: next(a_second_each_time_it_is_read))
    monkeypatch.setattr("tritonrank.train.further.TimeLimit", clocked)
    settings = FinetuneSettings(adapter=adapter, learning_rate=1e-2, evaluations=4, schedule="constant")
    target = tmp_path / "teacher"
    with write_artifact(target, "finetune", {}, {"dataset": read_manifest(workspace.dataset)}) as draft:
        train_further(tiny_recipe, settings, workspace.teacher, workspace.dataset, target, draft, seconds=4.0)
    metrics = verify_artifact(target).metrics
    assert (metrics["ended_at"], metrics["steps"]) == (4, 4), "no fifth step was begun"
    assert len(metrics["validation_ndcg@10"]) == 1, "what it had learnt by then was judged"
    assert (target / ADAPTER_FOLDER).is_dir() == (adapter == "lora")
    before, after = (open_scorer(folder).score(held_out[0]) for folder in (workspace.teacher, target))
    assert 0 < np.abs(after - before).max() < 2.0, "it is the same ranker, some steps further"
    for name in ("text.json", "tokenizer.json", "scores.json"):
        assert (target / name).read_bytes() == (workspace.teacher / name).read_bytes()
