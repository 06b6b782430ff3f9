"""What keeping prefix states in eight bits does to a ranking, as `tritonrank evaluate --live` finds it out."""

from pathlib import Path

import numpy as np
import pytest
from tiny_rerankers import save_reranker
from tritonrank.artifacts import read_manifest
from tritonrank.artifacts.workspace import Workspace
from tritonrank.data.dataset import Dataset
from tritonrank.errors import GateError
from tritonrank.judge.evaluate import judge_artifact, judge_scorer
from tritonrank.judge.live_record import LiveRung, read_live
from tritonrank.judge.open_scorer import open_scorer
from tritonrank.pipeline.stages import run_stages
from tritonrank.recipe import Recipe
from tritonrank.serve.live import compare, judge_live
from tritonrank_runtime.text import TextRules

pytestmark = pytest.mark.slow  # a server of its own

RUNG = "ONNX FP32"


def test_a_server_that_keeps_eight_bits_is_judged_by_the_scores_that_it_gives(tmp_path: Path) -> None:
    checkpoint = tmp_path / "Qwen3-Reranker-tiny"
    save_reranker(checkpoint, "Qwen3-Reranker-tiny", with_modules=True)
    recipe = Recipe(
        name="kept",
        data={"source": "sample", "items": 60, "users": 40},
        text={"query_tokens": 60, "history_items": 4, "history_tokens": 60, "candidate_tokens": 60},
        examples={"training_examples": 8, "judged_negatives": 9, "validation_users": 4, "test_users": 31},
        model={"architecture": "decoder", "checkpoint": str(checkpoint)},
        quantize={"method": "none"},
        serve={"executor": "onnxruntime", "instances": 1, "cpu": {"queue_share": 0, "context_cache_dtype": "int8"}},
    )
    workspace = Workspace.of(recipe, tmp_path)
    run_stages(recipe, workspace)

    found = judged_live(recipe, workspace)
    dataset, rules = Dataset.read(workspace.dataset), TextRules.load(workspace.onnx)
    exact = judge_artifact(RUNG, workspace.onnx, workspace.dataset, workspace.judgements)
    eight_bits = judge_scorer(RUNG, open_scorer(workspace.onnx, 8), dataset, dataset.test, rules)
    change = [
        np.abs(np.subtract(one, other)).max()
        for one, other in zip(exact.table["scores"].to_list(), eight_bits.table["scores"].to_list(), strict=True)
    ]
    assert min(change) > 0, "every request's scores feel it"
    expected = compare(exact, eight_bits, found.artifact)
    assert found.examples == expected.examples > 8
    assert found.live_ndcg == pytest.approx(expected.live_ndcg, abs=1e-6)
    assert found.same_top10 == pytest.approx(expected.same_top10)


def judged_live(recipe: Recipe, workspace: Workspace) -> LiveRung:
    """The outcome, whichever it is; a rung that answers otherwise than it was judged closes the command's gate."""
    artifact = read_manifest(workspace.onnx).artifact
    try:
        (found,) = judge_live(recipe, workspace, [RUNG])
    except GateError:
        found = read_live(workspace.root)[artifact]
        assert not found.passed
    else:
        assert found.passed
    assert found.artifact == artifact
    return found
