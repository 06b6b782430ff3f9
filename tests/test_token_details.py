"""What a call may ask for beside the ranking: tokens as scored, and which items lost text; and how items are cut."""

from pathlib import Path

import pytest
from conftest import Served
from misbehaving_server import Fail, Malformed, MisbehavingServer
from tritonrank.rankers.pretrained import load_tokenizer
from tritonrank.recipe import PACKAGED_MINILM
from tritonrank_client import AsyncRankClient, InvalidRequest, RankClient, ServerFault
from tritonrank_runtime.text import RequestTokenizer, TextRules

ALL = ("item_tokens", "truncated", "context_tokens", "unknown_tokens")
LONG = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho sigma tau " * 40


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> RequestTokenizer:
    folder = tmp_path_factory.mktemp("text")
    load_tokenizer(PACKAGED_MINILM).save_pretrained(folder)
    TextRules("{title}", query_tokens=8, history_items=4, history_tokens=16, candidate_tokens=10).save(folder)
    return RequestTokenizer.from_folder(folder, cache_entries=100)


def test_a_smaller_budget_is_the_beginning_and_the_end_is_the_end(tokenizer: RequestTokenizer) -> None:
    text = "one two three four five six seven eight nine ten eleven twelve"
    (whole,) = tokenizer.items([text])
    (few,) = tokenizer.items([text], most_tokens=3)
    (last,) = tokenizer.items([text], most_tokens=3, keep_end=True)
    assert few == whole[:3]
    assert last == tuple(token for word in ("ten", "eleven", "twelve") for token in tokenizer.items([word])[0])
    assert all(ids.is_cut for ids in (whole, few, last))


@pytest.mark.parametrize("filler", [" ", "\u0301", "word "])
def test_the_end_of_a_very_long_text_is_found(tokenizer: RequestTokenizer, filler: str) -> None:
    (end,) = tokenizer.items(["start " + filler * 20_000 + " ten eleven twelve"], most_tokens=3, keep_end=True)
    assert end == tokenizer.items(["ten eleven twelve"])[0]


def test_a_larger_budget_than_the_rankers_changes_nothing(tokenizer: RequestTokenizer) -> None:
    texts = ["short", LONG]
    assert tokenizer.items(texts, most_tokens=1_000) == tokenizer.items(texts)
    assert [ids.is_cut for ids in tokenizer.items(texts, most_tokens=1_000)] == [False, True]
    assert tokenizer.items(["short"], keep_end=True) == tokenizer.items(["short"])


@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.parametrize("model", ["rank", "rank_joint"])
def test_the_server_tells_what_it_read(served: Served, protocol: str, model: str) -> None:
    folder = served.workspace if model == "rank" else served.joint_workspace
    text = RequestTokenizer.from_folder(Path(folder.onnx))
    items = ["oak desk", LONG, "", "lamp", "oak desk"]
    with RankClient(served.urls[protocol], model=model) as client:
        plain = client.rank(query="desk", history=["chair"], items=items)
        told = client.rank(query="desk", history=["chair"], items=items, top_k=2, want=ALL)
        few = client.rank(query="desk", items=items, want=["truncated", "item_tokens"], max_item_tokens=1)
        left = client.rank(query="desk", items=[LONG + "lamp"], max_item_tokens=1, truncate_left=True)
        lamp = client.rank(query="desk", items=["lamp"])
        foreign = client.rank(query="\u8317 \u8318", items=["lamp \u8317", "desk"], want=["unknown_tokens"])
    assert (plain.item_tokens, plain.truncated, plain.context_tokens) == (None, None, None)
    assert told.item_tokens == tuple(len(ids) for ids in text.items(items))
    assert told.truncated == (False, True, False, False, False)
    assert told.context_tokens == len(text.context("desk", ["chair"]))
    assert told.unknown_tokens == (0, 0)
    assert foreign.unknown_tokens == (2, 1)
    assert told.indices == plain.indices[:2]
    assert (few.item_tokens, few.truncated, few.context_tokens) == (
        (1, 1, 0, 1, 1),
        (True, True, False, False, True),
        None,
    )
    assert left.scores == pytest.approx(lamp.scores, abs=1e-5)


async def test_the_asyncio_client_asks_the_same(served: Served) -> None:
    async with AsyncRankClient(served.urls["grpc"]) as client:
        told = await client.rank(query="desk", items=["oak desk", LONG], want=ALL)
        nothing = await client.rank(items=[], want=ALL)
    assert told.truncated == (False, True)
    assert (nothing.item_tokens, nothing.truncated, nothing.context_tokens) == ((), (), None)


@pytest.mark.parametrize("arguments", [{"max_item_tokens": -1}, {"want": ["tokens"]}, {"want": "truncated"}])
def test_a_wrong_wish_is_named(arguments: dict[str, object]) -> None:
    with RankClient("grpc://127.0.0.1:1") as client, pytest.raises(InvalidRequest, match=next(iter(arguments))):
        client.rank(items=["a"], **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_an_older_server_says_so_only_to_who_asks(protocol: str) -> None:
    server = MisbehavingServer()
    try:
        with RankClient(server.urls[protocol]) as client:
            assert client.rank(items=["a", "bb"]).indices == (1, 0)
            assert not {"max_item_tokens", "truncate_left"} & set(server.asked[0].inputs)
            message = "[request id: x] unexpected inference output 'truncated' for model 'rank'"
            server.behave(Fail(400, "INVALID_ARGUMENT", message))
            with pytest.raises(InvalidRequest, match=r"release that does not know.*tritonrank assemble"):
                client.rank(items=["a"], want=["truncated"])
            server.behave(Malformed(lambda outputs: outputs | {"item_tokens": ("INT32", [1, 2])}))
            with pytest.raises(ServerFault, match=r"item_tokens: expected 1, got 2"):
                client.rank(items=["a"], want=["item_tokens"])
    finally:
        server.close()
