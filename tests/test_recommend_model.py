"""Triton's model ``recommend`` in the real server: the engine behind it, and the ensemble asked from inside."""

import asyncio
import json
import re
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc
from metric_pages import RECOMMEND, documented, told
from tiny_catalogue import tiny_catalogue
from tritonclient.utils import InferenceServerException
from tritonrank.artifacts.workspace import Workspace
from tritonrank.recipe import Recipe, load_recipe
from tritonrank.serve.recommend_model import recommend_folders, write_recommend
from tritonrank.serve.server import LocalTriton
from tritonrank_client import AsyncRankClient, InvalidRequest, RankClient
from tritonrank_runtime.backend import EVERY_SECONDS

pytestmark = pytest.mark.slow


BLOCKED = "item-07"


@pytest.fixture(scope="module")
def recommending(tiny_recipe: Recipe) -> Recipe:
    return load_recipe(
        Path(__file__).parent / "tiny.yaml",
        [f"model.base={tiny_recipe.model.base}", "retrieval={}", "blend.method=none"],
    )


@pytest.fixture(scope="module")
def triton(
    workspace: Workspace, recommending: Recipe, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalTriton]:
    folder = tmp_path_factory.mktemp("recommend")
    shutil.copytree(workspace.repository, folder / "repository")
    tiny_catalogue(Workspace(folder).catalogue)
    write_recommend(recommending, Workspace(folder), folder / "repository")
    (folder / "rules.toml").write_text(f'[block]\nitem_ids = ["{BLOCKED}"]\n')
    environment = {
        "TRITONRANK_STORE": f"sqlite:{folder / 'store.db'}",
        "TRITONRANK_RULES": str(folder / "rules.toml"),
        "TRITONRANK_EVENTS_LOG": str(folder / "events"),
    }
    with LocalTriton(folder / "repository", environment=environment) as running:
        # The first request of an instance opens the catalogue.
        with RankClient(running.grpc_url, timeout=60.0) as client, ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _: client.recommend(size=1), range(8)))
        yield running


def test_the_catalogue_is_linked_and_only_where_a_recipe_recommends(
    workspace: Workspace, tiny_recipe: Recipe, recommending: Recipe, tmp_path: Path
) -> None:
    assert recommend_folders(tiny_recipe, workspace) == {}
    write_recommend(tiny_recipe, workspace, tmp_path / "none")
    assert not (tmp_path / "none").exists()
    tiny_catalogue(Workspace(tmp_path).catalogue)
    shutil.copytree(workspace.repository / "ranker", tmp_path / "repository" / "ranker")
    write_recommend(recommending, Workspace(tmp_path), tmp_path / "repository")
    linked = tmp_path / "repository" / "recommend" / "1" / "catalogue" / "manifest.json"
    assert linked.samefile(Workspace(tmp_path).catalogue / "manifest.json")


def test_a_page_is_ranked_by_the_ensemble_of_the_same_server(triton: LocalTriton) -> None:
    asked = {"recent": ["item-04"], "query": "red lamp", "size": 12, "order": "ranker"}
    pages = []
    for url in (triton.grpc_url, triton.http_url):
        with RankClient(url, timeout=20.0) as client:
            page = client.recommend("u1", **asked)  # type: ignore[arg-type]
            ranked = client.rank(query="red lamp", items=["Acme red lamp"])
        assert not page.degraded, page.degraded_reasons
        assert page.artifacts["ranker"] == ranked.artifact
        logits = [item.logit for item in page.items]
        assert None not in logits
        assert logits == sorted(logits, reverse=True)  # type: ignore[type-var]
        pages.append(page.item_ids)
    assert pages[0] == pages[1]
    assert len(pages[0]) == 12

    async def ask() -> tuple[str, ...]:
        async with AsyncRankClient(triton.grpc_url, timeout=20.0) as client:
            return (await client.recommend("u1", **asked)).item_ids  # type: ignore[arg-type]

    assert asyncio.run(ask()) == pages[0]


def test_logits_are_those_of_rank(triton: LocalTriton) -> None:
    with RankClient(triton.grpc_url, timeout=20.0) as client:
        page = client.recommend(query="blue kettle", size=10, order="ranker")
        ranked = client.rank(query="blue kettle", items=[str(item.fields["title"]) for item in page.items])
    np.testing.assert_allclose([item.logit for item in page.items], ranked.scores, atol=1e-5)
    assert ranked.indices == tuple(range(10))


def test_pages_go_on_through_another_instance(triton: LocalTriton) -> None:
    with RankClient(triton.grpc_url, timeout=20.0) as client:
        first = client.recommend("u2", size=5)
        for _ in range(4):
            following = client.recommend("u2", size=5, cursor=first.cursor)
            assert following.page == first.page
            assert not set(following.item_ids) & set(first.item_ids)
        with pytest.raises(InvalidRequest, match="cursor"):
            client.recommend("stranger", cursor=first.cursor)
        with pytest.raises(InvalidRequest, match="size"):
            client.recommend(size=0)


def test_tensors_in_place_of_json_and_a_body_that_is_none(triton: LocalTriton) -> None:
    client = tritonclient.grpc.InferenceServerClient(triton.grpc_url.removeprefix("grpc://"))

    def infer(**tensors: object) -> tritonclient.grpc.InferResult:
        inputs = []
        for name, values in tensors.items():
            is_text = isinstance(values[0], str)  # type: ignore[index]
            array = np.array(values, dtype=np.object_ if is_text else np.int32)
            inputs.append(tritonclient.grpc.InferInput(name, list(array.shape), "BYTES" if is_text else "INT32"))
            inputs[-1].set_data_from_numpy(array)
        return client.infer("recommend", inputs)

    result = infer(user_id=["u3"], query=["green chair"], recent=["item-01", "item-05"], size=[4])
    answer = json.loads(result.as_numpy("answer")[0])
    assert [one.decode() for one in result.as_numpy("item_ids")] == [item["item_id"] for item in answer["items"]]
    assert result.as_numpy("scores").tolist() == pytest.approx([item["score"] for item in answer["items"]])
    assert len(answer["items"]) == 4
    for wrong in ("{", "[]", '{"size": "x"}', '{"colour": 1}'):
        with pytest.raises(InferenceServerException, match=r"INVALID_ARGUMENT.*request: "):
            infer(request=[wrong])
    client.close()


def test_rules_hold_and_what_was_shown_is_in_the_training_log(triton: LocalTriton) -> None:
    events = Path(triton.repository).parent / "events"
    with RankClient(triton.grpc_url, timeout=20.0) as client:
        page = client.recommend("u9", size=200)
        assert len(page.item_ids) > 30
        assert BLOCKED not in page.item_ids
        deadline = time.monotonic() + 60
        while not any("impressions" in str(path) for path in events.rglob("*.parquet")):
            assert time.monotonic() < deadline, [str(path) for path in events.rglob("*")]
            time.sleep(0.5)


def test_many_at_once_are_all_answered(triton: LocalTriton) -> None:
    with RankClient(triton.grpc_url, timeout=60.0) as client, ThreadPoolExecutor(8) as pool:
        pages = list(pool.map(lambda number: client.recommend(f"u{number}", query="lamp", size=3), range(40)))
    assert {len(page.items) for page in pages} == {3}
    assert len({page.page for page in pages}) == 40


def test_perf_analyzer_drives_it(triton: LocalTriton, perf_analyzer: Path, tmp_path: Path) -> None:
    bodies = [{"user_id": f"u{number}", "query": "lamp", "size": 5} for number in range(8)]
    data = [{"request": {"content": [json.dumps(body)], "shape": [1]}} for body in bodies]
    (tmp_path / "input.json").write_text(json.dumps({"data": data}))
    done = subprocess.run(
        [
            str(perf_analyzer), "-m", "recommend", "-i", "grpc", "-u", triton.grpc_url.removeprefix("grpc://"),
            "--input-data", str(tmp_path / "input.json"), "--concurrency-range", "2", "--request-count", "40",
            "-f", str(tmp_path / "figures.csv"),
        ],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2_000:] + done.stderr[-2_000:]
    heading, figures = (tmp_path / "figures.csv").read_text().splitlines()[:2]
    assert float(figures.split(",")[heading.split(",").index("Inferences/Second")]) > 0


def test_lists_and_what_they_lacked_are_counted(triton: LocalTriton) -> None:
    """By the names that docs/metrics.md has; errors of the store are counted when there are some."""
    with tritonclient.grpc.InferenceServerClient(triton.grpc_url.removeprefix("grpc://")) as client:
        for body in (b"{}", b'{"size": 2, "deadline_ms": 1}'):  # in so little time no ranker is asked
            asked = tritonclient.grpc.InferInput("request", [1], "BYTES")
            asked.set_data_from_numpy(np.array([body], dtype=np.object_))
            answer = json.loads(client.infer("recommend", [asked]).as_numpy("answer")[0])
    assert answer["degraded"]
    time.sleep(3 * EVERY_SECONDS)
    with urllib.request.urlopen(triton.metrics_url, timeout=10) as page:
        text = page.read().decode()
    found = {name: one for name, one in told(text).items() if name.startswith("tritonrank_recommend_")}
    written = documented(RECOMMEND)
    assert {*written} - {*found} <= {"tritonrank_recommend_store_errors_total"}
    assert {*found} <= {*written}
    assert all(metric.labels == written[name].labels for name, metric in found.items() if metric.has_samples)
    assert 'tritonrank_recommend_step_seconds_total{model="recommend",step="total",version="1"}' in text
    assert {*re.findall(r"^tritonrank_recommend_store_up{.*} (\S+)", text, re.M)} == {"1"}
