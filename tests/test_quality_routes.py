"""Quality online through the whole application: which rankings count as what, shown pages, clicks, the reference."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from gateway_stand_ins import StandIn
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from recommend_stand_ins import StandInCatalogue, recommender_of
from test_recommend_routes import serving
from tritonrank_gateway.app import create_metrics_app
from tritonrank_gateway.quality.clicks import LEAST_CLICKS
from tritonrank_recommend.engine import Recommender
from tritonrank_recommend.stores import open_store


def recommender() -> Recommender:
    return recommender_of(StandInCatalogue(), None, store=open_store("sqlite::memory:"))


async def counted(http: httpx.AsyncClient, name: str) -> dict[tuple[str, ...], float]:
    """A metric's samples by their labels' values, as OpenMetrics has them."""
    async with beside(http) as side:
        page = await side.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    return {
        tuple(value for label, value in sample.labels.items() if label != "artifact"): sample.value
        for family in text_string_to_metric_families(page.text)
        for sample in family.samples
        if sample.name == name
    }


def beside(http: httpx.AsyncClient) -> httpx.AsyncClient:
    """The port of metrics."""
    app = create_metrics_app(http.app.state.gateway)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway")


async def test_lists_that_are_shown_count_and_explanations_do_not() -> None:
    backend = StandIn()
    async with serving(recommender(), backend) as http:
        await http.post("/v1/rank", json={"items": ["a", "bb", "ccc"]})
        body: dict[str, Any] = {"recent": ["i1", "i2"], "query": "desk", "size": 5}
        told = (await http.post("/v1/recommend", json=body | {"explain": True})).json()
        assert "explanation" in told["items"][0]
        assert (await http.post("/v1/explain", json={"recent": ["i1"], "item_ids": ["i3"]})).status_code == 200
        await http.post("/v1/recommend", json={"cursor": told["cursor"], "size": 5})
        assert len(backend.asked) > 4, "an explanation asks without this and without that"
        assert await counted(http, "tritonrank_quality_rankings_total") == {("rank",): 1, ("recommend",): 1}
        overlap = await counted(http, "tritonrank_quality_overlap_sum")
        assert 0 < overlap[("rank",)] < 1
        impressions = await counted(http, "tritonrank_quality_impressions_total")
        assert impressions == dict.fromkeys(((str(position),) for position in range(10)), 1.0)


async def test_clicks_are_counted_once_and_become_an_estimate() -> None:
    async with serving(recommender()) as http:

        async def click(number: int, position: int) -> None:
            event = {"type": "click", "user_id": "u", "item_id": "i1", "position": position}
            answer = await http.post("/v1/events", json=event | {"event_id": f"e{number}", "page": f"p{number}"})
            assert answer.status_code == 200, answer.text

        for number in range(LEAST_CLICKS):
            await click(number, number % 2)
            await click(number, number % 2)  # sent again
        assert await counted(http, "tritonrank_quality_clicks_total") == {("0",): 50, ("1",): 50}
        ndcg = (await counted(http, "tritonrank_quality_ips_ndcg"))[()]
        assert ndcg == pytest.approx((50 + 2 * 50 / 1.5849625) / 150)


async def test_the_reference_lies_beside_golden_or_is_named(tmp_path: Path) -> None:
    spread = {"edges": [0.0], "shares": [0.5, 0.5], "rankings": 30}
    reference = {"artifact": "a" * 16, "spreads": {"rank": {"score": spread}}, "candidates": {"rank": [1, 3]}}
    (tmp_path / "golden.json").write_text(json.dumps({"artifact": "", "tolerance": 0.1, "cases": [{}]}))
    async with serving(None, golden=tmp_path / "golden.json") as http:
        assert await counted(http, "tritonrank_quality_reference_info") == {}
        async with beside(http) as side:
            assert (await side.get("/reference")).status_code == 404
    (tmp_path / "reference.json").write_text(json.dumps(reference))
    for settings in ({"golden": tmp_path / "golden.json"}, {"reference": tmp_path / "reference.json"}):
        backend = StandIn()
        async with serving(None, backend, **settings) as http:
            await http.post("/v1/rank", json={"items": ["a", "bb", "ccc"]})
            assert await counted(http, "tritonrank_quality_drift_rankings") == {("score", "rank"): 1}
            async with beside(http) as side:
                assert (await side.get("/reference")).json() == reference | {"propensities": None}


async def test_a_reference_that_is_none_is_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "reference.json").write_text("{}")
    with pytest.raises(ValueError, match=r"reference\.json.*tritonrank assemble"):
        async with serving(None, reference=tmp_path / "reference.json"):
            raise AssertionError("it started")
