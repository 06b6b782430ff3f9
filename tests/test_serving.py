"""The whole ensemble in a real Triton: it ranks as the artifact does, in company as alone, and fails as promised."""

import asyncio
import itertools
import json
import os
import random
import re
import shutil
import signal
import socket
import statistics as statistics_module
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from conftest import Served
from live import (
    ENSEMBLES,
    INT8_ENSEMBLES,
    PROTOCOLS,
    Scores,
    ask,
    ask_async,
    busy_scorer,
    in_request_order,
    infer,
    is_healthy,
    is_joint,
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
from refused_ports import refused_address
from tritonclient.utils import InferenceServerException
from tritonrank import cli
from tritonrank.artifacts import read_manifest
from tritonrank.artifacts.workspace import Workspace
from tritonrank.errors import ServerError
from tritonrank.judge.open_scorer import open_scorer
from tritonrank.rankers.scorers import EngineScorer, Request
from tritonrank.serve import serving as serve_module
from tritonrank.serve.server import LocalTriton
from tritonrank.serve.serving import GOLDEN_FILE, check_golden_cases, golden_requests, serving
from tritonrank_client import (
    AsyncRankClient,
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    RankClient,
    Retry,
    ServerFault,
    Unavailable,
)
from tritonrank_client._error_map import translate
from tritonrank_runtime.candidate_rows import NO_TEXT_SCORE
from tritonrank_runtime.engines import open_engine
from tritonrank_runtime.item_text import render_fields
from tritonrank_runtime.text import TextRules

CANDIDATES = 15  # of each held-out request: this file asks some thousand times
LIVE_TOLERANCE = 1e-4
BATCH_TOLERANCE = 1e-5
LARGEST_SHARE = 0.02
"""Of the spread of a request's scores: the tiny model's lie within a thousandth, where 1e-4 alone would allow much."""
IN_FLIGHT = 4
"""Below the queue of the tiny recipe; where all of them must be answered, on a crowded machine, clients are PATIENT."""
PATIENT = Retry(attempts=200, initial_seconds=0.02, max_seconds=0.2, budget_ratio=1, budget_burst=10_000)
ONCE = Retry(attempts=1)
MARKER = "TRITONRANK_TEST_SERVE"


@pytest.fixture(scope="module")
def requests(held_out: list[Request]) -> list[Request]:
    return [Request(one.query, one.history, one.items[:CANDIDATES]) for one in held_out]


@pytest.fixture(scope="module")
def in_process(workspace: Workspace, joint_workspace: Workspace) -> dict[str, EngineScorer]:
    """What each served model is held against: the INT8 graphs themselves, and PyTorch for the FP32 graphs."""
    folders = {
        "rank": workspace.int8,
        "rank_fp32": workspace.teacher,
        "rank_joint": joint_workspace.int8,
        "rank_joint_fp32": joint_workspace.teacher,
    }
    return {model: open_scorer(folder) for model, folder in folders.items()}


@pytest.fixture(scope="module")
def expected(in_process: dict[str, EngineScorer], requests: list[Request]) -> dict[str, list[Scores]]:
    return {model: [scorer.score(one) for one in requests] for model, scorer in in_process.items()}


@pytest.fixture(scope="module")
def spread(expected: dict[str, list[Scores]]) -> float:
    """Standard deviation of the scores of one request."""
    return min(float(np.median([one.std() for one in scores])) for scores in expected.values())


@pytest.fixture(scope="module")
def live_tolerance(spread: float) -> float:
    return min(LIVE_TOLERANCE, LARGEST_SHARE * spread)


@pytest.fixture(scope="module")
def batch_tolerance(spread: float) -> float:
    return min(BATCH_TOLERANCE, LARGEST_SHARE * spread)


# Live scores are those of the artifact


def test_the_models_are_told_apart_by_the_tolerance(
    requests: list[Request], expected: dict[str, list[Scores]], live_tolerance: float
) -> None:
    assert len(requests) >= 100
    for model, other in itertools.combinations(ENSEMBLES, 2):
        apart = [np.abs(one - two).max() for one, two in zip(expected[model], expected[other], strict=True)]
        assert min(apart) > 2 * live_tolerance, (model, other)


@pytest.mark.parametrize("model", ENSEMBLES)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_live_scores_are_those_in_process(
    served: Served,
    requests: list[Request],
    expected: dict[str, list[Scores]],
    protocol: str,
    model: str,
    live_tolerance: float,
) -> None:
    with (
        RankClient(served.urls[protocol], model=model, timeout=60, retry=PATIENT) as client,
        ThreadPoolExecutor(IN_FLIGHT) as pool,
    ):
        found = list(pool.map(lambda one: ask(client, one), requests))
    assert largest_difference(found, expected[model]) <= live_tolerance


@pytest.mark.parametrize("model", ENSEMBLES)
@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_live_scores_are_those_in_process_with_asyncio(
    served: Served,
    requests: list[Request],
    expected: dict[str, list[Scores]],
    protocol: str,
    model: str,
    live_tolerance: float,
) -> None:
    places = asyncio.Semaphore(IN_FLIGHT)

    async def ask_in_turn(client: AsyncRankClient, one: Request) -> Scores:
        async with places:
            return await ask_async(client, one)

    async with AsyncRankClient(served.urls[protocol], model=model, timeout=60, retry=PATIENT) as client:
        found = await asyncio.gather(*(ask_in_turn(client, one) for one in requests))
    assert largest_difference(found, expected[model]) <= live_tolerance


# Batching


@pytest.mark.parametrize("model", ENSEMBLES)
async def test_a_score_is_the_same_alone_and_among_seven_others(
    served: Served, requests: list[Request], model: str, batch_tolerance: float
) -> None:
    eight = different_requests(requests, 8)
    async with AsyncRankClient(served.triton.grpc_url, model=model, timeout=60, retry=PATIENT) as client:
        before = runs(served, model)
        alone = [await ask_async(client, one) for one in eight]
        assert runs(served, model) - before == 8
        before = runs(served, model)
        with busy_scorer(served, model):
            waiting = await queued(served, client, model, eight)
        together = await asyncio.gather(*waiting)
    together_runs = runs(served, model) - before - 1  # without that of the small request
    assert together_runs <= 3, "they did not meet in the queue"
    assert largest_difference(together, alone) <= batch_tolerance


@pytest.mark.parametrize("model", INT8_ENSEMBLES)
async def test_the_scorer_batches_across_requests_of_different_shapes(
    served: Served, requests: list[Request], model: str
) -> None:
    six = different_requests(requests, 6)
    async with AsyncRankClient(served.triton.grpc_url, model=model, timeout=60) as client:
        before = runs(served, model)
        with busy_scorer(served, model):
            waiting = await queued(served, client, model, six)
        await asyncio.gather(*waiting)
    # The small request's, and one of all that waited for it.
    assert runs(served, model) - before == 2


@pytest.mark.parametrize("model", INT8_ENSEMBLES)
async def test_small_concurrent_requests_never_wait_for_half_a_second(served: Served, model: str) -> None:
    async def seconds(client: AsyncRankClient) -> float:
        return (await client.rank(items=["desk", "lamp"], query="oak")).seconds

    async with AsyncRankClient(served.triton.grpc_url, model=model, timeout=60) as client:
        await client.rank(items=["desk"])
        slowest = [max(await asyncio.gather(*(seconds(client) for _ in range(6)))) for _ in range(20)]
    # One round in two may be late for another reason: the machine was busy.
    assert statistics_module.median(slowest) < 0.45


# What a ranking is


@pytest.mark.parametrize("model", INT8_ENSEMBLES)
def test_best_first_and_ties_in_request_order(served: Served, requests: list[Request], model: str) -> None:
    items = [*requests[0].items, *requests[0].items[::-1], *requests[0].items]  # each text three times
    with RankClient(served.triton.grpc_url, model=model) as client:
        result = client.rank(items=items, query="espresso machine")
    scores = in_request_order(result, len(items))
    assert result.indices == tuple(np.argsort(-scores, kind="stable"))
    assert len(set(result.scores)) > CANDIDATES // 2, "the order tests more than ties"
    assert all(len({scores[i] for i, text in enumerate(items) if text == one}) == 1 for one in items)


@pytest.mark.parametrize("top_k", [1, 4, CANDIDATES, 10_000])
def test_top_k_is_the_head_of_the_whole_ranking(
    served: Served, requests: list[Request], top_k: int, batch_tolerance: float
) -> None:
    with RankClient(served.triton.grpc_url) as client:
        whole = client.rank(items=requests[1].items, history=requests[1].history)
        head = client.rank(items=requests[1].items, history=requests[1].history, top_k=top_k)
    assert head.indices == whole.indices[:top_k]
    assert head.scores == pytest.approx(whole.scores[:top_k], abs=batch_tolerance)


def test_of_candidates_with_one_id_the_best_scored_stays(served: Served, requests: list[Request]) -> None:
    item_ids = [f"id {position % 4}" for position in range(CANDIDATES)]
    with RankClient(served.triton.grpc_url) as client:
        whole = client.rank(items=requests[2].items, history=requests[2].history)
        deduped = client.rank(items=requests[2].items, history=requests[2].history, item_ids=item_ids)
        two = client.rank(items=requests[2].items, history=requests[2].history, item_ids=item_ids, top_k=2)
    seen: dict[str, int] = {}
    for index in whole.indices:
        seen.setdefault(item_ids[index], index)
    assert deduped.indices == tuple(seen.values())
    assert [place.item_id for place in deduped.ranking] == list(seen)
    assert two.indices == deduped.indices[:2], "top_k counts what is left after merging"


@pytest.mark.parametrize("model", INT8_ENSEMBLES)
def test_equal_texts_are_scored_once_and_all_returned(served: Served, requests: list[Request], model: str) -> None:
    scorer = scorer_of(model)

    def tokens() -> float:
        return metric(served, "tritonrank_tokens_needed_total", model=scorer)

    text, other = requests[3].items[:2]
    with RankClient(served.triton.grpc_url, model=model) as client:
        tokens_before = settled(tokens)
        client.rank(items=[text, other], query="q")
        wait_until(lambda: tokens() > tokens_before, "the metrics page has the request")
        tokens_of_two, tokens_before = tokens() - tokens_before, settled(tokens)
        result = client.rank(items=[text, other] * 50, query="q")
        wait_until(lambda: tokens() > tokens_before, "the metrics page has the request")
    assert sorted(result.indices) == list(range(100))
    assert tokens() - tokens_before == tokens_of_two


@pytest.mark.parametrize("model", INT8_ENSEMBLES)
def test_the_metrics_page_tells_what_padding_costs(
    served: Served, requests: list[Request], in_process: dict[str, EngineScorer], model: str
) -> None:
    def counted() -> tuple[float, float]:
        names = ("computed", "needed")
        return tuple(metric(served, f"tritonrank_tokens_{name}_total", model=scorer_of(model)) for name in names)

    engine = open_engine((served.joint_workspace if is_joint(model) else served.workspace).int8)
    expected = engine.token_counts([in_process[model].tensors(requests[5])])
    before = settled(counted)
    with RankClient(served.triton.grpc_url, model=model) as client:
        ask(client, requests[5])
    wait_until(lambda: counted()[1] > before[1], "the metrics page has the request")
    assert tuple(now - then for now, then in zip(counted(), before, strict=True)) == expected


def test_a_user_who_returns_is_not_encoded_again(served: Served, requests: list[Request]) -> None:
    def counted() -> list[float]:
        names = ("hits_total", "misses_total", "bytes")
        return [metric(served, f"tritonrank_context_cache_{name}", model="ranker") for name in names]

    history = [f"oak chair number {number}" for number in range(3)]  # nobody else's
    with RankClient(served.triton.grpc_url) as client:
        before = settled(counted)
        first = ask(client, Request("chair", history, requests[0].items))
        wait_until(lambda: counted() != before, "the metrics page has the request")
        after_first = settled(counted)
        again = ask(client, Request("chair", history, requests[0].items))
        others = ask(client, Request("chair", history, requests[0].items[::-1]))
        wait_until(lambda: counted()[0] >= after_first[0] + 2, "the metrics page has the requests")
    hits, misses, kept = (now - then for now, then in zip(after_first, before, strict=True))
    assert (hits, misses) == (0, 1)
    assert kept > 1_000
    assert counted()[1:] == after_first[1:]
    assert again.tolist() == first.tolist()
    assert others[::-1] == pytest.approx(first, abs=BATCH_TOLERANCE)


NO_TEXT = ["", " \n\t", "\0\0", "\u200b\u200e", '{"name": "A"}', "{}", '{"title": null}', '{"title": " "}', '{"": " "}']


@pytest.mark.parametrize("model", INT8_ENSEMBLES)
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("seed", range(3))
def test_items_without_text_come_last_and_change_nothing(
    served: Served, requests: list[Request], in_process: dict[str, EngineScorer], protocol: str, model: str, seed: int
) -> None:
    draw = random.Random(seed)
    texts = [*requests[seed].items]
    mixed = [*texts]
    for text in draw.sample(NO_TEXT, 5):
        mixed.insert(draw.randrange(len(mixed) + 1), text)
    with_text = [place for place, text in enumerate(mixed) if text not in NO_TEXT]
    without = [place for place, text in enumerate(mixed) if text in NO_TEXT]
    tensors = {"query": [b"oak"], "history": [text.encode() for text in requests[seed].history]}

    def counted() -> float:
        return metric(served, "tritonrank_items_without_text_total", model=tokenizer_of(model))

    def ask_for(items: list[str], **others: Any) -> tuple[list[int], list[float]]:
        answer = infer(served, protocol, model, tensors | {"items": [item.encode() for item in items]} | others)
        return answer["indices"].tolist(), answer["scores"].tolist()

    before = settled(counted)
    alone, alone_scores = ask_for(texts)
    indices, scores = ask_for(mixed)
    assert indices == [with_text[place] for place in alone] + without
    assert scores == alone_scores + [NO_TEXT_SCORE] * 5
    wait_until(lambda: counted() == before + 5, "they are counted")
    for top_k in (1, len(texts), len(texts) + 2):
        assert ask_for(mixed, top_k=np.array([top_k], np.int32)) == (indices[:top_k], scores[:top_k])
    same = [b"same"] * len(mixed)
    assert ask_for(mixed, item_ids=same) == (indices[:1], scores[:1])
    assert ask_for([mixed[place] for place in without], item_ids=same[:5]) == ([0], [NO_TEXT_SCORE])
    assert ask_for(NO_TEXT) == ([*range(len(NO_TEXT))], [NO_TEXT_SCORE] * len(NO_TEXT))
    rendered = [in_process[model].tokenizer.render(text) for text in mixed]
    expected = in_process[model].score(Request("oak", requests[seed].history, rendered))
    assert largest_difference([np.array(scores)[np.argsort(indices)].astype(np.float32)], [expected]) <= LIVE_TOLERANCE


@pytest.mark.parametrize("model", INT8_ENSEMBLES)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_query_and_history_may_be_left_out(served: Served, requests: list[Request], protocol: str, model: str) -> None:
    items = {"items": [item.encode() for item in requests[0].items]}
    query, history = {"query": [b"oak"]}, {"history": [b"lamp", b"desk"]}
    for left_out, empty in (
        (items, {"query": [b""], "history": []} | items),
        (query | items, query | {"history": []} | items),
        (history | items, {"query": [b""]} | history | items),
    ):
        found, expected = (infer(served, protocol, model, tensors) for tensors in (left_out, empty))
        assert found["indices"].tolist() == expected["indices"].tolist()
        assert found["scores"].tolist() == expected["scores"].tolist()


def test_the_pages_curl_example_is_answered(served: Served) -> None:
    page = (Path(__file__).parents[1] / "docs" / "client.md").read_text(encoding="utf-8")
    (body,) = re.findall(r"^curl -s http://127\.0\.0\.1:8000/v2/models/rank/infer -d '(.*?)'$", page, flags=re.M | re.S)
    request = urllib.request.Request(f"{served.triton.http_url}/v2/models/rank/infer", data=body.encode())
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=30) as answer:
        outputs = {one["name"]: one for one in json.load(answer)["outputs"]}
    assert sorted(outputs["indices"]["data"]) == [0, 1]
    assert outputs["scores"]["data"] == sorted(outputs["scores"]["data"], reverse=True)


def test_texts_that_are_cut_are_counted(served: Served) -> None:
    def counted() -> list[float]:
        return [
            metric(served, f"tritonrank_{name}_total", model="ranker", field=field)
            for field in ("query", "history", "items")
            for name in ("texts", "texts_cut")
        ]

    before = settled(counted)
    long = b"shoes " * 25  # a query has 12 tokens, an item 24
    infer(served, "http", "rank", {"query": [long], "history": [b"lamp", long], "items": [b"desk", long, long]})
    wait_until(lambda: sum(counted()) == sum(before) + 10, "they are counted")
    assert [now - then for now, then in zip(counted(), before, strict=True)] == [1, 1, 2, 1, 3, 2]


@pytest.mark.parametrize("model", INT8_ENSEMBLES)
def test_the_answer_names_the_artifact(served: Served, requests: list[Request], model: str) -> None:
    with RankClient(served.triton.http_url, model=model) as client:
        artifact = client.rank(items=requests[0].items).artifact
    served_workspace = served.joint_workspace if is_joint(model) else served.workspace
    assert artifact == read_manifest(served_workspace.int8).artifact[:16]


@pytest.mark.parametrize("model", ENSEMBLES)
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "request_of",
    [
        lambda items: Request("running shoes", items[:2], items[:1]),
        lambda items: Request("", [], items),
        lambda items: Request("", items[:3], items),
        lambda items: Request("running shoes", [], items),
        lambda items: Request("lamp", items[:1], [f"lamp {number}" for number in range(1_000)]),
    ],
    ids=["one candidate", "no context", "no query", "no history", "1000 candidates"],
)
def test_the_edges_of_a_request_score_as_in_process(
    served: Served,
    requests: list[Request],
    in_process: dict[str, EngineScorer],
    protocol: str,
    model: str,
    request_of,
    live_tolerance: float,
) -> None:
    one = request_of(requests[0].items)
    with RankClient(served.urls[protocol], model=model, timeout=60, retry=PATIENT) as client:
        assert largest_difference([ask(client, one)], [in_process[model].score(one)]) <= live_tolerance


@pytest.mark.parametrize("model", ENSEMBLES)
def test_a_history_beyond_its_budget_loses_its_oldest_items(
    served: Served, requests: list[Request], in_process: dict[str, EngineScorer], model: str, live_tolerance: float
) -> None:
    """Of items that fill the candidate's 24 tokens, two fit the history's 64."""
    history = [" ".join([word] * 24) for word in ("pan", "shoe", "lamp", "desk", "wool", "tea")]
    with RankClient(served.triton.grpc_url, model=model) as client:
        found = ask(client, Request("lamp", history, requests[4].items))
    kept = [in_process[model].score(Request("lamp", history[start:], requests[4].items)) for start in range(6)]
    assert largest_difference([found] * 5, kept[:5]) <= live_tolerance
    assert largest_difference([found], kept[5:]) > live_tolerance, "the second newest counts"


def test_items_and_history_that_are_json_objects_go_through_the_template(served: Served) -> None:
    fields = [{"title": "Oak Desk", "attributes": ["oak", "120 cm"]}, {"title": "Lamp", "price": 3}]
    rules = TextRules.load(served.workspace.teacher)
    texts = [render_fields(rules.item_template, one) for one in fields]
    assert texts[0] == "Oak Desk, oak, 120 cm"
    with RankClient(served.triton.grpc_url) as client:
        rendered = client.rank(items=texts, history=texts[:1], query="desk")
        given = client.rank(items=fields, history=fields[:1], query="desk")
        raw = client.rank(items=[json.dumps(one)[1:] for one in fields], history=texts[:1], query="desk")
    assert (given.indices, given.scores) == (rendered.indices, rendered.scores)
    assert set(raw.scores) != set(given.scores), "other texts have other scores"


# The server checks itself


def test_golden_requests_pass_on_the_server_and_fail_when_a_score_moved(served: Served, tmp_path: Path) -> None:
    check_golden_cases(served.workspace.repository, served.triton.grpc_url)
    golden = json.loads((served.workspace.repository / GOLDEN_FILE).read_text(encoding="utf-8"))
    golden["cases"][-1]["scores"][0] += 0.001
    (tmp_path / GOLDEN_FILE).write_text(json.dumps(golden), encoding="utf-8")
    with pytest.raises(ServerError, match=rf"golden request {len(golden['cases']) - 1} differs by 1\.0e-03"):
        check_golden_cases(tmp_path, served.triton.grpc_url)
    (tmp_path / GOLDEN_FILE).write_text(json.dumps(golden | {"tolerance": 0.002}), encoding="utf-8")
    check_golden_cases(tmp_path, served.triton.grpc_url)  # as a repository for GPUs says


@pytest.mark.slow
def test_a_golden_request_without_answer_is_told(workspace: Workspace) -> None:
    with pytest.raises(ServerError, match="golden request 0 was not answered"):
        check_golden_cases(workspace.repository, f"grpc://{refused_address()}")


# Too much at once, and too late


@pytest.mark.parametrize("model", INT8_ENSEMBLES)
async def test_a_full_queue_refuses_quickly_and_the_server_recovers(
    served: Served, requests: list[Request], expected: dict[str, list[Scores]], model: str, live_tolerance: float
) -> None:
    async def answer(client: AsyncRankClient) -> object:
        try:
            return await ask_async(client, requests[0])
        except (Overloaded, DeadlineExceeded) as error:  # who waits may be out of time on a crowded machine
            return error

    async with AsyncRankClient(served.triton.grpc_url, model=model, retry=ONCE, timeout=60) as client:
        with busy_scorer(served, model):
            tokenized = statistics(served, tokenizer_of(model))
            tasks = [asyncio.create_task(answer(client)) for _ in range(40)]
            await asyncio.to_thread(wait_until_queued, served, model, tokenized, 40, or_refused=True)
            done, _ = await asyncio.wait(tasks, timeout=1)
            refused = [task.result() for task in done]  # while the others wait
            assert len(refused) >= 40 - 9, "eight may wait, and one while the scorer's queue is counted"
            assert all(isinstance(error, Overloaded) for error in refused)
            assert all("Exceeds maximum queue size" in str(error) and error.attempts == 1 for error in refused)
        answers = await asyncio.gather(*tasks)
        again = [await ask_async(client, requests[0]) for _ in range(3)]
    answered = [one for one in answers if isinstance(one, np.ndarray)]
    assert largest_difference([*again, *answered], [expected[model][0]] * (3 + len(answered))) <= live_tolerance


@pytest.mark.parametrize(("protocol", "model"), [("http", "rank"), ("grpc", "rank"), ("grpc", "rank_joint")])
def test_a_deadline_reaches_the_queue_and_the_server_recovers(
    served: Served,
    requests: list[Request],
    expected: dict[str, list[Scores]],
    protocol: str,
    model: str,
    live_tolerance: float,
) -> None:
    """The server drops the request itself, long before its own limit of two seconds, and never scores it."""

    def dropped() -> float:
        return metric(served, "tritonrank_requests_expired_total", model=scorer_of(model))

    with RankClient(served.urls[protocol], model=model) as client:
        ask(client, requests[0])  # connects
        before = settled(dropped)
        with busy_scorer(served, model):
            tokenized = statistics(served, tokenizer_of(model))
            with pytest.raises(DeadlineExceeded):
                client.rank(items=requests[0].items, timeout=0.5)
            wait_until_queued(served, model, tokenized, 1)
        wait_until(lambda: dropped() == before + 1, "the server's queue drops the request")
        assert largest_difference([ask(client, requests[0])], [expected[model][0]]) <= live_tolerance


@pytest.mark.parametrize("model", INT8_ENSEMBLES)
async def test_a_cancelled_request_returns_at_once_and_later_ones_are_right(
    served: Served, requests: list[Request], expected: dict[str, list[Scores]], model: str, live_tolerance: float
) -> None:
    """Triton 2.51 does not tell the models of an ensemble that the client has gone: the work is done, and dropped."""
    tokenizer = tokenizer_of(model)
    async with AsyncRankClient(served.triton.grpc_url, model=model, timeout=60) as client:
        await ask_async(client, requests[0])
        with busy_scorer(served, model):
            tokenized = statistics(served, tokenizer).executions
            task = asyncio.create_task(ask_async(client, requests[0]))
            while statistics(served, tokenizer).executions == tokenized:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(task, 5)  # the scorer is not done as long as we are here
        later = await asyncio.gather(*(ask_async(client, one) for one in requests[:IN_FLIGHT]))
    assert largest_difference(later, expected[model][:IN_FLIGHT]) <= live_tolerance
    assert is_healthy(served)


@pytest.mark.parametrize("models", [("rank", "rank_fp32"), ("rank_joint", "rank")], ids=" and ".join)
async def test_sixty_four_concurrent_requests_of_all_kinds_are_right(
    served: Served,
    requests: list[Request],
    expected: dict[str, list[Scores]],
    models: tuple[str, str],
    live_tolerance: float,
) -> None:
    kinds = list(itertools.product(PROTOCOLS, models))
    loop = asyncio.get_running_loop()
    async with AsyncExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(32))
        options = {"timeout": 60, "retry": PATIENT}
        blocking = [stack.enter_context(RankClient(served.urls[p], model=m, **options)) for p, m in kinds]
        asynchronous = [
            await stack.enter_async_context(AsyncRankClient(served.urls[p], model=m, **options)) for p, m in kinds
        ]

        async def one(number: int) -> Scores:
            for _ in range(10):
                with suppress(DeadlineExceeded):  # two seconds in the queue: a crowded machine, no wrong answer
                    if number < 32:
                        return await loop.run_in_executor(pool, ask, blocking[number % 4], requests[number])
                    return await ask_async(asynchronous[number % 4], requests[number])
            return pytest.fail("no answer in time")

        found = await asyncio.gather(*(one(number) for number in range(64)))
    wanted = [expected[kinds[number % 4][1]][number] for number in range(64)]
    assert largest_difference(found, wanted) <= live_tolerance


# Triton's own words, on which the client's table of errors relies


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(("model", "version", "named"), [("rnak", "", "'rnak'"), ("rank", "7", "'rank' version 7")])
def test_an_unknown_model_is_named(served: Served, protocol: str, model: str, version: str, named: str) -> None:
    with (
        RankClient(served.urls[protocol], model=model, model_version=version) as client,
        pytest.raises(Unavailable, match=f"does not serve this model.*Request for unknown model: {named}") as caught,
    ):
        client.rank(items=["a"])
    assert caught.value.attempts == 1
    assert not caught.value.retryable


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_full_queue_and_an_expired_wait_are_told_apart(
    served: Served, requests: list[Request], protocol: str
) -> None:
    """Triton reports both as UNAVAILABLE, or 503."""
    tensors = {
        "query": [b"q"],
        "history": [],
        "items": [item.encode() for item in requests[0].items],
    }

    def outcome(_: int) -> Exception | None:
        try:
            infer(served, protocol, "rank", tensors, timeout_us=100_000)
        except InferenceServerException as error:
            return error
        return None

    with ThreadPoolExecutor(40) as pool:
        with busy_scorer(served):
            tokenized = statistics(served, "ranker")
            sent = [pool.submit(outcome, number) for number in range(40)]
            wait_until_queued(served, "rank", tokenized, 40, or_refused=True)
            time.sleep(0.1)  # what waits is out of time
        outcomes = [one.result() for one in sent if one.result() is not None]
    kinds = {
        phrase: {type(translate(one, url="u", model="m")) for one in outcomes if phrase in one.message()}
        for phrase in ("Exceeds maximum queue size", "Request timeout expired")
    }
    assert kinds == {"Exceeds maximum queue size": {Overloaded}, "Request timeout expired": {DeadlineExceeded}}
    assert {one.status() for one in outcomes} == {{"http": "503", "grpc": "StatusCode.UNAVAILABLE"}[protocol]}


def test_a_model_that_did_not_load_is_not_ready(tmp_path: Path) -> None:
    version = tmp_path / "broken" / "1"
    version.mkdir(parents=True)
    (version / "model.py").write_text(
        "class TritonPythonModel:\n    def initialize(self, args):\n        raise ValueError('on purpose')\n"
    )
    (tmp_path / "broken" / "config.pbtxt").write_text(
        'backend: "python"\nmax_batch_size: 0\ninstance_group [{kind: KIND_CPU}]\n'
        "input [{name: 'items' data_type: TYPE_STRING dims: [-1]}]\n"
        "output [{name: 'scores' data_type: TYPE_FP32 dims: [-1]}]\n"
    )
    with LocalTriton(tmp_path, extra_arguments=["--exit-on-error=false", "--strict-readiness=false"]) as triton:
        for url in (triton.http_url, triton.grpc_url):
            for model_version, words in (("", "has no available versions"), ("1", "is not at ready state")):
                with RankClient(url, model="broken", model_version=model_version, retry=ONCE) as client:
                    with pytest.raises(Unavailable, match=f"'broken': the model is not ready .*{words}"):
                        client.rank(items=["a"])
                    health = client.health()
                    assert (health.live, health.ready, health.model_ready) == (True, True, False)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_inner_model_is_no_ranker(served: Served, protocol: str) -> None:
    """A wrong model= that exists: the server refuses the tensors or the client the outputs; never a wrong ranking."""
    with (
        RankClient(served.urls[protocol], model="tokenize") as client,
        pytest.raises((InvalidRequest, ServerFault), match="model 'tokenize'"),
    ):
        client.rank(items=["a"])


# tritonrank serve


@pytest.fixture
def artifacts(workspace: Workspace, tmp_path: Path) -> Path:
    """A copy of artifacts/tiny as far as it is served."""
    shutil.copytree(workspace.repository, tmp_path / "tiny" / "repository")
    return tmp_path / "tiny"


def test_serve_prints_addresses_and_a_request_that_works_and_stops_on_ctrl_c(artifacts: Path) -> None:
    with serve_command(artifacts) as program:
        printed = ""
        for line in program.stdout:
            printed += line
            if "Ctrl-C" in line:
                break
        urls = dict(line.split() for line in printed.splitlines()[:3])
        assert list(urls) == ["HTTP", "gRPC", "metrics"], printed
        with RankClient(urls["HTTP"]) as http, RankClient(urls["gRPC"]) as grpc:
            assert http.health()
            assert grpc.health()
        request = printed.split("Try it from another terminal:\n\n")[1].split("\n\nCtrl-C")[0]
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        pasted = subprocess.run(
            ["bash", "-c", request.replace("rank ", "rank --json ", 1)],
            env=os.environ | {"PATH": path},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert pasted.returncode == 0, pasted.stderr
        (golden, _), *_ = golden_requests(artifacts / "repository")
        ranking = json.loads(pasted.stdout)["ranking"]
        assert sorted(place["item"] for place in ranking) == sorted(golden.items[:4])
        program.send_signal(signal.SIGINT)
        assert program.wait(60) == 0, program.stderr.read()
        wait_until(lambda: not marked_processes(), "no process is left")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(flip_a_byte(path.read_bytes())), "candidates.onnx: changed since it was built"),
        (lambda path: path.unlink(), "candidates.onnx: missing"),
    ],
    ids=["one byte", "removed"],
)
def test_a_damaged_repository_is_refused_before_triton_starts(
    artifacts: Path,
    damage,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    damage(artifacts / "repository" / "ranker" / "1" / "candidates.onnx")
    monkeypatch.setattr(serve_module, "LocalTriton", lambda *_, **__: pytest.fail("Triton was started"))
    monkeypatch.setattr(sys, "argv", ["tritonrank", "serve", str(artifacts), "--http-port", "0"])
    with pytest.raises(SystemExit) as exit_of:
        cli.main()
    assert exit_of.value.code == 2
    printed = capsys.readouterr().err
    assert f"ranker/1/{message}" in printed
    assert "Traceback" not in printed


def test_a_folder_without_repository_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["tritonrank", "serve", str(tmp_path)])
    with pytest.raises(SystemExit) as exit_of:
        cli.main()
    assert exit_of.value.code == 2
    assert re.search(r"manifest\.json is missing.*tritonrank build", capsys.readouterr().err)


def test_a_taken_port_is_named(artifacts: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServerError, match=rf"port {port} cannot be used .*--grpc-port"):  # noqa: SIM117
            with serving(artifacts, grpc_port=port):
                pytest.fail("Triton was started")


# Helpers


async def queued(
    served: Served, client: AsyncRankClient, model: str, requests: list[Request]
) -> list[asyncio.Task[Scores]]:
    """Requests that are sent and, as the scorer is busy, wait in its queue."""
    tokenized = statistics(served, tokenizer_of(model))
    tasks = [asyncio.create_task(ask_async(client, one)) for one in requests]
    await asyncio.to_thread(wait_until_queued, served, model, tokenized, len(requests))
    return tasks


def different_requests(requests: list[Request], number: int) -> list[Request]:
    """Requests of different lengths and candidate counts."""
    return [
        Request(f"{'warm ' * position}jacket", one.history[position:], one.items[: CANDIDATES - position])
        for position, one in enumerate(requests[:number])
    ]


def flip_a_byte(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@contextmanager
def serve_command(artifacts: Path) -> Iterator[subprocess.Popen[str]]:
    """`tritonrank serve` on free ports; nothing of it is left after the block."""
    ports = [argument for name in ("http", "grpc", "metrics") for argument in (f"--{name}-port", "0")]
    program = subprocess.Popen(
        [sys.executable, "-m", "tritonrank", "serve", str(artifacts), *ports],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {MARKER: str(os.getpid())},
    )
    try:
        yield program
    finally:
        program.kill()  # does nothing after an orderly end
        program.communicate()


def marked_processes() -> set[int]:
    """Living processes that `tritonrank serve` started, itself included."""
    found = set()
    for process in psutil.process_iter(["status"]):
        try:
            variables = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if f"{MARKER}={os.getpid()}".encode() in variables and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.add(process.pid)
    return found
