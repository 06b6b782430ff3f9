"""The real clients of other rerank servers rank through the gateway, unpatched: only their URL is another.

They live in an environment of their own (`make dialect-clients`), without torch and without anything of ours.
"""

import json
import math
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Served
from gateways import RunningGateway, running_gateway
from tritonrank_client import RankClient

ROOT = Path(__file__).parents[1]
ENVIRONMENT = ROOT / ".venv-dialects"
NEWEST_COHERE = ENVIRONMENT / "cohere-7"
ASK = Path(__file__).parent / "dialect_clients" / "ask.py"
KEY = "a-key-of-the-dialect-tests"
QUERY = "a lamp for my desk"
TEXTS = ["desk lamp", "garden chair", "an oak desk", "bulb", "office"]
COHERE = ("cohere_v1", "cohere_v2", "cohere_v2_asyncio", "cohere_refusal")
GROUPS: dict[str, tuple[str, ...]] = {
    "cohere": COHERE,
    "cohere 7": COHERE,
    "litellm": ("litellm_cohere", "litellm_jina", "litellm_vllm", "litellm_tei", "litellm_nim"),
    "langchain": ("langchain_cohere", "langchain_nvidia"),
    "llama-index": ("llama_index_cohere", "llama_index_jina", "llama_index_tei", "llama_index_nvidia"),
    "haystack": ("haystack_cohere", "haystack_jina", "haystack_tei"),
    "others": ("rerankers_cohere", "rerankers_jina", "rerankers_tei", "huggingface_hub"),
}
LOGITS = {"litellm_nim", "langchain_nvidia", "llama_index_nvidia"}
OWN_SCORES = {"litellm_vllm"}
"""vLLM's scores are what the checkpoint names."""
WITHOUT_QUERY = {"huggingface_hub"}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def gateway(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    keys = {"TRITONRANK_GATEWAY_KEYS": f"tests={KEY}"}
    with running_gateway(served.triton.grpc_url, tmp_path_factory.mktemp("gateway"), environment=keys) as running:
        yield running


@pytest.fixture(scope="module")
def expected(served: Served) -> dict[str, list[tuple[int, float]]]:
    """Index and logit, best first, by query."""
    with RankClient(served.triton.grpc_url) as client:
        results = {query: client.rank(query=query, items=TEXTS) for query in (QUERY, "")}
    return {query: list(zip(result.indices, result.scores, strict=True)) for query, result in results.items()}


ANSWERS: dict[str, dict[str, Any]] = {}


def ask(group: str, gateway: RunningGateway) -> dict[str, Any]:
    """The answers of all clients of a group, which one process asks."""
    if group not in ANSWERS:
        python = (NEWEST_COHERE if group == "cohere 7" else ENVIRONMENT) / "bin" / "python"
        assert python.is_file(), f"{python} is missing: make dialect-clients"
        # As a client is used elsewhere: no path of ours, no offline switches, and no way out but loopback.
        environment = {
            "PATH": os.environ["PATH"], "HOME": str(gateway.folder), "NO_PROXY": "127.0.0.1",
            "HAYSTACK_TELEMETRY_ENABLED": "False", "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        }  # fmt: skip
        done = subprocess.run(
            [python, str(ASK), gateway.url, *GROUPS[group]],
            input=json.dumps({"query": QUERY, "texts": TEXTS, "key": KEY}),
            capture_output=True, text=True, timeout=200, check=False, env=environment, cwd=gateway.folder,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3_000:]
        ANSWERS[group] = json.loads(done.stdout.splitlines()[-1])
    return ANSWERS[group]


@pytest.mark.parametrize(("group", "name"), [(group, name) for group, names in GROUPS.items() for name in names])
def test_a_real_client_ranks_as_ours(
    served: Served, gateway: RunningGateway, expected: dict[str, list[tuple[int, float]]], group: str, name: str
) -> None:
    answer = ask(group, gateway)[name]
    assert isinstance(answer, list), answer["error"]
    if name == "cohere_refusal":
        return
    wanted = expected["" if name in WITHOUT_QUERY else QUERY]
    assert [index for index, _ in answer] == [index for index, _ in wanted][: len(answer)]
    assert len(answer) >= 3
    with RankClient(served.triton.grpc_url) as client:
        is_own_logit = client.model_info().parameters.get("activation", "none") == "none"
    is_logit = name in LOGITS or (name in OWN_SCORES and is_own_logit)
    scores = [logit if is_logit else 1 / (1 + math.exp(-logit)) for _, logit in wanted]
    assert [score for _, score in answer] == pytest.approx(scores[: len(answer)], abs=1e-5)


def test_the_table_in_the_docs_has_every_client_with_its_version() -> None:
    page = (ROOT / "docs" / "gateway.md").read_text(encoding="utf-8")
    folder = ROOT / "tests" / "dialect_clients"
    for path in sorted(folder.glob("requirements*.txt")):
        for line in path.read_text(encoding="utf-8").splitlines():
            if line and not line.startswith("#"):
                name, _, version = line.partition("==")
                assert f"{name} {version}" in page, f"docs/gateway.md: {name} {version} is missing"
