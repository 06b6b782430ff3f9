"""``tritonrank up`` of a language model: what is served scores as the published model on the published prompt."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import add_ensemble, set_parameters
from test_rerankers import PUBLISHED, QUERY, TEXTS, TOLERANCE
from tiny_rerankers import KINDS, save_reranker
from tritonrank.artifacts.workspace import Workspace
from tritonrank.errors import ArtifactError, RecipeError
from tritonrank.judge.open_scorer import open_scorer
from tritonrank.pipeline.up import UpOptions, make_from_checkpoint
from tritonrank.rankers.golden_rows import check_golden_tokens
from tritonrank.rankers.server_scorer import Request
from tritonrank.serve.server import LocalTriton
from tritonrank_client import RankClient
from tritonrank_runtime.text import GOLDEN_TOKENS_FILE, TextRules

FP32 = UpOptions(precision="fp32")
DOCUMENTS = TEXTS[:5]
Made = tuple[Path, list[float]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    """By kind: what ``up`` made of a checkpoint, and the scores that transformers gives the documents."""
    root = tmp_path_factory.mktemp("up")
    done: dict[str, Made] = {}

    def make(kind: str) -> Made:
        if kind not in done:
            reference, tokenizer = save_reranker(root / kind, kind, with_modules=kind.startswith("Qwen3"))
            answers = {"mxbai-rerank-base-v2": ("1", "0"), "bge-reranker-v2-gemma": ("Yes",)}.get(kind, ("yes", "no"))
            with torch.inference_mode():
                rows = (torch.tensor([PUBLISHED[kind](QUERY, document)]) for document in DOCUMENTS)
                logits = [reference(row).logits[0, -1][tokenizer.convert_tokens_to_ids(list(answers))] for row in rows]
            expected = [float(one[0] - one[1]) if len(one) > 1 else float(one[0]) for one in logits]
            done[kind] = make_from_checkpoint(str(root / kind), FP32, root / "artifacts"), expected
        return done[kind]

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_up_serves_the_published_scores(kind: str, made: Callable[[str], Made]) -> None:
    root, expected = made(kind)
    scores = open_scorer(root / "served").score(Request(QUERY, [], DOCUMENTS))
    np.testing.assert_allclose(scores, expected, atol=TOLERANCE, rtol=0)
    check_golden_tokens(root / "served")
    assert len(json.loads((root / "served" / GOLDEN_TOKENS_FILE).read_text(encoding="utf-8"))) > 10
    (rules,) = (root / "repository").rglob("text.json")
    assert TextRules.load(rules.parent).frame is not None


def test_golden_rows_notice_another_tokenizer(made: Callable[[str], Made], tmp_path: Path) -> None:
    root, _ = made("Qwen3-Reranker-tiny")
    for name in ("tokenizer.json", "text.json", GOLDEN_TOKENS_FILE):
        (tmp_path / name).write_bytes((root / "served" / name).read_bytes())
    cases = json.loads((tmp_path / GOLDEN_TOKENS_FILE).read_text(encoding="utf-8"))
    cases[0]["ids"][-1] += 1
    (tmp_path / GOLDEN_TOKENS_FILE).write_text(json.dumps(cases), encoding="utf-8")
    with pytest.raises(ArtifactError, match="installed tokenizers"):
        check_golden_tokens(tmp_path)


def test_a_row_has_room_for_the_prompt_and_for_texts(tmp_path: Path) -> None:
    save_reranker(tmp_path / "Qwen3-Reranker", "Qwen3-Reranker-tiny")
    options = UpOptions(precision="fp32", max_tokens=80)
    with pytest.raises(RecipeError, match=r"--max-tokens 80: the prompt of .* takes \d+ of them"):
        make_from_checkpoint(str(tmp_path / "Qwen3-Reranker"), options, tmp_path / "artifacts")


def test_a_language_model_without_a_prompt_is_refused_with_what_to_do(tmp_path: Path) -> None:
    save_reranker(tmp_path / "chat", "Qwen3-Reranker-tiny")
    with pytest.raises(ArtifactError, match=r"no prompt is known.*model\.template"):
        make_from_checkpoint(str(tmp_path / "chat"), FP32, tmp_path / "artifacts")


@pytest.mark.slow
def test_it_goes_through_triton(made: Callable[[str], Made], tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    repository.mkdir()
    names = {kind: re.sub(r"\W+", "_", kind) for kind in KINDS}
    for kind, name in names.items():
        add_ensemble(repository, Workspace(made(kind)[0]), {model: f"{model}_{name}" for model in ("rank", "ranker")})
        set_parameters(repository / f"ranker_{name}", deadline_us="60000000", lanes="1")
    with LocalTriton(repository, ready_timeout_seconds=200) as triton:
        for kind, name in names.items():
            with RankClient(triton.grpc_url, model=f"rank_{name}", timeout=20) as client:
                result = client.rank(query=QUERY, items=DOCUMENTS)
            scores = np.empty(len(DOCUMENTS), dtype=np.float32)
            scores[list(result.indices)] = result.scores
            np.testing.assert_allclose(scores, made(kind)[1], atol=TOLERANCE, err_msg=kind)
