"""Every dialect through a running gateway and a real Triton: its answer, its errors, the scores of the client."""

import math
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from conftest import Served
from gateways import RunningGateway, running_gateway
from tritonrank_client import RankClient, RankResult

QUERY = "a lamp for my desk"
TEXTS = ["desk lamp", "garden chair", "an oak desk", "bulb", "office"]
LONG = "alpha beta gamma delta " * 2_000


@pytest.fixture(scope="module")
def gateway(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    with running_gateway(served.triton.grpc_url, tmp_path_factory.mktemp("gateway")) as running:
        yield running


@pytest.fixture(scope="module")
def http(gateway: RunningGateway) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=gateway.url, timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def expected(served: Served) -> RankResult:
    """What our own client says about the same request."""
    with RankClient(served.triton.grpc_url) as client:
        return client.rank(query=QUERY, items=TEXTS, want=["item_tokens", "context_tokens"])


def sigmoids(result: RankResult) -> list[float]:
    return [1 / (1 + math.exp(-score)) for score in result.scores]


def post(http: httpx.Client, path: str, body: Any, status: int = 200, **headers: str) -> Any:
    answer = http.post(path, json=body, headers=headers)
    assert answer.status_code == status, answer.text
    return answer.json()


def check(places: list[dict[str, Any]], expected: RankResult, name: str, scores: list[float]) -> None:
    """The same order and scores as the client's."""
    assert [place["index"] for place in places] == list(expected.indices)[: len(places)]
    assert [place[name] for place in places] == pytest.approx(scores[: len(places)], abs=1e-6)


def test_own_has_everything(http: httpx.Client, expected: RankResult, served: Served) -> None:
    answer = post(http, "/v1/rank", {"query": QUERY, "items": TEXTS, "score_type": "sigmoid"})
    check(answer["ranking"], expected, "score", sigmoids(expected))
    check(answer["ranking"], expected, "logit", list(expected.scores))
    assert (answer["artifact"], answer["score_type"]) == (expected.artifact, "sigmoid")
    assert answer["usage"]["item_tokens"] == sum(expected.item_tokens or ())
    body = {
        "query": QUERY, "history": ["chair", {"title": "shelf"}],
        "items": [{"text": "desk"}, {"title": "lamp"}, "desk"],
        "item_ids": ["a", 7, "a"], "top_k": 5, "return_items": True,
    }  # fmt: skip
    answer = post(http, "/v1/rank", body)
    with RankClient(served.triton.grpc_url) as client:
        same = client.rank(
            query=QUERY, history=["chair", {"title": "shelf"}], items=["desk", {"title": "lamp"}, "desk"],
            item_ids=["a", 7, "a"], top_k=5,
        )  # fmt: skip
    check(answer["ranking"], same, "logit", list(same.scores))
    assert {place["item_id"] for place in answer["ranking"]} == {"a", 7}
    assert answer["ranking"][0]["item"] == body["items"][answer["ranking"][0]["index"]]


def test_tei(http: httpx.Client, expected: RankResult) -> None:
    answer = post(http, "/rerank", {"query": QUERY, "texts": TEXTS, "return_text": True})
    check(answer, expected, "score", sigmoids(expected))
    assert [place["text"] for place in answer] == [TEXTS[place["index"]] for place in answer]
    raw = post(http, "/rerank", {"query": QUERY, "texts": TEXTS, "raw_scores": True, "unknown": 1})
    check(raw, expected, "score", list(expected.scores))
    assert set(raw[0]) == {"index", "score"}
    pairs = post(http, "/predict", {"inputs": [[QUERY, text] for text in TEXTS], "raw_scores": True})
    by_index = dict(zip(expected.indices, expected.scores, strict=True))
    assert [pair[0]["score"] for pair in pairs] == pytest.approx([by_index[place] for place in range(5)], abs=1e-6)
    (one,) = post(http, "/predict", {"inputs": [QUERY, TEXTS[0]], "raw_scores": True})
    assert (one["label"], one["score"]) == ("LABEL_0", pytest.approx(by_index[0], abs=1e-6))
    assert http.get("/info").json()["model_type"]["reranker"]["id2label"] == {"0": "LABEL_0"}
    assert http.get("/health").status_code == 200


@pytest.mark.parametrize("client", ["", "cohere"])
def test_jina_and_cohere_share_a_path(http: httpx.Client, expected: RankResult, client: str) -> None:
    headers = {"X-Fern-SDK-Name": client} if client else {}
    body = {"query": QUERY, "documents": TEXTS, "top_n": 3, "return_documents": True, "model": "m"}
    answer = post(http, "/v1/rerank", body, **headers)
    check(answer["results"], expected, "relevance_score", sigmoids(expected))
    assert len(answer["results"]) == 3
    assert answer["results"][0]["document"] == {"text": TEXTS[expected.indices[0]]}
    assert answer["usage"]["total_tokens"] == (expected.context_tokens or 0) + sum(expected.item_tokens or ())
    assert ("meta" in answer) == bool(client)
    without = post(http, "/v1/rerank", {"query": QUERY, "documents": TEXTS}, **headers)
    assert all("document" not in place for place in without["results"])


def test_cohere_reads_the_fields_it_is_told(http: httpx.Client, expected: RankResult) -> None:
    documents = [{"text": text, "price": 1} for text in TEXTS]
    answer = post(http, "/v1/rerank", {"query": QUERY, "documents": documents, "max_chunks_per_doc": 10})
    check(answer["results"], expected, "relevance_score", sigmoids(expected))
    fields = {"query": QUERY, "documents": [{"a": "lamp", "b": "x"}, {"a": "y"}], "rank_fields": ["a", "b"]}
    assert len(post(http, "/v1/rerank", fields)["results"]) == 2
    second = post(http, "/v2/rerank", {"query": QUERY, "documents": TEXTS, "model": "rerank-v3.5"})
    check(second["results"], expected, "relevance_score", sigmoids(expected))
    assert second["meta"]["billed_units"] == {"search_units": 1}
    cut = post(http, "/v2/rerank", {"query": QUERY, "documents": TEXTS, "max_tokens_per_doc": 1})
    assert cut["meta"]["warnings"] == ["2 documents were truncated"] or "truncated" in cut["meta"]["warnings"][0]


def test_vllm(http: httpx.Client, expected: RankResult) -> None:
    answer = post(http, "/rerank", {"model": "m", "query": QUERY, "documents": TEXTS, "use_activation": True})
    check(answer["results"], expected, "relevance_score", sigmoids(expected))
    assert answer["results"][0]["document"]["text"] == TEXTS[expected.indices[0]]
    by_index = dict(zip(expected.indices, expected.scores, strict=True))
    for names in (("text_1", "text_2"), ("queries", "documents"), ("data_1", "data_2")):
        for first in (QUERY, [QUERY], [QUERY] * 5):
            body = {names[0]: first, names[1]: TEXTS, "use_activation": False}
            told = post(http, "/v1/score", body)
            assert [one["score"] for one in told["data"]] == pytest.approx(
                [by_index[place] for place in range(5)], abs=1e-6
            )
    assert post(http, "/score", {"text_1": "a", "text_2": "b"})["object"] == "list"
    error = post(http, "/score", {"text_1": ["a", "b"], "text_2": ["a", "b", "c"]}, 400)
    assert error["error"]["code"] == 400
    assert "text_2" in error["error"]["message"]


def test_nim(http: httpx.Client, expected: RankResult) -> None:
    body = {"model": "m", "query": {"text": QUERY}, "passages": [{"text": text} for text in TEXTS]}
    check(post(http, "/v1/ranking", body)["rankings"], expected, "logit", list(expected.scores))
    long = body | {"passages": [{"text": "a"}, {"text": LONG}], "truncate": "NONE"}
    assert "passages[1]" in post(http, "/v1/ranking", long, 413)["message"]
    assert len(post(http, "/v1/ranking", long | {"truncate": "END"})["rankings"]) == 2


def test_models(http: httpx.Client) -> None:
    assert http.get("/v1/models").json()["data"][0]["id"] == "rank"


BAD = {
    "/v1/rank": ("items", lambda body: body["error"]["message"], 422),
    "/rerank": ("texts", lambda body: body["error"], 422),
    "/v1/rerank": ("documents", lambda body: body["detail"], 422),
    "/v2/rerank": ("documents", lambda body: body["message"], 400),
    "/v1/ranking": ("passages", lambda body: body["message"], 422),
}


@pytest.mark.parametrize("path", BAD)
def test_one_bad_document_among_many_is_named(http: httpx.Client, path: str) -> None:
    field, message, status = BAD[path]
    for bad, where in ((None, f"{field}[37]"), (7, f"{field}[37]"), ({}, f"{field}[37]")):
        if path == "/v1/rank" and bad == {}:
            continue  # an object without fields has no text: it comes last
        documents: list[Any] = ["text"] * 100
        documents[37] = bad
        query: Any = {"text": "a"} if path == "/v1/ranking" else "a"
        assert where in message(post(http, path, {"query": query, field: documents}, status))


@pytest.mark.parametrize("path", BAD)
def test_a_long_document_never_fails_a_call(http: httpx.Client, path: str) -> None:
    field, *_ = BAD[path]
    documents = ["desk lamp", "x" * 300_000, LONG, "\u0301" * 50_000, "{" + "\x01" * 60_000]
    answer = http.post(path, json={"query": LONG * 10, field: documents})
    assert answer.status_code == 200, answer.text
    assert int(answer.headers["X-Truncated-Documents"]) >= 3


def test_the_side_that_is_kept_is_the_dialects_choice(http: httpx.Client) -> None:
    ends = LONG + " lamp"
    body = {"query": QUERY, "texts": [ends], "raw_scores": True}
    right, left = (
        post(http, "/rerank", body | {"truncation_direction": side})[0]["score"] for side in ("Right", "Left")
    )
    assert right != left
    assert "texts[0]" in post(http, "/rerank", body | {"truncate": False}, 413)["error"]
    one = {"query": QUERY, "items": [ends], "max_item_tokens": 1, "truncation_direction": "left"}
    lamp = post(http, "/v1/rank", {"query": QUERY, "items": ["lamp"]})
    assert post(http, "/v1/rank", one)["ranking"][0]["logit"] == pytest.approx(lamp["ranking"][0]["logit"], abs=1e-5)


@pytest.mark.parametrize("path", BAD)
def test_nothing_and_no_json_have_each_dialects_error(http: httpx.Client, path: str) -> None:
    field, message, _ = BAD[path]
    empty = http.post(path, json={"query": "a", field: []})
    if path == "/v1/rank":  # ours: a search without hits is no error
        assert empty.json()["ranking"] == []
    else:
        assert empty.status_code in (400, 422)
        assert field in message(empty.json())
    torn = http.post(path, content=b'{"query": "a", ', headers={"Content-Type": "application/json"})
    assert torn.status_code == 400
    assert "JSON" in message(torn.json())


def test_our_own_dialect_refuses_what_it_does_not_know(http: httpx.Client) -> None:
    assert "topk" in post(http, "/v1/rank", {"items": ["a"], "topk": 3}, 422)["error"]["message"]
    assert "score_type" in post(http, "/v1/rank", {"items": ["a"], "score_type": "calibrated"}, 422)["error"]["message"]
