"""Items that nothing can be scored of come last and are told of; strict mode refuses them; the template can be asked
for. Over every way to ask: gRPC, HTTP, asyncio, in process, through the gateway."""

import json
from collections.abc import Iterator

import httpx
import pytest
import tritonrank_client
from conftest import Served
from gateways import RunningGateway, running_gateway
from misbehaving_server import MisbehavingServer
from tritonrank_client import AsyncRankClient, InvalidRequest, RankClient
from tritonrank_runtime.item_report import MOST_FIELDS, ItemReader
from tritonrank_runtime.item_text import TextError, template_fields
from typer.testing import CliRunner

WANT = ("unscored", "fields")
GOOD = [{"title": f"desk {number}", "attributes": ["oak"]} for number in range(5)]
ITEMS = [GOOD[0], "", {"name": "A"}, GOOD[1], {"title": None, "attributes": []}, "\u0301", "  ", "a plain text"]
UNSCORED = {1: "empty", 2: "no_field", 4: "empty", 5: "no_token", 6: "empty"}
HISTORY = [{"title": "lamp"}, "a chair", ""]
MISSING, UNKNOWN = {"attributes": 2, "title": 1}, {"name": 1}


@pytest.fixture(scope="module")
def gateway(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    folder = tmp_path_factory.mktemp("gateway")
    with running_gateway(served.urls["grpc"], folder, "--cache-mb", "8") as running:  # kept answers tell the same
        yield running


@pytest.fixture(params=["grpc", "http", "folder", "onnx", "gateway"])
def client(request: pytest.FixtureRequest, served: Served) -> Iterator[RankClient]:
    if request.param == "gateway":
        running: RunningGateway = request.getfixturevalue("gateway")
        opened = tritonrank_client.open(running.url)
    elif request.param in served.urls:
        opened = RankClient(served.urls[request.param])
    else:
        workspace = served.workspace
        opened = tritonrank_client.open(str(workspace.root if request.param == "folder" else workspace.onnx))
    with opened:
        yield opened


def test_unscored_items_are_told_and_harm_nobody(client: RankClient) -> None:
    told = client.rank(query="a desk", history=HISTORY, items=ITEMS, want=WANT)
    assert told.unscored == UNSCORED
    assert (told.missing_fields, told.unknown_fields) == (MISSING, UNKNOWN)
    assert list(told.missing_fields or ()) == [*MISSING], "the most frequent first"
    assert told.indices[-len(UNSCORED) :] == tuple(UNSCORED), "last, in the order given"
    sound = [place for place in range(len(ITEMS)) if place not in UNSCORED]
    alone = client.rank(query="a desk", history=HISTORY, items=[ITEMS[place] for place in sound])
    assert told.scores[: len(sound)] == pytest.approx(alone.scores, abs=1e-5)
    assert told.indices[: len(sound)] == tuple(sound[place] for place in alone.indices)
    assert (alone.unscored, alone.missing_fields, alone.unknown_fields) == (None, None, None)
    again = client.rank(query="a desk", history=HISTORY, items=ITEMS, want=WANT)
    assert (again.unscored, again.unknown_fields) == (UNSCORED, UNKNOWN)
    few = client.rank(query="a desk", items=ITEMS, top_k=1, want=["unscored"])
    assert (few.unscored, few.missing_fields, len(few.ranking)) == (UNSCORED, None, 1)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"items": [*GOOD, ""]}, [r"items\[5\]", "empty", "title, attributes"]),
        ({"items": [*GOOD, "\u0301"]}, [r"items\[5\]", "token"]),
        ({"items": [*GOOD, {"title": None, "attributes": None}]}, [r"items\[5\]", "empty"]),
        ({"items": [GOOD[0], {"name": "A"}]}, [r"items\[1\]", "'attributes'|'title'"]),
        ({"items": [GOOD[0], {"title": "A"}]}, [r"items\[1\]", "'attributes'"]),
        ({"items": GOOD, "history": ["a", {"attributes": "x"}]}, [r"history\[1\]", "'title'"]),
    ],
    ids=["empty", "no token", "null", "other fields", "a field too few", "history"],
)
def test_strict_mode_refuses_by_name(client: RankClient, asked: dict[str, list[object]], told: list[str]) -> None:
    with pytest.raises(InvalidRequest) as refused:
        client.rank(**asked, strict=True)  # type: ignore[arg-type]
    for part in told:
        assert refused.match(part)
    assert client.rank(**asked).ranking  # type: ignore[arg-type]


def test_strict_mode_takes_what_is_whole(client: RankClient) -> None:
    items = [*GOOD, "a text", {"title": "x", "attributes": None, "sku": 7}]
    strict = client.rank(query="a desk", items=items, strict=True, want=WANT)
    assert strict.scores == pytest.approx(client.rank(query="a desk", items=items).scores, abs=1e-5)
    assert (strict.unscored, strict.missing_fields, strict.unknown_fields) == ({}, {}, {"sku": 1})


def test_the_template_can_be_asked_for(client: RankClient) -> None:
    info = client.model_info()
    assert (info.template, info.fields) == ("{title}, {attributes}", ("title", "attributes"))


async def test_the_asyncio_client_asks_the_same(served: Served) -> None:
    async with AsyncRankClient(served.urls["grpc"]) as client:
        told = await client.rank(query="a desk", history=HISTORY, items=ITEMS, want=WANT)
        assert (told.unscored, told.missing_fields, told.unknown_fields) == (UNSCORED, MISSING, UNKNOWN)
        assert (await client.rank(items=[], want=WANT)).unscored == {}
        with pytest.raises(InvalidRequest, match=r"items\[0\]"):
            await client.rank(items=[""], strict=True)
        assert (await client.model_info()).fields == ("title", "attributes")


def test_batch_mates_of_a_refused_request_are_answered(served: Served) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with RankClient(served.urls["grpc"]) as client, ThreadPoolExecutor(12) as threads:
        expected = client.rank(query="a desk", items=GOOD).scores

        def ask(number: int) -> bool:
            if number % 3:
                return client.rank(query="a desk", items=GOOD).scores == pytest.approx(expected, abs=1e-5)
            with pytest.raises(InvalidRequest, match="items"):
                client.rank(query="a desk", items=[*GOOD, ""], strict=True)
            return True

        assert all(threads.map(ask, range(60)))


def test_plain_http_says_it_too(served: Served) -> None:
    """What curl sends: no query, no history, no outputs named."""
    inputs = [{"name": "items", "datatype": "BYTES", "shape": [2], "data": ["a desk", ""]}]
    url = f"{served.urls['http']}/v2/models/rank/infer"
    answer = httpx.post(url, json={"inputs": inputs})
    outputs = {output["name"]: output["data"] for output in answer.json()["outputs"]}
    assert outputs["unscored"] == ["", "empty"]
    assert json.loads(outputs["fields"][0]) == {"missing": {}, "unknown": {}}
    strict = {"name": "strict", "datatype": "BOOL", "shape": [1], "data": [True]}
    refused = httpx.post(url, json={"inputs": [*inputs, strict]})
    assert refused.status_code == 400
    assert "items[1]" in refused.json()["error"]


def test_the_gateway_says_it_in_its_own_dialect_and_in_a_header_of_all(gateway: RunningGateway) -> None:
    asked = {"query": "a desk", "items": ITEMS, "history": HISTORY}
    answer = httpx.post(f"{gateway.url}/v1/rank", json=asked)
    told = answer.json()
    assert told["unscored"] == [{"index": place, "reason": reason} for place, reason in UNSCORED.items()]
    assert told["fields"] == {"missing": MISSING, "unknown": UNKNOWN}
    assert answer.headers["X-Unscored-Documents"] == "1,2,4,5,6"
    refused = httpx.post(f"{gateway.url}/v1/rank", json={**asked, "strict": True})
    assert refused.status_code == 422
    assert "items[" in refused.json()["error"]["message"]
    foreign = httpx.post(f"{gateway.url}/v1/rerank", json={"query": "a desk", "documents": ["oak desk", "", "\u0301"]})
    assert foreign.status_code == 200
    assert foreign.headers["X-Unscored-Documents"] == "1,2"
    assert "X-Unscored-Documents" not in httpx.post(f"{gateway.url}/v1/rank", json={"items": ["a"]}).headers
    assert "documents_unscored_total{artifact=" in httpx.get(gateway.metrics_url + "/metrics").text
    (model,) = httpx.get(f"{gateway.url}/v1/models").json()["data"]
    assert (model["item_template"], model["item_fields"]) == ("{title}, {attributes}", ["title", "attributes"])


def test_the_command_line_shows_it(served: Served, tmp_path) -> None:  # type: ignore[no-untyped-def]
    from tritonrank_client.cli import app

    lines = tmp_path / "items.jsonl"
    lines.write_text("a plain line\n" + json.dumps({"name": "A"}) + "\n")
    shown = CliRunner().invoke(app, ["rank", "--url", served.urls["grpc"], "--items", str(lines)])
    assert shown.exit_code == 0, shown.output
    assert "no_field" in shown.output
    assert "title (1)" in shown.output
    assert "name (1)" in shown.output
    strict = CliRunner().invoke(app, ["rank", "--url", served.urls["grpc"], "--items", str(lines), "--strict"])
    assert strict.exit_code == 2
    assert "items[1]" in strict.output
    info = CliRunner().invoke(app, ["info", "--url", served.urls["http"]])
    assert "{title}, {attributes}" in info.output


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_new_client_asks_an_old_server_nothing_new(protocol: str) -> None:
    """The tensors of a plain call are those of before; a server that tells no template has none."""
    server = MisbehavingServer()
    try:
        with RankClient(server.urls[protocol]) as client:
            assert client.rank(items=["a", "b"]).unscored is None
            info = client.model_info()
        (asked,) = server.asked
        assert "strict" not in asked.inputs
        assert (info.template, info.fields) == ("", ())
    finally:
        server.close()


def test_a_report_is_bounded_and_says_the_most_frequent_first() -> None:
    reader = ItemReader("{title}")
    many = [json.dumps({f"field{number}": 1, "x" * 5_000: 1}) for number in range(300)]
    reader.render(many, "items")
    told = json.loads(reader.fields_json())
    assert told["missing"] == {"title": 300}
    assert len(told["unknown"]) == MOST_FIELDS
    assert next(iter(told["unknown"].items())) == ("x" * 100, 300)


def test_names_that_are_no_text_are_reported_as_json_can_hold_them() -> None:
    reader = ItemReader("{title}")
    reader.render(['{"\\ud800": 1}'], "items")
    assert reader.fields_json().isascii()


def test_fields_of_a_template_come_once_in_its_order() -> None:
    assert template_fields("{b} by {a} ({b})") == ("b", "a")
    with pytest.raises(TextError, match=r"items\[0\].*'a'"):
        ItemReader("{b} by {a}", is_strict=True).render(['{"b": 1}'], "items")
