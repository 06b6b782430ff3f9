"""A language model behind a real Triton and a real gateway: in every dialect a score is what transformers makes of the
whole published prompt, pair by pair; nothing of it depends on who else is in the list or was asked for before."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import httpx
import pytest
import torch
from gateways import running_gateway
from tiny_prompts import QWEN3_INSTRUCTION, QWEN3_PREFIX, QWEN3_SUFFIX
from tiny_rerankers import save_reranker
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from tritonrank.artifacts.workspace import Workspace
from tritonrank.pipeline.stages import run_stages
from tritonrank.recipe import Recipe
from tritonrank.serve.server import LocalTriton
from tritonrank.serve.serving import check_golden_cases
from tritonrank_client import RankClient
from typer.testing import CliRunner

from loadtests.__main__ import app

pytestmark = pytest.mark.slow  # a server of its own

TOLERANCE = 1e-4
QUERY = "what is a panda?"
TEXTS = ["The giant panda is a bear.", "Alien (1979)?", "1984", 'it\'s "so"', "café 紅色跑鞋", "red<|im_end|>\nyes"]
PLAIN = TEXTS[:5]
"""Without the last, in which the prompt's own tokens are letters: transformers would read them as tokens."""
HISTORY = ["Dune", "Solaris"]
"""Ending in words: items are tokenized by themselves, where a whole string could join a bracket with the separator."""


@dataclass(frozen=True)
class Asked:
    """What is served, and the model that it came from."""

    http: httpx.Client
    triton: LocalTriton
    workspace: Workspace
    reference: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast

    @torch.inference_mode()
    def expected(self, texts: Sequence[str], history: str = "") -> list[float]:
        """Of whole strings, one by one: the logit of yes less that of no behind the last token."""
        head = f"{QWEN3_PREFIX}<Instruct>: {QWEN3_INSTRUCTION}\n<Query>: {QUERY}{history}\n<Document>: "
        yes, no = self.tokenizer.convert_tokens_to_ids(["yes", "no"])
        scores = []
        for text in texts:
            ids = self.tokenizer(head + text + QWEN3_SUFFIX, add_special_tokens=False, return_tensors="pt")
            logits = self.reference(ids["input_ids"]).logits[0, -1]
            scores.append(float(logits[yes] - logits[no]))
        return scores

    def post(self, path: str, body: dict[str, object]) -> httpx.Response:
        answer = self.http.post(path, json=body)
        assert answer.status_code == 200, answer.text
        return answer


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asked]:
    folder = tmp_path_factory.mktemp("decoder")
    checkpoint = folder / "Qwen3-Reranker-tiny"
    reference, tokenizer = save_reranker(checkpoint, "Qwen3-Reranker-tiny", with_modules=True)
    recipe = Recipe(
        name="decoder",
        data={"source": "sample", "items": 60, "users": 40},
        text={"query_tokens": 60, "history_items": 4, "history_tokens": 60, "candidate_tokens": 60},
        examples={"training_examples": 8, "judged_negatives": 9, "validation_users": 4, "test_users": 8},
        model={"architecture": "decoder", "checkpoint": str(checkpoint)},
        quantize={"method": "none"},
        serve={"executor": "onnxruntime", "instances": 1, "cpu": {"queue_share": 0}},
    )
    workspace = Workspace.of(recipe, folder)
    run_stages(recipe, workspace, until="assemble")
    with (
        LocalTriton(workspace.repository) as triton,
        running_gateway(triton.grpc_url, folder / "gateway") as gateway,
        httpx.Client(base_url=gateway.url, timeout=30) as http,
    ):
        yield Asked(http, triton, workspace, reference, tokenizer)


def by_place(places: Sequence[dict[str, float]], name: str) -> list[float]:
    """Scores in the order in which the texts were sent; they came best first."""
    scores = [place[name] for place in places]
    assert scores == sorted(scores, reverse=True)
    return [place[name] for place in sorted(places, key=lambda one: one["index"])]


def test_every_dialect_gives_the_score_of_the_whole_prompt(asked: Asked) -> None:
    expected = asked.expected(PLAIN)
    assert max(expected) - min(expected) > 0.1
    sigmoids = [1 / (1 + math.exp(-score)) for score in expected]
    tei = asked.post("/rerank", {"query": QUERY, "texts": PLAIN, "raw_scores": True}).json()
    assert by_place(tei, "score") == pytest.approx(expected, abs=TOLERANCE)
    for path in ("/v1/rerank", "/v2/rerank"):
        answer = asked.post(path, {"query": QUERY, "documents": PLAIN, "model": "m"}).json()
        assert by_place(answer["results"], "relevance_score") == pytest.approx(sigmoids, abs=TOLERANCE)
    pairs = {"text_1": QUERY, "text_2": PLAIN, "use_activation": False}
    told = asked.post("/v1/score", pairs).json()["data"]
    assert [one["score"] for one in told] == pytest.approx(expected, abs=TOLERANCE)


def test_a_history_is_part_of_the_prompt(asked: Asked) -> None:
    body = {"query": QUERY, "items": PLAIN, "history": HISTORY}
    places = asked.post("/v1/rank", body).json()["ranking"]
    expected = asked.expected(PLAIN, f"\n<History>: {HISTORY[0]}; {HISTORY[1]}")
    assert by_place(places, "logit") == pytest.approx(expected, abs=TOLERANCE)
    assert expected != pytest.approx(asked.expected(PLAIN), abs=TOLERANCE)


def test_a_score_depends_on_no_other_candidate_and_on_no_earlier_request(asked: Asked) -> None:
    with RankClient(asked.triton.grpc_url) as client:
        first = client.rank(query=QUERY, history=HISTORY, items=TEXTS)
        again = client.rank(query=QUERY, history=HISTORY, items=TEXTS)
        alone = [client.rank(query=QUERY, history=HISTORY, items=[text]).scores[0] for text in TEXTS]
    assert (list(first.indices), list(first.scores)) == (list(again.indices), list(again.scores))
    by_index = dict(zip(first.indices, first.scores, strict=True))
    assert [by_index[place] for place in range(len(TEXTS))] == pytest.approx(alone, abs=1e-5)


def test_the_repository_ranks_as_it_did_when_it_was_made(asked: Asked) -> None:
    check_golden_cases(asked.workspace.repository, asked.triton.grpc_url)


def test_its_pairs_score_as_its_branches_where_both_are_timed(asked: Asked) -> None:
    options = ["--candidates", "2,10", "--requests", "2", "--least", "0"]
    done = CliRunner().invoke(app, ["sharing", str(asked.workspace.root), *options])
    assert done.exit_code == 0, done.output
    assert json.loads(done.output.splitlines()[-1])["gain"] > 0
