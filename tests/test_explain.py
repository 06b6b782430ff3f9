"""Explanations say what the ranker itself says once the named thing is taken away: with a real ranker."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from tritonrank.artifacts.workspace import Workspace
from tritonrank.data.dataset import Dataset
from tritonrank.judge.open_scorer import open_scorer
from tritonrank.rankers.scorers import Request
from tritonrank.recipe import Recipe
from tritonrank_client import NO_TEXT_SCORE, Unavailable
from tritonrank_recommend.engine import explain as explaining
from tritonrank_recommend.engine.explain import BlendParts, Fields, PastItem, Question, ShownItem, explain
from tritonrank_recommend.engine.ranker import Scored
from tritonrank_recommend.engine.sentences import LEAST_TOLD, NOTHING, name_of, sentence
from tritonrank_recommend.engine.wire import Explanation, Reason
from tritonrank_runtime.item_text import render_fields

TOLERANCE = 1e-5


@dataclass
class RealRanker:
    """The built ranker in this process, as an engine's Ranker; counts what it is asked."""

    workspace: Workspace
    slow_from: int = 1_000
    """the number of the request from which on none is answered in time"""
    asked: list[Request] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._scorer = open_scorer(self.workspace.int8)

    def logits(self, query: str, history: Sequence[str], items: Sequence[str]) -> np.ndarray:
        return np.asarray(self._scorer.score(Request(query, list(history), list(items))), dtype=np.float32)

    async def score(
        self, query: str, history: Sequence[str], items: Sequence[str], *, user: str = "", seconds: float | None = None
    ) -> Scored:
        self.asked.append(Request(query, list(history), list(items)))
        if len(self.asked) > self.slow_from:
            await asyncio.sleep(60)
        return Scored(self.logits(query, history, items), "tiny")


@pytest.fixture(scope="module")
def question(workspace: Workspace, tiny_recipe: Recipe) -> Question:
    items = list(Dataset.read(workspace.dataset).items.items())
    template = tiny_recipe.text.item_template

    def render(fields: Fields) -> str:
        return render_fields(template, fields)

    past = [
        PastItem(item_id, render(fields), kind, fields)
        for (item_id, fields), kind in zip(items[:3], ("purchase", "click", "rating"), strict=True)
    ]
    shown = [ShownItem(item_id, render(fields), fields) for item_id, fields in items[40:46]]
    return Question(shown, past, "waterproof blue jacket", render)


@pytest.fixture(scope="module")
def ranker(workspace: Workspace) -> RealRanker:
    return RealRanker(workspace)


@pytest.fixture(scope="module")
def explained(question: Question, ranker: RealRanker) -> list[Explanation]:
    return asyncio.run(explain(question, ranker, seconds=60))


def logit(ranker: RealRanker, question: Question, item: str) -> float:
    return float(ranker.logits(question.query, [past.text for past in question.history], [item])[0])


def test_each_reason_is_what_the_ranker_says_without_it(
    question: Question, ranker: RealRanker, explained: list[Explanation]
) -> None:
    """For every reason of every item: taking the named thing away moves the logit by exactly what was said."""
    seen = set()
    for item, explanation in zip(question.shown, explained, strict=True):
        whole = logit(ranker, question, item.text)
        for reason in explanation.reasons:
            seen.add((reason.kind, reason.name))
            asked, text = question, item.text
            if reason.kind == "history":
                asked = replace(question, history=[one for one in question.history if one.item_id != reason.name])
            elif reason.kind == "query":
                words = [word for word in question.query.split() if word != reason.name]
                asked = replace(question, query=" ".join(words))
            else:
                assert question.render is not None
                text = question.render({name: value for name, value in item.fields.items() if name != reason.name})
            assert whole - logit(ranker, asked, text) == pytest.approx(reason.effect, abs=TOLERANCE)
        assert not explanation.left_out
    assert {("query", word) for word in question.query.split()} < seen
    assert {("history", past.item_id) for past in question.history} < seen
    assert {name for kind, name in seen if kind == "field"} == {"title", "attributes"}, "what the template reads"


def test_the_strongest_reason_stands_first_and_is_told(question: Question, explained: list[Explanation]) -> None:
    assert any(one.sentence != NOTHING for one in explained)
    names = {past.item_id: str(past.fields["title"]) for past in question.history if past.fields}
    for explanation in explained:
        effects = [abs(reason.effect) for reason in explanation.reasons]
        assert effects == sorted(effects, reverse=True)
        raised = [reason for reason in explanation.reasons if reason.effect >= LEAST_TOLD]
        if not raised:
            assert explanation.sentence == NOTHING
            continue
        told = next((reason for reason in raised if reason.kind != "field"), raised[0])
        assert names.get(told.name, told.name) in explanation.sentence


def test_the_work_is_counted_and_bounded(question: Question, workspace: Workspace) -> None:
    """As docs/recommend.md says: one request for the list and its fields, one for each past item and each word."""
    ranker = RealRanker(workspace)
    asyncio.run(explain(question, ranker, seconds=60))
    shown = len(question.shown)
    assert [len(one.items) for one in ranker.asked] == [shown * 3] + [shown] * (3 + 3)
    assert all(one.history == [past.text for past in question.history] for one in ranker.asked[:1])
    much = replace(
        question,
        shown=list(question.shown) * 10,
        history=[replace(past, item_id=f"{past.item_id}-{turn}") for turn in range(20) for past in question.history],
        query=" ".join(f"word{number}" for number in range(100)),
    )
    ranker.asked.clear()
    found = asyncio.run(explain(much, ranker, seconds=60))
    assert len(found) == explaining.MOST_SHOWN
    assert len(ranker.asked) == 1 + explaining.MOST_HISTORY + explaining.MOST_WORDS
    newest = [past.item_id for past in much.history[-explaining.MOST_HISTORY :]]
    told = {reason.name for one in found for reason in one.reasons if reason.kind == "history"}
    assert told <= set(newest)


def test_what_was_not_looked_at_in_time_is_named(question: Question, workspace: Workspace) -> None:
    ranker = RealRanker(workspace, slow_from=3)
    found = asyncio.run(explain(question, ranker, seconds=1.0))
    kinds = {reason.kind for one in found for reason in one.reasons}
    assert kinds == {"field", "history"}
    assert found[0].left_out == ["history: 1 not looked at in time", "query: 3 not looked at in time"]


def test_without_a_ranker_the_blend_still_says_its_part(question: Question) -> None:
    class Gone:
        async def score(self, *_: object, **__: object) -> Scored:
            raise Unavailable("nobody there")

    values = np.zeros((len(question.shown), 3), np.float32)
    values[:, 1] = 0.5
    values[0] = [0.1, -0.2, np.nan]
    parts = BlendParts(("ranker", "popularity", "age"), values)
    first, second, *_ = asyncio.run(explain(replace(question, blend=parts), Gone(), seconds=5))
    assert [(one.kind, one.name, one.of) for one in first.reasons] == [
        ("blend", "popularity", "score"),
        ("blend", "ranker", "score"),
    ]
    assert first.reasons[0].effect == pytest.approx(-0.2)
    assert first.sentence == NOTHING
    assert second.sentence == "Many people like it now."
    assert first.left_out == ["the ranker did not answer in time"]


def test_an_item_without_text_has_no_numbers(question: Question, ranker: RealRanker) -> None:
    blank = ShownItem("blank", "", {"title": ""})
    assert ranker.logits("q", [], [""])[0] == np.float32(NO_TEXT_SCORE)
    (found,) = asyncio.run(explain(replace(question, shown=[blank]), ranker, seconds=60))
    assert found.reasons == []
    assert found.sentence == NOTHING


def test_an_item_that_is_in_the_history_twice_is_taken_away_whole(question: Question, ranker: RealRanker) -> None:
    twice = replace(question, history=[question.history[0], question.history[1], question.history[0]], query="")
    (found, *_) = asyncio.run(explain(replace(twice, shown=question.shown[:1]), ranker, seconds=60))
    (reason,) = [one for one in found.reasons if one.name == question.history[0].item_id]
    left = replace(twice, history=[question.history[1]])
    text = question.shown[0].text
    assert logit(ranker, twice, text) - logit(ranker, left, text) == pytest.approx(reason.effect, abs=TOLERANCE)


@pytest.mark.parametrize(
    ("reasons", "said"),
    [
        ([], NOTHING),
        ([Reason("history", "a", 1.0)], "Because you bought “Red shoes”."),
        ([Reason("history", "a", 0.1), Reason("query", "red", 1.0)], "It fits “red”, which you searched for."),
        (
            [Reason("history", "b", 1.0), Reason("history", "a", 0.9), Reason("query", "red", 0.8)],
            "Because you put “b” into your cart and bought “Red shoes”; it fits “red”, which you searched for.",
        ),
        ([Reason("field", "brand", 1.0), Reason("history", "a", -3.0)], "It stands here for its brand."),
        (
            [Reason("field", "genres", 1.0), Reason("field", "release_year", 0.9)],
            "It stands here for its genres and release year.",
        ),
        ([Reason("field", "title", 9.0), Reason("history", "a", 0.1)], "Because you bought “Red shoes”."),
    ],
    ids=[
        "nothing",
        "history",
        "a weak one is not told",
        "several",
        "what lowers is not told",
        "two fields",
        "history before fields",
    ],
)
def test_sentences(reasons: list[Reason], said: str) -> None:
    history = {
        "a": PastItem("a", "", "purchase", {"price": 3.0, "title": "Red shoes"}),
        "b": PastItem("b", "", "cart"),
    }
    assert sentence(reasons, history) == said


def test_names_are_short_and_found() -> None:
    assert name_of("id-1", None) == "id-1"
    assert name_of("id-1", {"price": 2.0, "brand": "Acme", "name": "Desk"}) == "Desk"
    assert name_of("id-1", {"price": 2.0, "brand": "Acme"}) == "Acme"
    assert len(name_of("id-1", {"title": "very long " * 50})) <= 80


def test_the_wire_form_is_small(explained: list[Explanation]) -> None:
    import msgspec

    told = json.loads(msgspec.json.encode(explained[0]))
    assert set(told) == {"reasons", "sentence"}
    assert msgspec.json.decode(msgspec.json.encode(explained), type=list[Explanation]) == explained
