"""Requests become token ids as the checkpoint's own tokenizer would have it, within their budgets.

The reference is Hugging Face's tokenizer of each family: the packaged MiniLM, and small ones trained here.

golden/text.json holds requests with the ids that the packaged MiniLM's tokenizer gives them. When they are meant to
change, write them anew and read the difference:

    TRITONRANK_WRITE_GOLDEN=1 python -m pytest tests/test_text.py -k golden
"""

import functools
import json
import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    DistilBertTokenizerFast,
    ElectraTokenizerFast,
    PreTrainedTokenizerFast,
    RobertaTokenizerFast,
)
from tritonrank.rankers.pretrained import load_tokenizer
from tritonrank.recipe import PACKAGED_MINILM
from tritonrank_runtime.architectures import architecture_named
from tritonrank_runtime.candidate_rows import (
    NO_ROW,
    NO_TEXT_SCORE,
    PARTING,
    candidate_scores,
    rows_in_blocks,
    unique_rows,
)
from tritonrank_runtime.item_text import TextError, decode_texts, render_fields
from tritonrank_runtime.joint import JOINT
from tritonrank_runtime.padding import PADDING, Buckets
from tritonrank_runtime.shared_context import SHARED_CONTEXT
from tritonrank_runtime.text import RULES_FILE, TOKENIZER_FILE, RequestTokenizer, TextRules

GOLDEN = Path(__file__).parent / "golden" / "text.json"
RULES = TextRules("{title} ({year}) {genres}", query_tokens=8, history_items=4, history_tokens=24, candidate_tokens=12)
GENEROUS = TextRules("{title}", query_tokens=200, history_items=50, history_tokens=2000, candidate_tokens=200)
CORPUS = ["red running shoes for women", "the star wars, episode IV (1977)", "naïve café", "wireless headphones 300 g"]
FAMILIES = ["minilm", "distilbert", "electra", "roberta", "xlm-roberta"]
STRANGE = {
    "plain": "red shoes",
    "emoji": "shoes 👟🏽 👩‍👩‍👧 for the family",
    "right to left": "حذاء أحمر نעל אדומה",
    "chinese": "紅色跑鞋 电影 りんご",
    "nul": "red\x00shoes\x00",
    "controls": "a\tb\r\nc\u200b\ufeff",
    "combining": "cafe\u0301 \u0301",
    "punctuation": "--- !!! ((( $9.99",
    "case and accents": "ÀÉÎ Straße İstanbul",
    "quotes": '"it\'s" {braces} [brackets]',
    "special tokens": "[SEP] </s> [CLS] <pad>",
}

# Hugging Face lets a text contain special tokens; ours does not.
PLAIN = {name: text for name, text in STRANGE.items() if name != "special tokens"}

hugging_face: dict[str, PreTrainedTokenizerFast] = {}


@pytest.fixture(scope="module", autouse=True)
def families(tmp_path_factory: pytest.TempPathFactory) -> None:
    """One fast tokenizer per family, by transformers' own classes."""
    folder = tmp_path_factory.mktemp("tokenizers")
    pieces = trainers.WordPieceTrainer(
        vocab_size=300, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], show_progress=False
    )
    word_piece = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    word_piece.normalizer = normalizers.BertNormalizer()
    word_piece.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    word_piece.train_from_iterator(CORPUS, pieces)
    vocabulary = sorted(word_piece.get_vocab().items(), key=lambda entry: entry[1])
    (folder / "vocab.txt").write_text("\n".join(token for token, _ in vocabulary), encoding="utf-8")

    byte_level = Tokenizer(models.BPE())
    byte_level.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    byte_level.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    byte_level.model.save(str(folder))

    unigram = Tokenizer(models.Unigram())
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    unigram.decoder = decoders.Metaspace()
    unigram.train_from_iterator(
        CORPUS,
        trainers.UnigramTrainer(
            vocab_size=120, special_tokens=["<s>", "<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
        ),
    )
    unigram.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    hugging_face.update(
        {
            "minilm": load_tokenizer(PACKAGED_MINILM),
            "distilbert": DistilBertTokenizerFast(vocab_file=str(folder / "vocab.txt")),
            "electra": ElectraTokenizerFast(vocab_file=str(folder / "vocab.txt")),
            "roberta": RobertaTokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt")),
            "xlm-roberta": PreTrainedTokenizerFast(tokenizer_object=unigram, pad_token="<pad>", unk_token="<unk>"),
        }
    )


class CountingTokenizer:
    """Passes everything on and notes which texts were really tokenized."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.encoded: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)

    def encode_batch_fast(self, texts: list[str], **options: Any) -> Any:
        self.encoded += texts
        return self.tokenizer.encode_batch_fast(texts, **options)


def rust(family: str) -> Tokenizer:
    """A copy, so that nothing done to it reaches the reference."""
    return Tokenizer.from_str(hugging_face[family].backend_tokenizer.to_str())


@functools.cache
def shared(family: str) -> Tokenizer:
    return rust(family)


def ours(family: str = "minilm", rules: TextRules = RULES, cache_entries: int = 0) -> RequestTokenizer:
    return RequestTokenizer(shared(family), rules, cache_entries)


def counting(cache_entries: int, rules: TextRules = RULES) -> tuple[RequestTokenizer, CountingTokenizer]:
    counter = CountingTokenizer(shared("minilm"))
    return RequestTokenizer(counter, rules, cache_entries), counter


def as_rows(architecture: str, tokenizer: RequestTokenizer, context: Any, candidates: Any) -> SimpleNamespace:
    """The rows that an architecture makes, whatever the tokenizer's rules name."""
    return SimpleNamespace(**architecture_named(architecture).rows(tokenizer.layout, context, candidates))


def rows_of(tokenizer: RequestTokenizer, query: str, history: list[str], items: list[str]) -> SimpleNamespace:
    return as_rows(JOINT, tokenizer, tokenizer.context(query, history), tokenizer.items(items))


def shared_rows_of(tokenizer: RequestTokenizer, query: str, history: list[str], items: list[str]) -> SimpleNamespace:
    return as_rows(SHARED_CONTEXT, tokenizer, tokenizer.context(query, history), tokenizer.items(items))


def plain_ids(family: str, text: str) -> list[int]:
    return hugging_face[family](text, add_special_tokens=False)["input_ids"]


def assert_same_rows(found: SimpleNamespace, reference: Any) -> None:
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        tensor = getattr(found, name)
        assert tensor.dtype == np.int32
        np.testing.assert_array_equal(tensor, np.array(reference[name]), err_msg=name)


# Against Hugging Face's own tokenizers


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("query", ["", *PLAIN.values()], ids=["empty", *PLAIN])
def test_without_history_a_row_is_the_pair_of_query_and_item(family: str, query: str) -> None:
    items = ["running shoes", *PLAIN.values(), "a much longer item with many words in it, 1977"]
    reference = hugging_face[family](
        [query] * len(items),
        items,
        padding="longest",
        return_token_type_ids=True,
        return_attention_mask=True,
    )
    assert_same_rows(rows_of(ours(family, GENEROUS), query, [], items), reference)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_text_cannot_smuggle_in_special_tokens(family: str) -> None:
    tokenizer = ours(family, GENEROUS)
    special = set(hugging_face[family].all_special_ids) - {hugging_face[family].unk_token_id}
    (ids,) = tokenizer.items([STRANGE["special tokens"]])
    assert ids
    assert not special & set(ids)


def test_the_families_differ_in_segments_and_ends() -> None:
    """Otherwise the comparison above would show little."""
    rows = {family: rows_of(ours(family), "red", [], ["shoes"]) for family in FAMILIES}
    assert {family for family in FAMILIES if rows[family].token_type_ids.any()} == {"minilm", "distilbert", "electra"}
    doubled = rows["roberta"].input_ids[0].tolist()
    assert doubled.count(hugging_face["roberta"].sep_token_id) == 3
    assert rows["minilm"].input_ids[0].tolist().count(hugging_face["minilm"].sep_token_id) == 2


@pytest.mark.parametrize("family", FAMILIES)
def test_history_is_joined_to_the_query_by_separators(family: str) -> None:
    tokenizer = ours(family, GENEROUS)
    separator = shared(family).token_to_id("</s>" if family in {"roberta", "xlm-roberta"} else "[SEP]")
    query, old, new = (plain_ids(family, text) for text in ("red", "star wars", "café"))
    assert tokenizer.context("red", ["star wars", "café"]) == [*query, separator, *old, separator, *new]
    assert tokenizer.context("", ["star wars", "café"]) == [*old, separator, *new]
    assert tokenizer.context("red", []) == query
    assert tokenizer.context("", []) == []


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_are_cut_at_their_end(family: str) -> None:
    text = "running shoes for women " * 5
    tokenizer = ours(family)
    assert list(tokenizer.items([text])[0]) == plain_ids(family, text)[: RULES.candidate_tokens]
    assert tokenizer.context(text, []) == plain_ids(family, text)[: RULES.query_tokens]


def test_switched_on_truncation_and_padding_do_no_harm() -> None:
    tokenizer = rust("minilm")
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=64)
    expected = rows_of(ours(), "red shoes for women", [], ["star wars episode"])
    found = rows_of(RequestTokenizer(tokenizer, RULES), "red shoes for women", [], ["star wars episode"])
    assert_same_rows(found, vars(expected))


@pytest.mark.parametrize(
    ("template", "message"),
    [("[CLS] $B [SEP] $A [SEP]", "pairs must read"), ("[CLS] $A [SEP] $B", "pairs must read")],
)
def test_another_layout_of_pairs_is_refused(template: str, message: str) -> None:
    tokenizer = rust("minilm")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A", pair=template, special_tokens=[("[CLS]", 101), ("[SEP]", 102)]
    )
    with pytest.raises(TextError, match=message):
        RequestTokenizer(tokenizer, RULES)


# Rows of a shared-context ranker


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("query", ["", *PLAIN.values()], ids=["empty", *PLAIN])
def test_a_context_row_is_the_query_alone_and_a_candidate_row_an_item_without_its_end(family: str, query: str) -> None:
    items = ["running shoes", *PLAIN.values(), "a much longer item with many words in it, 1977"]
    rows = shared_rows_of(ours(family, GENEROUS), query, [], items)
    alone = hugging_face[family]([query, *items])["input_ids"]
    assert rows.context_ids.tolist() == alone[0]
    ends = len(alone[0]) - len(plain_ids(family, query)) - 1  # tokens after a text
    for row, expected in zip(rows.candidate_ids.tolist(), alone[1:], strict=True):
        tokens = expected[: len(expected) - ends]
        assert row == tokens + [PADDING] * (len(row) - len(tokens))
    assert rows.context_ids.dtype == rows.candidate_ids.dtype == np.int32


def test_shared_context_rows_by_hand() -> None:
    rows = as_rows(SHARED_CONTEXT, ours(), [5, 6], [(7,), (), (8, 9, 10)])
    assert rows.context_ids.tolist() == [101, 5, 6, 102]
    assert rows.candidate_ids.tolist() == [[101, 7, -1, -1], [101, -1, -1, -1], [101, 8, 9, 10]]
    empty = as_rows(SHARED_CONTEXT, ours(), [], [])
    assert empty.context_ids.tolist() == [101, 102]
    assert empty.candidate_ids.shape == (0, 1)


token_ids = st.integers(0, 30_000)


@settings(max_examples=150, deadline=None)
@given(
    family=st.sampled_from(FAMILIES),
    context=st.lists(token_ids, max_size=20),
    candidates=st.lists(st.lists(token_ids, max_size=9), max_size=12),
)
def test_shared_context_rows_hold_every_token_in_its_place(
    family: str, context: list[int], candidates: list[list[int]]
) -> None:
    tokenizer = ours(family)
    rows = as_rows(SHARED_CONTEXT, tokenizer, context, candidates)
    pair = hugging_face[family]("a", "b")["input_ids"]
    first, last = pair[0], pair[-1]
    assert rows.context_ids.tolist() == [first, *context, last]
    kept = [[token for token in row if token != PADDING] for row in rows.candidate_ids.tolist()]
    assert kept == [[first, *ids] for ids in candidates]
    assert rows.candidate_ids.shape == (len(candidates), 1 + max(map(len, candidates), default=0))
    is_token = rows.candidate_ids != PADDING
    assert (np.diff(is_token.astype(int), axis=1) <= 0).all(), "padding is at the end alone"


def test_the_longest_rows_have_the_lengths_that_are_promised() -> None:
    for family in FAMILIES:
        tokenizer = ours(family, replace(RULES, history_tokens=25, architecture=SHARED_CONTEXT))
        rows = shared_rows_of(tokenizer, "shoes " * 100, ["shoes " * 100] * 9, ["shoes " * 100, "a"])
        assert rows.context_ids.shape == (tokenizer.longest_rows["context_ids"],)
        assert rows.candidate_ids.shape == (2, tokenizer.longest_rows["candidate_ids"])


def test_the_context_is_the_same_for_both_architectures() -> None:
    request = ("red shoes", ["star wars", "café"], ["hat", "a long coat"])
    joint, shared_context = rows_of(ours(), *request), shared_rows_of(ours(), *request)
    context = shared_context.context_ids.tolist()
    assert joint.input_ids[0, : len(context)].tolist() == context
    for row, own in zip(joint.input_ids, shared_context.candidate_ids, strict=True):
        tokens = [token for token in own[1:].tolist() if token != PADDING]
        assert row[len(context) : len(context) + len(tokens)].tolist() == tokens


def test_padded_shared_context_rows_by_hand() -> None:
    tokenizer = ours(rules=replace(RULES, architecture=SHARED_CONTEXT, query_tokens=2, history_tokens=2))
    tensors = tokenizer.tensors([5, 6], [(7,), (8, 9, 10)])
    padded = tokenizer.padded(tensors, Buckets((1, 3, 9), (2, 5, 13)))
    assert padded["context_ids"].tolist() == [101, 5, 6, 102, -1, -1, -1]
    assert padded["candidate_ids"].tolist() == [[101, 7, -1, -1, -1], [101, 8, 9, 10, -1], [-1] * 5]
    assert {tensor.dtype for tensor in padded.values()} == {np.dtype(np.int32)}


def test_padded_joint_rows_by_hand() -> None:
    tokenizer = ours()
    padded = tokenizer.padded(tokenizer.tensors([5], [(7,), (8, 9)]), Buckets((4,), (8,)))
    assert padded["input_ids"].tolist() == [
        [101, 5, 102, 7, 102, 0, 0, 0],
        [101, 5, 102, 8, 9, 102, 0, 0],
        [0] * 8,
        [0] * 8,
    ]
    one_token = [1, 0, 0, 0, 0, 0, 0, 0]  # a softmax over nothing is not a number
    assert padded["attention_mask"].tolist() == [[1] * 5 + [0] * 3, [1] * 6 + [0] * 2, one_token, one_token]
    assert padded["token_type_ids"].tolist() == [[0, 0, 0, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1, 0, 0], [0] * 8, [0] * 8]


@pytest.mark.parametrize(
    ("candidates", "tokens", "shape"),
    [(1, 1, (4, 8)), (4, 8, (4, 8)), (5, 9, (16, 12)), (16, 12, (16, 12)), (3, 9, (4, 12)), (16, 8, (16, 8))],
)
def test_a_request_takes_the_smallest_bucket_that_holds_it(
    candidates: int, tokens: int, shape: tuple[int, int]
) -> None:
    assert Buckets((4, 16), (8, 12)).shape(candidates, tokens) == shape


@pytest.mark.parametrize(("candidates", "tokens"), [(17, 1), (1, 13)])
def test_a_request_that_no_bucket_holds_is_refused(candidates: int, tokens: int) -> None:
    said = rf"items: {candidates} different candidates of up to {tokens} tokens; the engine was built for 16 of 12"
    with pytest.raises(TextError, match=said):
        Buckets((4, 16), (8, 12)).shape(candidates, tokens)


@pytest.mark.parametrize(
    ("architecture", "names"),
    [
        (JOINT, ["input_ids", "attention_mask", "token_type_ids"]),
        (SHARED_CONTEXT, ["context_ids", "candidate_ids"]),
    ],
)
def test_the_rules_decide_which_tensors_a_request_becomes(architecture: str, names: list[str]) -> None:
    tokenizer = ours(rules=replace(RULES, architecture=architecture))
    context, items = tokenizer.context("red", ["star"]), tokenizer.items(["shoes", "a hat"])
    tensors = tokenizer.tensors(context, items)
    assert list(tensors) == names
    for name, tensor in vars(as_rows(architecture, tokenizer, context, items)).items():
        np.testing.assert_array_equal(tensors[name], tensor)


# Golden cases

GOLDEN_REQUESTS: dict[str, tuple[str, list[str], list[str]]] = {
    "query, history and items": (
        "space opera",
        ["Alien (1979) Horror", "Blade Runner (1982) Sci-Fi"],
        ["Star Wars: Episode IV (1977) Adventure", "Heat (1995) Crime"],
    ),
    "nothing known of the user": ("", [], ["Toy Story (1995)"]),
    "history over its budget": ("", [f"The film with number {n} (199{n})" for n in range(6)], ["Heat (1995)"]),
    "query and item over their budgets": ("one two three four five six seven eight nine ten", [], ["so " * 30]),
    "fields": (
        "",
        ['{"title": "Alien", "year": 1979}'],
        ['{"title": "Heat", "year": 1995, "genres": ["Crime", "Drama"]}', '{"title": "broken'],
    ),
    **{name: (text, [text], [text]) for name, text in STRANGE.items()},
}


def golden_rows(query: str, history: list[str], items: list[str]) -> list[dict[str, list[int]]]:
    tokenizer = ours()
    rendered = [[tokenizer.render(text) for text in texts] for texts in (history, items)]
    rows = rows_of(tokenizer, query, *rendered)
    lengths = rows.attention_mask.sum(axis=1)
    for row, length in enumerate(lengths):  # so that ids and segments say everything
        assert rows.attention_mask[row].tolist() == [1] * length + [0] * (rows.input_ids.shape[1] - length)
        assert not rows.input_ids[row, length:].any()
        assert not rows.token_type_ids[row, length:].any()
    return [
        {"input_ids": ids[:length].tolist(), "token_type_ids": types[:length].tolist()}
        for ids, types, length in zip(rows.input_ids, rows.token_type_ids, lengths, strict=True)
    ]


def golden_shared_context(query: str, history: list[str], items: list[str]) -> dict[str, list[Any]]:
    """The rows of a shared-context ranker, without their padding."""
    tokenizer = ours()
    rendered = [[tokenizer.render(text) for text in texts] for texts in (history, items)]
    rows = shared_rows_of(tokenizer, query, *rendered)
    candidates = [[token for token in row if token != PADDING] for row in rows.candidate_ids.tolist()]
    return {"context_ids": rows.context_ids.tolist(), "candidate_ids": candidates}


def test_golden_cases_are_unchanged() -> None:
    if os.environ.get("TRITONRANK_WRITE_GOLDEN"):
        cases = [
            {
                "name": name,
                "query": query,
                "history": history,
                "items": items,
                "rows": golden_rows(query, history, items),
                "shared_context": golden_shared_context(query, history, items),
            }
            for name, (query, history, items) in GOLDEN_REQUESTS.items()
        ]
        lines = ",\n".join("  " + json.dumps(case, ensure_ascii=True) for case in cases)
        GOLDEN.write_text(f'{{"rules": {json.dumps(vars(RULES))},\n "cases": [\n{lines}\n]}}\n', encoding="utf-8")
        pytest.skip(f"wrote {GOLDEN}: read the difference")
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert TextRules(**golden["rules"]) == RULES
    assert [case["name"] for case in golden["cases"]] == list(GOLDEN_REQUESTS)
    for case in golden["cases"]:
        request = case["query"], case["history"], case["items"]
        assert golden_rows(*request) == case["rows"], case["name"]
        assert golden_shared_context(*request) == case["shared_context"], case["name"]


# The history's budget

words = st.text(alphabet="abcdefgh é1,", min_size=0, max_size=30)
small_rules = st.builds(
    TextRules,
    item_template=st.just("{title}"),
    query_tokens=st.integers(0, 6),
    history_items=st.integers(0, 6),
    history_tokens=st.integers(0, 30),
    candidate_tokens=st.integers(4, 12),
)


def brute_force_context(query: str, history: list[str], rules: TextRules) -> list[int]:
    """Try every number of newest items, and take the most that fit; the newest alone is cut rather than dropped."""
    separator = hugging_face["minilm"].sep_token_id
    newest = history[len(history) - min(len(history), rules.history_items) :]
    ids = [plain_ids("minilm", text)[: rules.candidate_tokens] for text in newest]
    ids = [item for item in ids if item]
    fitting = [
        count for count in range(1, len(ids) + 1) if sum(map(len, ids[-count:])) + count - 1 <= rules.history_tokens
    ]
    kept = ids[-max(fitting) :] if fitting else [item[: rules.history_tokens] for item in ids[-1:]]
    parts = [part for part in [plain_ids("minilm", query)[: rules.query_tokens], *kept] if part]
    joined: list[int] = []
    for part in parts:
        joined += ([separator] if joined else []) + part
    return joined


@settings(max_examples=120, deadline=None)
@given(rules=small_rules, query=words, history=st.lists(words, max_size=9))
def test_history_drops_the_oldest_first(rules: TextRules, query: str, history: list[str]) -> None:
    context = ours(rules=rules).context(query, history)
    assert context == brute_force_context(query, history, rules)
    assert len(context) <= rules.context_tokens


@settings(max_examples=60, deadline=None)
@given(
    rules=small_rules, query=words, history=st.lists(words, max_size=9), items=st.lists(words, min_size=1, max_size=4)
)
def test_no_history_cuts_a_candidate(rules: TextRules, query: str, history: list[str], items: list[str]) -> None:
    tokenizer = ours(rules=rules)
    rows = rows_of(tokenizer, query, history, items)
    separator = hugging_face["minilm"].sep_token_id
    for row, item in enumerate(items):
        own = [*plain_ids("minilm", item)[: rules.candidate_tokens], separator]
        length = int(rows.attention_mask[row].sum())
        assert rows.input_ids[row, length - len(own) : length].tolist() == own
        assert rows.token_type_ids[row, :length].sum() == len(own)
        assert length <= tokenizer.longest_rows["input_ids"]


def test_the_newest_item_is_cut_rather_than_dropped() -> None:
    rules = TextRules("{title}", query_tokens=4, history_items=3, history_tokens=5, candidate_tokens=32)
    newest = "one two three four five six seven"
    assert ours(rules=rules).context("", ["short", newest]) == plain_ids("minilm", newest)[:5]


def test_an_older_item_that_would_fit_does_not_jump_the_queue() -> None:
    rules = TextRules("{title}", query_tokens=4, history_items=3, history_tokens=6, candidate_tokens=32)
    context = ours(rules=rules).context("", ["red", "one two three four five six", "new shoes"])
    assert context == plain_ids("minilm", "new shoes")


def test_items_without_tokens_leave_no_trace_in_the_history() -> None:
    tokenizer = ours()
    assert tokenizer.context("red", ["star", "", " \x00 ", "wars"]) == tokenizer.context("red", ["star", "wars"])
    assert tokenizer.context(" ", [""]) == []
    assert tokenizer.items(["", " ", "x"])[:2] == [(), ()]


def test_the_longest_row_has_row_tokens() -> None:
    for family in FAMILIES:
        # Two items of twelve tokens and the separator between them fill this history to the brim.
        tokenizer = ours(family, replace(RULES, history_tokens=25))
        long = "shoes " * 100
        assert rows_of(tokenizer, long, [long] * 9, [long]).input_ids.shape == (1, tokenizer.longest_rows["input_ids"])


def test_no_candidates_make_no_rows() -> None:
    assert rows_of(ours(), "red", ["star"], []).input_ids.shape[0] == 0


# Long texts


@pytest.mark.parametrize(
    "text", ["a" * 20_000, "👟" * 20_000, " " * 20_000, "a " * 10_000, "電" * 20_000, "\u0300" * 20_000]
)
@pytest.mark.parametrize("family", ["minilm", "roberta"])
def test_a_huge_text_costs_no_more_than_a_long_one(family: str, text: str) -> None:
    counter = CountingTokenizer(rust(family))
    tokenizer = RequestTokenizer(counter, RULES, cache_entries=10)
    rows = rows_of(tokenizer, text, [text, text], [text, "shoes"])
    assert max(len(encoded) for encoded in counter.encoded) <= 32 * RULES.candidate_tokens
    assert rows.input_ids.shape[1] <= tokenizer.longest_rows["input_ids"]
    budget_of_query = tokenizer.context(text, [])
    assert len(budget_of_query) <= RULES.query_tokens


FILLED = {
    "blanks before": " " * 9_000 + "trail shoes for women",
    "blanks between": ("trail" + " " * 3_000 + "shoes" + "\n\t" * 3_000 + "for women") * 3,
    "accents": "tra" + "\u0301" * 9_000 + "il shoes for women",
    "NULs": "trail\x00" + "\x00" * 9_000 + " shoes",
    "zero width": "\u200b" * 9_000 + "trail shoes",
}


@pytest.mark.parametrize("text", FILLED.values(), ids=FILLED)
def test_filling_that_makes_no_token_hides_no_word(text: str) -> None:
    (ids,) = ours().items([text])
    assert list(ids) == plain_ids("minilm", text)[: RULES.candidate_tokens]
    assert ours().context(text, []) == plain_ids("minilm", text)[: RULES.query_tokens]


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=40, deadline=None)
@given(
    parts=st.lists(st.tuples(st.sampled_from(["red", "shoes", "a", "  ", "\u0301"]), st.integers(1, 90)), max_size=8)
)
def test_a_long_text_has_the_ids_of_its_beginning(family: str, parts: list[tuple[str, int]]) -> None:
    text = " ".join(part * times for part, times in parts)
    (ids,) = ours(family).items([text])
    whole = plain_ids(family, text)
    assert list(ids) == whole[: RULES.candidate_tokens] or len(text) > 32 * RULES.candidate_tokens


def test_texts_that_are_cut_are_counted_by_field() -> None:
    tokenizer = ours(cache_entries=10)
    long, longer = "shoes " * RULES.candidate_tokens, "shoes " * (RULES.candidate_tokens + 1)
    for _ in range(2):  # remembered or not
        tokenizer.items([long, longer, "", longer + " " * 9_000, long + " " * 9_000])
    assert vars(tokenizer.counts["items"]) == {"total": 10, "cut": 4}
    tokenizer.context("", [])
    tokenizer.context("one two", [])
    tokenizer.context("one two " * RULES.query_tokens, [])
    assert vars(tokenizer.counts["query"]) == {"total": 2, "cut": 1}
    assert vars(tokenizer.counts["history"]) == {"total": 0, "cut": 0}


@pytest.mark.parametrize(
    ("history", "cut"),
    [
        (["red", "blue"], 0),
        (["red", ""], 0),
        (["red"] * (RULES.history_items + 3), 3),
        (["shoes " * 12] * 3, 2),  # 24 tokens hold one and its separator, and not the next
        (["red", "shoes " * 30], 1),
    ],
)
def test_history_that_a_budget_leaves_out_is_cut(history: list[str], cut: int) -> None:
    tokenizer = ours()
    tokenizer.context("", history)
    assert vars(tokenizer.counts["history"]) == {"total": len(history), "cut": cut}


# Items as JSON objects


@pytest.mark.parametrize(
    ("text", "rendered"),
    [
        ('{"title": "Heat", "year": 1995, "genres": ["Crime", "Drama"]}', "Heat (1995) Crime, Drama"),
        ('  \n{"title": "Heat"}', "Heat ()"),
        ('{"title": null, "year": 1.5, "genres": [null, "War", 3]}', "(1.5) War, 3"),
        ('{"title": "  a \\n b  ", "year": "", "genres": []}', "a b ()"),
        ('{"title": "{year}", "year": 7}', "{year} (7)"),  # filled once, not again
        ('{"title": "\\ud83d\\udc5f", "year": 1}', "👟 (1)"),
        ('{"other": {"deep": []}}', ""),  # what the template does not name may be anything, and is no text
        ("{}", ""),
        ('{"title": " ", "genres": [null, ""]}', ""),
        ('{"year": 0}', "(0)"),
        ('{"": "the text", "title": "Heat"}', "Heat ()"),
        ('{"": 7}', ""),
        ('{"title": "one", "title": "two"}', "two ()"),
        ('{"title": 1e999, "other": -1e999}', "1e999 ()"),
    ],
)
def test_a_json_object_goes_through_the_template(text: str, rendered: str) -> None:
    assert ours().render(text) == rendered


@pytest.mark.parametrize(
    "text",
    ["", "{", '{"title": "Heat"', "{title}", "{'title': 1}", '{"a": 1} and more', '["Heat"]', '"Heat"', "3", "null"],
)
def test_anything_else_is_the_text_itself(text: str) -> None:
    assert ours().render(text) == text


@pytest.mark.parametrize("text", ['\ufeff{"title": "Heat"}', '[{"title": "Heat"}]', '"{}"', "[1, [2]]", "-1e5", "true"])
def test_only_an_object_is_fields(text: str) -> None:
    assert ours().render(text) == text


@settings(max_examples=100, deadline=None)
@given(st.text() | st.sampled_from(['{"title": "Heat"}', '{"": "x"}', " {", '{"title":', "", "  two  blanks "]))
def test_a_field_without_a_name_is_the_text_itself(text: str) -> None:
    assert ours().render(json.dumps({"": text})) == text
    assert ours().render(" " + json.dumps({"": text}, ensure_ascii=False)) == text


def test_an_integer_that_python_will_not_read_stays_text() -> None:
    digits = "9" * 60_000
    assert ours().render(f'{{"title": {digits}, "other": {digits}}}') == f"{digits} ()"
    assert ours().render('{"title": -12}') == "-12 ()"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["title", "year", "", "x"]), inner),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(json_values, st.integers(0, 40), st.text(max_size=3))
def test_whatever_comes_is_a_text_or_a_text_error(value: Any, place: int, noise: str) -> None:
    sent = json.dumps(value)
    for text in (sent, sent[:place] + noise + sent[place:], json.dumps({"title": value})):
        with suppress(TextError):
            ours().items([ours().render(text)])


@pytest.mark.parametrize(
    "text",
    [
        '{"title": {"en": "Heat"}}',
        '{"title": [["Heat"]]}',
        '{"title": ["Heat", {}]}',
        '{"title": "\\ud83d alone"}',
        '{"title": ["fine", "\\udc5f"]}',
        '{"title": {}}',
    ],
)
def test_a_field_that_is_no_text_is_named(text: str) -> None:
    with pytest.raises(TextError, match=r"^items\[3\]: field 'title' "):
        ours().render(text, "items[3]")


@pytest.mark.parametrize(
    ("text", "rendered"), [('{"title": NaN}', ""), ('{"title": "lamp", "genres": -Infinity}', "lamp ()")]
)
def test_what_data_frames_write_for_nothing_is_nothing(text: str, rendered: str) -> None:
    assert ours().render(text).strip() == rendered


def test_half_a_character_is_refused_by_name() -> None:
    with pytest.raises(TextError, match=r"^items\[3\]: .*field ''"):
        ours().render('{"": "\\ud83d"}', "items[3]")


@pytest.mark.parametrize("text", ['{"title":' * 7_000, '{"title":' + "[" * 60_000])
def test_bottomless_json_is_refused(text: str) -> None:
    with pytest.raises(TextError, match=r"^history\[0\]: JSON nested too deeply"):
        ours().render(text, "history[0]")


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from(["title", "year", "genres", "x"]), st.text(max_size=20)))
def test_whatever_renders_can_be_tokenized(fields: dict[str, str]) -> None:
    tokenizer = ours()
    text = tokenizer.render(json.dumps(fields))
    has_text = any(fields.get(name) for name in ("title", "year", "genres"))
    assert text == (render_fields(RULES.item_template, fields) if has_text else "")
    assert len(tokenizer.items([text])[0]) <= RULES.candidate_tokens


# Bytes


def test_texts_of_a_tensor_are_decoded() -> None:
    assert decode_texts([text.encode() for text in STRANGE.values()], "items", 100) == list(STRANGE.values())
    assert decode_texts(np.array([b"a", b""], dtype=np.object_), "items", 1) == ["a", ""]


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (b"caf\xe9", r"not valid UTF-8 \(byte 0xe9 at offset 3\)"),
        (b"\xff", "byte 0xff at offset 0"),
        (b"a\xed\xa0\x80", "byte 0xed at offset 1"),  # half a surrogate pair
        (b"\xe2\x82", "byte 0xe2 at offset 0"),  # cut in the middle of a character
        ("é".encode() * 6, "12 bytes; the limit is 11"),
    ],
)
def test_bad_bytes_name_field_and_element(bad: bytes, said: str) -> None:
    with pytest.raises(TextError, match=rf"^history\[2\]: .*{said}"):
        decode_texts([b"fine", b"", bad, b"\xff"], "history", 11)


# The memory of item texts


@settings(max_examples=60, deadline=None)
@given(
    calls=st.lists(st.lists(st.sampled_from("abcdefg"), max_size=5), max_size=8),
    entries=st.integers(0, 4),
)
def test_the_cache_changes_no_ids(calls: list[list[str]], entries: int) -> None:
    cached, plain = ours(cache_entries=entries), ours()
    for texts in calls:
        assert cached.items(texts) == plain.items(texts)
        assert cached.items(texts) == [tuple(plain_ids("minilm", text)) for text in texts]


def test_the_cache_never_holds_more_than_its_entries() -> None:
    for entries in (0, 1, 5):
        tokenizer, counter = counting(entries)
        texts = [f"item {n}" for n in range(20)]
        tokenizer.items(texts)
        counter.encoded.clear()
        tokenizer.items(texts)
        assert counter.encoded == texts[: 20 - entries]  # the newest are remembered


def test_the_least_recently_used_text_is_forgotten() -> None:
    tokenizer, counter = counting(2)
    for text in ("old", "middle", "old", "new"):  # asking for old again makes middle the oldest
        tokenizer.items([text])
    counter.encoded.clear()
    tokenizer.items(["old", "new"])
    assert counter.encoded == []
    tokenizer.items(["middle"])
    assert counter.encoded == ["middle"]


def test_long_texts_are_not_remembered() -> None:
    tokenizer, counter = counting(10)
    limit = 32 * RULES.candidate_tokens
    texts = ["a" * limit, "b" * (limit + 1)]
    tokenizer.items(texts)
    counter.encoded.clear()
    tokenizer.items(texts)
    assert [text[0] for text in counter.encoded] == ["b"]


def test_a_text_given_twice_is_tokenized_once() -> None:
    for entries in (0, 10):
        tokenizer, counter = counting(entries)
        one, two, again = tokenizer.items(["shoes", "hat", "shoes"])
        assert one == again != two
        assert sorted(counter.encoded) == ["hat", "shoes"]


def test_a_text_without_tokens_is_remembered_too() -> None:
    tokenizer, counter = counting(10)
    assert tokenizer.items([""]) == tokenizer.items([""]) == [()]
    assert counter.encoded == [""]


def test_history_and_items_share_the_memory() -> None:
    tokenizer, counter = counting(10)
    tokenizer.context("", ["star wars"])
    assert tokenizer.items(["star wars"]) == [tuple(plain_ids("minilm", "star wars"))]
    assert counter.encoded == ["star wars"]


# Rows once


@given(st.lists(st.lists(st.integers(0, 2), max_size=2).map(tuple), max_size=12))
def test_unique_rows_give_every_row_back(rows: list[tuple[int, ...]]) -> None:
    unique, places = unique_rows(rows)
    assert [() if place == NO_ROW else unique[place] for place in places] == rows
    with_tokens = [row for row in rows if row]
    assert unique == (sorted(set(with_tokens), key=rows.index) or [()][: len(rows)])
    assert places.dtype == np.int32


@given(st.lists(st.sampled_from([(), (1,), (2,), (3,)]), min_size=1, max_size=12))
def test_rows_without_tokens_leave_the_others_as_they_are(rows: list[tuple[int, ...]]) -> None:
    with_tokens = [row for row in rows if row]
    unique, places = unique_rows(rows)
    alone, places_alone = unique_rows(with_tokens)
    if with_tokens:
        assert unique == alone
    assert places[places != NO_ROW].tolist() == places_alone.tolist()
    scores = candidate_scores(np.arange(len(unique), dtype=np.float32), places)
    assert scores.dtype == np.float32
    assert scores[[bool(row) for row in rows]].tolist() == places_alone.tolist()
    assert {*scores[[not row for row in rows]].tolist()} <= {NO_TEXT_SCORE}


@given(st.lists(st.sampled_from([(), (1,), (2,), (3,)]), max_size=12), st.integers(0, 5))
def test_rows_of_blocks_are_the_rows_of_requests_of_their_own(rows: list[tuple[int, ...]], block: int) -> None:
    found, places = rows_in_blocks(rows, block)
    assert places.dtype == np.int32
    assert [() if place == NO_ROW else found[place] for place in places] == rows
    size = block or max(1, len(rows))
    alone = [unique_rows(rows[start : start + size])[0] for start in range(0, len(rows), size)]
    scored = [unique for unique in alone if unique != [()]]
    expected = [row for unique in scored for row in (PARTING, *unique)][1:]
    assert found == (expected or [()][: len(rows)])


def test_no_score_is_below_that_of_an_item_without_text() -> None:
    assert NO_TEXT_SCORE == float(np.finfo(np.float32).min) == float(np.float32(NO_TEXT_SCORE))
    assert np.isfinite(np.float32(NO_TEXT_SCORE))


# Files


def test_rules_and_tokenizer_travel_in_a_folder(tmp_path: Path) -> None:
    RULES.save(tmp_path)
    rust("roberta").save(str(tmp_path / TOKENIZER_FILE))
    assert TextRules.load(tmp_path) == RULES
    loaded = RequestTokenizer.from_folder(tmp_path)
    request = ("naïve", ["star wars", "café"], ["shoes", "headphones 300 g"])
    assert_same_rows(rows_of(loaded, *request), vars(rows_of(ours("roberta"), *request)))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([RULES_FILE, TOKENIZER_FILE])


@pytest.mark.parametrize("architecture", [JOINT, SHARED_CONTEXT])
def test_the_architecture_travels_with_the_rules(architecture: str, tmp_path: Path) -> None:
    rules = replace(RULES, architecture=architecture)
    rules.save(tmp_path)
    assert TextRules.load(tmp_path) == rules


def test_rules_of_before_there_were_two_architectures_are_joint(tmp_path: Path) -> None:
    old = {name: value for name, value in vars(RULES).items() if name != "architecture"}
    (tmp_path / RULES_FILE).write_text(json.dumps(old))
    assert TextRules.load(tmp_path).architecture == JOINT
