"""The reference that a build makes: the gateway reads it, requests of the split do not drift from it, others do."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from conftest import Served
from gateways import running_gateway
from prometheus_client.parser import text_string_to_metric_families
from tritonrank.artifacts import read_manifest
from tritonrank.artifacts.workspace import Workspace
from tritonrank.data.dataset import Dataset
from tritonrank.data.requests import requests_of
from tritonrank.rankers.scorers import Request
from tritonrank.serve.gateway_start import _reference
from tritonrank.serve.reference import MOST_RANKINGS, REFERENCE_FILE, Collected, as_list
from tritonrank_gateway.quality.drift import LEAST_RANKINGS
from tritonrank_gateway.quality.reference import FEATURES, Reference
from tritonrank_runtime.text import RequestTokenizer


def test_a_build_has_a_reference_of_what_serves(workspace: Workspace) -> None:
    reference = Reference.read(workspace.repository / REFERENCE_FILE)
    golden = json.loads((workspace.repository / "golden.json").read_text(encoding="utf-8"))
    assert reference.file.artifact == golden["artifact"]
    dataset = Dataset.read(workspace.dataset)
    examples = min(MOST_RANKINGS, len(dataset.validation) + len(dataset.test))
    spreads = reference.file.spreads
    assert set(spreads) == {"rank"}
    assert set(spreads["rank"]) == set(FEATURES)
    assert {spread.rankings for spread in spreads["rank"].values()} == {examples}
    manifest = read_manifest(workspace.repository)
    assert manifest.files[REFERENCE_FILE].startswith(reference.sha256)
    assert _reference(workspace.repository) == ["--reference", str(workspace.repository / REFERENCE_FILE)]


def test_no_reference_no_flag(tmp_path: Path) -> None:
    assert _reference(tmp_path) == []


def test_positions_begin_where_the_table_begins() -> None:
    assert as_list({0: 1.0, 1: 0.5, 3: 0.2}) == [1.0, 0.5, 0.0, 0.2]
    assert as_list({1: 1.0, 2: 0.25}) == [1.0, 0.25]
    assert as_list({7: 1.0}) is None
    assert as_list({}) is None


def test_each_ranking_counts_the_same() -> None:
    collected = Collected()
    collected._keep("score", [0.0] * 9)
    collected._keep("score", [1.0])
    (spread,) = collected.spreads().values()
    shares = dict(zip([*spread["edges"], "above"], spread["shares"], strict=True))
    assert (shares[0.0], shares[1.0], shares["above"]) == (0.5, 0.5, 0.0)


def samples(metrics_url: str, name: str) -> dict[str, float]:
    """A metric's values by feature."""
    page = httpx.get(f"{metrics_url}/metrics").text
    return {
        sample.labels["feature"]: sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name == name
    }


def body_of(request: Request) -> dict[str, object]:
    return {"query": request.query, "history": request.history, "items": request.items}


def foreign(request: Request, generator: np.random.Generator) -> dict[str, object]:
    """As many items, in letters that the vocabulary does not have."""
    return {"query": "\u8317 " * 5, "items": ["\u8317 " * int(generator.integers(1, 9)) for _ in request.items]}


@pytest.mark.slow
def test_drift_of_real_requests_is_told_by_a_real_gateway(served: Served, tmp_path: Path) -> None:
    workspace = served.workspace
    dataset, generator = Dataset.read(workspace.dataset), np.random.default_rng(5)
    rules = RequestTokenizer.from_folder(workspace.onnx).rules
    requests = requests_of(dataset, [*dataset.validation, *dataset.test], rules)
    with (
        running_gateway(
            served.urls["grpc"], tmp_path, "--reference", str(workspace.repository / REFERENCE_FILE)
        ) as gateway,
        httpx.Client(base_url=gateway.url) as http,
    ):

        def told(bodies: Iterator[dict[str, object]], rankings: int) -> dict[str, float]:
            """PSI when so many rankings were looked at; of many in a second only some are."""
            while samples(gateway.metrics_url, "tritonrank_quality_drift_rankings")["score"] < rankings:
                for body in itertools.islice(bodies, 50):
                    http.post("/v1/rank", json=body).raise_for_status()
            return samples(gateway.metrics_url, "tritonrank_quality_drift_psi")

        calm = told(map(body_of, itertools.cycle(requests)), LEAST_RANKINGS)
        assert set(calm) == set(FEATURES)
        assert max(calm.values()) < 0.1, calm
        drifted = told((foreign(request, generator) for request in itertools.cycle(requests)), 2 * LEAST_RANKINGS)
        (tmp_path / "now.json").write_bytes(httpx.get(f"{gateway.metrics_url}/reference").content)
        assert (
            Reference.read(tmp_path / "now.json").file.artifact
            == json.loads((workspace.repository / "golden.json").read_text(encoding="utf-8"))["artifact"]
        )
        assert drifted["unknown_tokens"] > 1
        assert drifted["context_tokens"] > 0.25
        assert drifted["score"] > 0.25
