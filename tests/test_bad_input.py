"""Requests that are wrong, odd or malicious: each is refused by name or ranked, and its neighbours never notice."""

import json
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import numpy as np
import pytest
from conftest import Served
from live import (
    INT8_ENSEMBLES,
    LEAK,
    NO_DEADLINE,
    PROTOCOLS,
    Scores,
    ask,
    busy_scorer,
    infer,
    is_healthy,
    largest_difference,
    metric,
    runs,
    scorer_of,
    settled,
    statistics,
    tokenizer_of,
    wait_until,
    wait_until_queued,
)
from tritonclient.utils import InferenceServerException
from tritonrank.artifacts.workspace import Workspace
from tritonrank.judge.open_scorer import open_scorer
from tritonrank.rankers.scorers import EngineScorer, Request
from tritonrank_client import InvalidRequest, RankClient
from tritonrank_client._error_map import translate
from tritonrank_runtime.engines import open_engine

INVALID = {"http": "400", "grpc": "StatusCode.INVALID_ARGUMENT"}
TOLERANCE = 5e-6  # the tiny model's scores lie within a thousandth
MAX_CANDIDATES = MAX_HISTORY = 1_000
MAX_TEXT_BYTES = 65_536
NEIGHBOURS = 2  # one over each protocol


@pytest.fixture(scope="module")
def scorers(workspace: Workspace, joint_workspace: Workspace) -> dict[str, EngineScorer]:
    """What the INT8 ensembles serve, in process."""
    return {"rank": open_scorer(workspace.int8), "rank_joint": open_scorer(joint_workspace.int8)}


Good = dict[str, list[tuple[Request, Scores]]]


@pytest.fixture(scope="module")
def good(held_out: list[Request], scorers: dict[str, EngineScorer]) -> Good:
    """Ordinary requests with the scores that they must get of each ensemble whatever happens beside them."""
    requests = [Request(one.query or "jacket", one.history, one.items[:6]) for one in held_out[:NEIGHBOURS]]
    return {model: [(one, scorer.score(one)) for one in requests] for model, scorer in scorers.items()}


def among_good_ones(
    served: Served, good: Good, model: str, tensors: Mapping[str, Any], inner_model: str | None = None
) -> dict[str, Any]:
    """Answer or error of the tensors over each protocol, sent at one moment with good requests, which must be right.

    The good requests go to the ensemble ``model``; so do the tensors, unless they are for a model inside it.
    """
    neighbours_and_scores = good[model]
    start = Barrier(len(neighbours_and_scores) + len(PROTOCOLS))

    def send_good(number: int) -> Scores:
        with RankClient(served.urls[PROTOCOLS[number % 2]], model=model, timeout=30) as client:
            client.health()  # connects
            start.wait(30)
            return ask(client, neighbours_and_scores[number][0])

    def send(protocol: str) -> Any:
        start.wait(30)
        try:
            return infer(served, protocol, inner_model or model, tensors)
        except InferenceServerException as error:
            return error

    with ThreadPoolExecutor(len(neighbours_and_scores) + len(PROTOCOLS)) as pool:
        outcomes = {protocol: pool.submit(send, protocol) for protocol in PROTOCOLS}
        neighbours = list(pool.map(send_good, range(len(neighbours_and_scores))))
    assert largest_difference(neighbours, [scores for _, scores in neighbours_and_scores]) <= TOLERANCE
    assert is_healthy(served)
    return {protocol: outcome.result() for protocol, outcome in outcomes.items()}


def request_of(**changes: Any) -> dict[str, Any]:
    """The tensors of a small request, some of them replaced; None leaves one out."""
    tensors = {"query": [b"shoes"], "history": [b"red socks"], "items": [b"trail shoes", b"oak desk"]} | changes
    return {name: value for name, value in tensors.items() if value is not None}


def int32(values: Any) -> np.ndarray:
    return np.array(values, dtype=np.int32)


def in_order(answer: Mapping[str, np.ndarray]) -> Scores:
    return answer["scores"][np.argsort(answer["indices"])]


# Refused by name

NESTED = json.dumps({"title": {"en": "Desk"}}).encode()
REFUSED = {
    "no candidates": (request_of(items=[]), "items: empty; at least one candidate"),
    "too many candidates": (request_of(items=[b"a"] * (MAX_CANDIDATES + 1)), "items: 1001 elements; the limit is 1000"),
    "too much history": (request_of(history=[b"a"] * (MAX_HISTORY + 1)), "history: 1001 elements; the limit is 1000"),
    "huge history": (request_of(history=[b"a"] * 100_000), "history: 100000 elements; the limit is 1000"),
    "query too long": (request_of(query=[b"a" * (MAX_TEXT_BYTES + 1)]), "query[0]: 65537 bytes; the limit is 65536"),
    "item too long": (request_of(items=[b"a", b"b" * (MAX_TEXT_BYTES + 1)]), "items[1]: 65537 bytes"),
    "history item too long": (request_of(history=[b"b" * (MAX_TEXT_BYTES + 1)]), "history[0]: 65537 bytes"),
    "query not UTF-8": (request_of(query=[b"caf\xe9"]), "query[0]: not valid UTF-8 (byte 0xe9 at offset 3)"),
    "history not UTF-8": (request_of(history=[b"ok", b"\xff"]), "history[1]: not valid UTF-8"),
    "item not UTF-8": (request_of(items=[b"ok", b"\xed\xa0\x80"]), "items[1]: not valid UTF-8"),
    "id not UTF-8": (request_of(item_ids=[b"1", b"\x80"]), "item_ids[1]: not valid UTF-8"),
    "too few ids": (request_of(item_ids=[b"1"]), "item_ids: 1 elements for 2 items"),
    "too many ids": (request_of(item_ids=[b"1", b"2", b"3"]), "item_ids: 3 elements for 2 items"),
    "no ids": (request_of(item_ids=[]), "item_ids: 0 elements for 2 items"),
    "negative top_k": (request_of(top_k=int32([-1])), "top_k: -1; expected 0 (all) or a positive number"),
    "nested field": (request_of(items=[b"ok", NESTED]), "items[1]: field 'title' must be text"),
    "nested field in history": (request_of(history=[NESTED]), "history[0]: field 'title' must be text"),
    "deeply nested JSON": (request_of(items=[b'{"title":' * 7_000]), "items[0]: JSON nested too deeply"),
    "half a character": (request_of(items=[b'{"title": "\\ud83d"}']), "items[0]: field 'title' holds \\ud83d"),
    "half a character as it is": (request_of(history=[b'{"": "\\ud83d"}']), "history[0]: field '' holds \\ud83d"),
    # Triton's own checks
    "items as numbers": (request_of(items=int32([1, 2])), "'items' data-type is 'INT32'"),
    "top_k as a float": (request_of(top_k=np.array([1], dtype=np.float32)), "'top_k' data-type is 'FP32'"),
    "top_k as text": (request_of(top_k=[b"3"]), "'top_k' data-type is 'BYTES'"),
    "two queries": (request_of(query=[b"a", b"b"]), "shape for input 'query'"),
    "no query": (request_of(query=[]), "shape for input 'query'"),
    "items in a matrix": (request_of(items=np.array([[b"a", b"b"]], dtype=np.object_)), "shape for input 'items'"),
    "no top_k inside": (request_of(top_k=int32([])), "shape for input 'top_k'"),
    "items missing": (request_of(items=None), "items: missing; at least one candidate"),
    "an input too many": (request_of(prices=int32([1, 2])), "unexpected inference input 'prices'"),
    # BYTES tensors whose lengths lie
    "length beyond the end": (request_of(items=b"\xff\xff\xff\x7fabc"), "incomplete string data"),
    "length cut off": (request_of(items=b"\x01\x00"), "'items'"),
    "two elements for one": (request_of(items=b"\x01\x00\x00\x00a\x01\x00\x00\x00b"), "'items'"),
}


@pytest.mark.parametrize(("tensors", "message"), REFUSED.values(), ids=REFUSED)
def test_a_bad_request_is_refused_by_name_and_hurts_no_other(
    served: Served, good: Good, tensors: dict[str, Any], message: str
) -> None:
    before = runs(served, "rank")
    for protocol, error in among_good_ones(served, good, "rank", tensors).items():
        assert isinstance(error, InferenceServerException), error
        assert message in error.message()
        assert error.status() == INVALID[protocol]
        assert isinstance(translate(error, url="u", model="rank"), InvalidRequest)
    assert runs(served, "rank") - before <= NEIGHBOURS, "it never reached the engine"


def test_no_row_of_a_bad_request_reaches_a_joint_engine(
    served: Served, good: Good, scorers: dict[str, EngineScorer]
) -> None:
    tensors, message = REFUSED["nested field"]

    def computed() -> float:
        return metric(served, "tritonrank_tokens_needed_total", model="ranker_joint")

    before = settled(computed)
    for error in among_good_ones(served, good, "rank_joint", tensors).values():
        assert message in error.message()
    scorer = scorers["rank_joint"]
    different = [Request(one.query, one.history, [*dict.fromkeys(one.items)]) for one, _ in good["rank_joint"]]
    engine = open_engine(served.joint_workspace.int8)
    _, of_the_good = engine.token_counts([scorer.tensors(one) for one in different])
    wait_until(lambda: computed() == before + of_the_good, "the metrics page has the good ones, and no more")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_client_refuses_for_the_server_with_its_words(served: Served, protocol: str) -> None:
    """What the client cannot know, such as a limit, comes back as the same error class with the server's reason."""
    with RankClient(served.urls[protocol]) as client:
        with pytest.raises(InvalidRequest, match=r"items: 1001 elements; the limit is 1000") as caught:
            client.rank(items=["a"] * (MAX_CANDIDATES + 1))
        assert caught.value.attempts == 1, "sending it again would not help"


# Odd, but fine

LONG = "a very long text about trail shoes " * 600
ODD = {
    "duplicates": Request("shoes", ["socks"], ["desk", "shoes", "desk", "shoes"]),
    "20,000 characters": Request(LONG[:20_000], [LONG[:20_000]] * 3, [LONG[:20_000], "shoes", LONG[7:20_007]]),
    "as long as allowed": Request("", [], ["é" * (MAX_TEXT_BYTES // 2), "shoes"]),
    "one word of 20,000": Request("x" * 20_000, [], ["y" * 20_000, "z"]),
    "as much history as allowed": Request("", [f"item {number}" for number in range(MAX_HISTORY)], ["a", "b"]),
    "emoji": Request("👟🔥", ["👩‍👩‍👧‍👦 family"], ["shoes 👟", "🪑", "desk"]),
    "right to left": Request("أحذية رياضية", ["מגפיים"], ["حذاء أحمر", "שולחן", "\u202eshoes\u202c"]),
    "CJK": Request("跑鞋", ["電影 椅子"], ["红色跑鞋", "ランニングシューズ", "운동화", "desk"]),
    "NUL inside": Request("sh\0oes", ["so\0cks\0"], ["trail\0 shoes\0", "\0desk"]),
    "empty history items": Request("", ["", " ", "\0"], ["shoes", "desk"]),
    "blank query": Request(" \t ", [], ["shoes", "desk"]),
    "combining marks": Request("e\u0301" * 100, [], ["Z" + "\u0351" * 500, "desk"]),
    "special tokens": Request("[SEP] [CLS]", ["[MASK]"], ["[PAD] [PAD]", "[SEP]", "desk"]),
    "almost JSON": Request('{"title"', ["{'title': 1}"], ['{"title": "Desk"', "{", "[1, 2]"]),
}


@pytest.mark.parametrize("model", INT8_ENSEMBLES)
@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_odd_text_is_ranked_as_in_process(
    served: Served, good: Good, scorers: dict[str, EngineScorer], odd: Request, model: str
) -> None:
    tensors = {
        "query": [odd.query.encode()],
        "history": [one.encode() for one in odd.history],
        "items": [one.encode() for one in odd.items],
    }
    expected = scorers[model].score(odd)
    for answer in among_good_ones(served, good, model, tensors).values():
        assert not isinstance(answer, Exception), answer
        found = in_order(answer)
        assert np.isfinite(found).all()
        assert largest_difference([found], [expected]) <= TOLERANCE


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_values_that_json_allows_are_rendered(served: Served, scorers: dict[str, EngineScorer], protocol: str) -> None:
    scorer = scorers["rank"]
    items = [{"title": 7, "attributes": None}, {"title": ["a", 1.5, None]}, {"title": "x", "other": {"nested": [1]}}]
    expected = scorer.score(Request("", [], [scorer.tokenizer.render(json.dumps(item)) for item in items]))
    with RankClient(served.urls[protocol]) as client:
        result = client.rank(items=items)
    found = np.array([place.score for place in sorted(result.ranking, key=lambda place: place.index)])
    assert largest_difference([found], [expected]) <= TOLERANCE


# Straight to an inner model: anyone who reaches the server can do that. (A tensor of shape [0, 0] is left out: it
# hangs inside the batcher of Triton 2.51.)


def rows(input_ids: Any, attention_mask: Any = None, token_type_ids: Any = None) -> dict[str, np.ndarray]:
    ids = int32(input_ids)
    mask = np.ones_like(ids) if attention_mask is None else int32(attention_mask)
    types = np.zeros_like(ids) if token_type_ids is None else int32(token_type_ids)
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}


def shared(context_ids: Any, candidate_ids: Any) -> dict[str, np.ndarray]:
    """One request to the scorer of a shared-context ranker, the batch dimension put in front."""
    return {"context_ids": int32([context_ids]), "candidate_ids": int32([candidate_ids])}


def logits(rows: int, row_of_candidate: Any, **others: Any) -> dict[str, Any]:
    """For ``select``, whose logits are a list for a shared-context ranker."""
    values = np.arange(rows, dtype=np.float32)
    return {"logits": values, "row_of_candidate": int32(row_of_candidate), **others}


OUTSIDE_VOCABULARY = {"rank": shared([101, 102], [[101, 99_999]]), "rank_joint": rows([[101, 99_999, 102]])}
REFUSED_BY_THE_ENGINE = "score: the engine refused these token ids: InvalidArgument; the server's log has"
CONTEXT = "context_ids: expected at least one token id, none of them negative"
CANDIDATES = "candidate_ids: expected rows of token ids, at least one each, then padding of -1"
ROW_OF_CANDIDATE = "row_of_candidate: expected at least one, each the place of one of"
MASK = "attention_mask: expected ones for the tokens of a row"
MALFORMED = {
    "score_joint: no rows": ("score_joint", rows(np.zeros((0, 8))), "byte size mismatch"),
    "score_joint: rows of no tokens": ("score_joint", rows(np.zeros((2, 0))), MASK),
    "score_joint: mask of zeros": ("score_joint", rows([[1, 2]], [[0, 0]]), MASK),
    "score_joint: one row masked out": ("score_joint", rows([[1, 2], [3, 4]], [[1, 1], [0, 0]]), MASK),
    "score_joint: mask with a hole": ("score_joint", rows([[1, 2, 3]], [[1, 0, 1]]), MASK),
    "score_joint: negative mask": ("score_joint", rows([[1, 2]], [[-5, -1]]), MASK),
    "score_joint: mask that asks for gigabytes": ("score_joint", rows([[1, 2]], [[2**30, 2**30]]), MASK),
    "score_joint: tensors of different lengths": ("score_joint", rows([[1, 2, 3]], [[1, 1]], [[0]]), "shape [1, 3]"),
    "score_joint: tensors of different rows": (
        "score_joint",
        rows([[1], [2]], [[1]], [[0]]),
        "batch size does not match",
    ),
    "score_joint: id outside the vocabulary": ("score_joint", OUTSIDE_VOCABULARY["rank_joint"], REFUSED_BY_THE_ENGINE),
    "score_joint: negative id": ("score_joint", rows([[1, -1]]), "input_ids: ids from -1 to 1; expected 0 to"),
    "score_joint: unknown segment": (
        "score_joint",
        rows([[1, 2]], None, [[0, 7]]),
        "token_type_ids: ids from 0 to 7; expected 0 to 1",
    ),
    "score_joint: longer than a row can be": (
        "score_joint",
        rows(np.ones((1, 3_000))),
        "input_ids: rows of 3000 tokens; the limit is",
    ),
    "score_joint: a mask for nothing": (
        "score_joint",
        {name: tensor for name, tensor in rows([[1]]).items() if name != "input_ids"} | NO_DEADLINE,
        "input_ids: missing",
    ),
    "score_joint: too many rows": ("score_joint", rows(np.ones((1_001, 2))), "batch-size must be <= 1000"),
    "score_joint: one dimension": ("score_joint", rows([1, 2]), "unexpected shape"),
    "score_joint: another type": (
        "score_joint",
        rows([[1]]) | {"input_ids": np.ones((1, 1), np.float32)},
        "'input_ids' data-type",
    ),
    "score: no context": ("score", shared([], [[1]]), CONTEXT),
    "score: negative context": ("score", shared([1, -1], [[1]]), CONTEXT),
    "score: no candidates": ("score", shared([1], np.zeros((0, 4))), CANDIDATES),
    "score: candidates of no tokens": ("score", shared([1], np.zeros((3, 0))), CANDIDATES),
    "score: too many candidates": (
        "score",
        shared([1], np.ones((MAX_CANDIDATES + 1, 2))),
        "candidate_ids: 1001 candidates; the limit is 1000",
    ),
    "score: a candidate of padding": ("score", shared([1], [[1, 2], [-1, -1]]), CANDIDATES),
    "score: a candidate with a hole": ("score", shared([1], [[1, -1, 2]]), CANDIDATES),
    "score: another padding": ("score", shared([1], [[1, -2]]), CANDIDATES),
    "score: id outside the vocabulary": ("score", OUTSIDE_VOCABULARY["rank"], REFUSED_BY_THE_ENGINE),
    "score: context longer than the model": (
        "score",
        shared([1] * 600, [[1]]),
        "context_ids: rows of 600 tokens; the limit",
    ),
    "score: candidate longer than the model": ("score", shared([1], [[1] * 600]), "candidate_ids: rows of 600 tokens"),
    "score: candidates missing": ("score", {"context_ids": int32([[1]])} | NO_DEADLINE, "candidate_ids: missing"),
    "score: context missing": ("score", {"candidate_ids": int32([[[1]]])} | NO_DEADLINE, "context_ids: missing"),
    "score: two requests in one": (
        "score",
        {"context_ids": int32([[1], [2]]), "candidate_ids": int32([[[1]], [[2]]])},
        "context_ids: 2 requests in one; send them one by one",
    ),
    "score: too many requests in one": (
        "score",
        {"context_ids": np.ones((9, 2), np.int32), "candidate_ids": np.ones((9, 1, 2), np.int32)},
        "batch-size must be <= 8",
    ),
    "score: different numbers of requests": (
        "score",
        {"context_ids": int32([[1], [2]]), "candidate_ids": int32([[[1]]])},
        "batch size does not match",
    ),
    "score: two dimensions": (
        "score",
        {"context_ids": int32([[1]]), "candidate_ids": int32([[1]])},
        "unexpected shape",
    ),
    "score: no batch": ("score", {"context_ids": int32([1]), "candidate_ids": int32([[1]])}, "unexpected shape"),
    "score: another type": (
        "score",
        {"context_ids": int32([[1]]), "candidate_ids": np.ones((1, 1, 1), np.float32)},
        "'candidate_ids' data-type",
    ),
    "score: a joint ranker's rows": ("score", rows([[1, 2]]), "unexpected inference input"),
    "select: row out of range": ("select", logits(2, [0, 2]), ROW_OF_CANDIDATE),
    "select: negative row": ("select", logits(2, [0, -2]), ROW_OF_CANDIDATE),
    "select: not a number": (
        "select",
        logits(2, [0, 1]) | {"logits": np.array([1, np.nan], np.float32)},
        "logits: expected finite numbers",
    ),
    "select: infinite": (
        "select",
        logits(2, [1, -1]) | {"logits": np.array([1, -np.inf], np.float32)},
        "logits: expected finite numbers",
    ),
    "select: no rows": ("select", {"logits": np.ones(2, np.float32), "item_ids": [b"a"]}, "row_of_candidate: missing"),
    "select: ids for logits": ("select", {"row_of_candidate": int32([0]), "top_k": int32([1])}, "logits: missing"),
    "select: no candidates": ("select", logits(2, []), ROW_OF_CANDIDATE),
    "select: no logits": ("select", logits(0, [0]), ROW_OF_CANDIDATE),
    "select: too few ids": ("select", logits(2, [0, 1], item_ids=[b"a"]), "item_ids: 1 elements for 2 candidates"),
    "select: too many ids": ("select", logits(1, [0], item_ids=[b"a", b"b"]), "item_ids: 2 elements for 1 candidates"),
    "select: negative top_k": ("select", logits(1, [0], top_k=int32([-1])), "top_k: -1"),
    "select: two dimensions": ("select", logits(1, [0]) | {"logits": np.ones((1, 2), np.float32)}, "unexpected shape"),
    "select_joint: two columns": (
        "select_joint",
        logits(1, [0]) | {"logits": np.ones((1, 2), np.float32)},
        "unexpected shape",
    ),
    "select_joint: row out of range": (
        "select_joint",
        logits(2, [0, 2]) | {"logits": np.ones((2, 1), np.float32)},
        ROW_OF_CANDIDATE,
    ),
    "tokenize: no candidates": ("tokenize", request_of(items=[]), "items: empty; at least one candidate"),
    "tokenize: items missing": (
        "tokenize",
        request_of(items=None, item_ids=[b"a"]),
        "items: missing; at least one candidate",
    ),
    "tokenize: not UTF-8": ("tokenize", request_of(query=[b"\xff"]), "query[0]: not valid UTF-8"),
}


@pytest.mark.parametrize(("model", "tensors", "message"), MALFORMED.values(), ids=MALFORMED)
def test_malformed_tensors_for_an_inner_model_are_refused(
    served: Served, good: Good, model: str, tensors: dict[str, Any], message: str
) -> None:
    ensemble = "rank_joint" if "joint" in model else "rank"
    for protocol, error in among_good_ones(served, good, ensemble, tensors, inner_model=model).items():
        assert isinstance(error, InferenceServerException), error
        assert message in error.message()
        assert error.status() == INVALID[protocol] or "engine" in message
        assert not LEAK.search(error.message())


@pytest.mark.parametrize("model", INT8_ENSEMBLES)
def test_token_ids_that_the_engine_refuses_take_no_batch_mates_along(served: Served, good: Good, model: str) -> None:
    # Batches that hold a bad request or two, and good ones. Bad requests have one row, good ones at least so many:
    smallest_good = min(len(set(request.items)) for request, _ in good[model])
    is_shared = {
        "rank": lambda requests: len(PROTOCOLS) < requests,
        "rank_joint": lambda rows: smallest_good < rows and rows % smallest_good > 0,
    }
    steps = f"{model}_steps"
    tensors, before = OUTSIDE_VOCABULARY[model] | NO_DEADLINE, statistics(served, scorer_of(steps))
    with ThreadPoolExecutor(1) as pool:
        with busy_scorer(served, steps):
            tokenized = statistics(served, tokenizer_of(steps))
            good_ones = {steps: good[model]}
            sent = pool.submit(among_good_ones, served, good_ones, steps, tensors, inner_model=scorer_of(steps))
            wait_until_queued(served, steps, tokenized, NEIGHBOURS)
            time.sleep(0.2)  # the bad ones left at the same moment, but nothing tells that they are in the queue
        errors = sent.result()
    for error in errors.values():
        assert REFUSED_BY_THE_ENGINE in str(error)
    batches = (statistics(served, scorer_of(steps)) - before).batches
    assert any(is_shared[model](size) for size in batches), "a bad request never shared an execution with a good one"
