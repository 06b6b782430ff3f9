"""A catalogue's answers against brute force over the same items, before and after live changes."""

import dataclasses
import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_catalogue import ITEMS, NOW, tiny_catalogue
from tritonrank_recommend.catalogue import open_catalogue
from tritonrank_recommend.catalogue.interface import SOURCES, Candidates, Liked, Wish
from tritonrank_recommend.catalogue.items import Items
from tritonrank_recommend.catalogue.layout import CatalogueError
from tritonrank_recommend.catalogue.opened import OpenCatalogue
from tritonrank_recommend.stores.interface import ItemChange

LIKED = (Liked("item-04"), Liked("item-08"))
IDS = [item["item_id"] for item in ITEMS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_catalogue(tmp_path_factory.mktemp("tiny") / "catalogue")


@pytest.fixture
def catalogue(folder: Path) -> OpenCatalogue:
    return open_catalogue(folder)


def retrieved(catalogue: OpenCatalogue, **wish: Any) -> Candidates:
    found = catalogue.retrieve(Wish(**{"now": float(NOW), "size": 100} | wish))
    assert not found.missing
    assert len(set(found.ids)) == len(found.ids)
    for values in (found.fused, found.popularity, found.age_days, *found.ranks.values(), *found.scores.values()):
        assert values.shape == (len(found.ids),)
    assert (np.diff(found.fused) <= 0).all()
    return found


def listed(found: Candidates, source: str) -> list[str]:
    """The ids that a source brought, in its order."""
    ranks = found.ranks[source]
    return [found.ids[row] for row in np.argsort(ranks, kind="stable") if ranks[row] >= 0]


def test_every_item_is_found_with_what_each_source_says(catalogue: OpenCatalogue) -> None:
    found = retrieved(catalogue, query="red lamp", history=LIKED)
    assert sorted(found.ids) == IDS
    assert set(found.ranks) == set(SOURCES)
    for source in ("two-tower", "knn", "ease", "lexical"):
        assert not np.isnan(found.scores[source]).any()  # whoever brought the item
        scores = found.scores[source][found.ranks[source] >= 0]
        order = found.ranks[source][found.ranks[source] >= 0]
        assert (np.diff(scores[np.argsort(order)]) <= 1e-6).all()
    fused = sum(
        np.where(rank >= 0, catalogue.facts.weights[source] / (61 + rank), 0) for source, rank in found.ranks.items()
    )
    np.testing.assert_allclose(found.fused, fused, rtol=1e-5)


def test_a_cosine_is_the_same_whoever_else_is_found(catalogue: OpenCatalogue) -> None:
    found = retrieved(catalogue, query="red lamp", history=LIKED)
    for item_id, cosine in zip(found.ids, found.scores["two-tower"], strict=True):
        alone = retrieved(catalogue, query="red lamp", history=LIKED, exclude=[one for one in IDS if one != item_id])
        assert alone.ids == [item_id]
        assert alone.scores["two-tower"][0] == cosine


def test_vectors_are_mixed_of_history_and_query(catalogue: OpenCatalogue, folder: Path) -> None:
    from tritonrank_recommend.catalogue.encoder import QueryEncoder

    encoder = QueryEncoder.open(folder / "encoder")
    vectors = encoder.embed(catalogue.texts(IDS))
    history = vectors[[IDS.index(one.item_id) for one in LIKED]]
    user = encoder.mix(encoder.embed(["red lamp"])[0], history, [1.0, 1.0])
    found = retrieved(catalogue, query="red lamp", history=(*LIKED, Liked("item-09", weight=-1.0), Liked("nobody")))
    expected = dict(zip(IDS, vectors @ user, strict=True))
    np.testing.assert_allclose(found.scores["two-tower"], [expected[one] for one in found.ids], atol=2e-3)


def test_words_score_as_bm25s_does(catalogue: OpenCatalogue, folder: Path) -> None:
    import bm25s

    index = bm25s.BM25.load(folder / "lexical")
    expected = dict(zip(IDS, index.get_scores(["red", "lamp"]), strict=True))
    found = retrieved(catalogue, query="Red, LAMP!")
    np.testing.assert_allclose(found.scores["lexical"], [expected[one] for one in found.ids], rtol=1e-5)
    assert set(listed(found, "lexical")) == {one for one, score in expected.items() if score > 0}


def test_neighbours_are_summed_over_the_history(catalogue: OpenCatalogue) -> None:
    alone = [retrieved(catalogue, history=[one]) for one in LIKED]
    both = retrieved(catalogue, history=LIKED)
    for source, power in (("knn", 0.0), ("ease", 0.5), ("next", 1.0)):
        assert catalogue.facts.recency.get(source, 0.0) == power
        parts = [dict(zip(found.ids, found.scores[source], strict=True)) for found in alone]
        factors = np.arange(len(LIKED), 0, -1) ** -power  # the newest is the last
        expected = [sum(factor * part[one] for factor, part in zip(factors, parts, strict=True)) for one in both.ids]
        np.testing.assert_allclose(both.scores[source], expected, rtol=1e-5, atol=1e-7)
        assert (both.scores[source] > 0).any()


def test_of_many_items_neighbours_are_summed_as_of_few(
    catalogue: OpenCatalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lists beside a large catalogue are sorted, others are added to an array of all items: to the bit the same."""
    few = retrieved(catalogue, history=LIKED)
    monkeypatch.setattr("tritonrank_recommend.catalogue.neighbours.SPARSE", 0)
    many = retrieved(catalogue, history=LIKED)
    assert many.ids == few.ids
    for source in ("knn", "ease", "next"):
        np.testing.assert_array_equal(many.scores[source], few.scores[source])
        np.testing.assert_array_equal(many.ranks[source], few.ranks[source])


def test_a_catalogue_of_an_older_build_answers_without_what_comes_next(folder: Path, tmp_path: Path) -> None:
    old = tmp_path / "catalogue"
    shutil.copytree(folder, old)
    facts = json.loads((old / "catalogue.json").read_text())
    for name in ("next_history", "recency"):
        del facts[name]
    facts["sources"].remove("next")
    facts["sizes"] = {name: size for name, size in facts["sizes"].items() if not name.startswith("next.")}
    (old / "catalogue.json").write_text(json.dumps(facts))
    manifest = json.loads((old / "manifest.json").read_text())
    manifest["files"] = {name: value for name, value in manifest["files"].items() if not name.startswith("next.")}
    manifest["files"]["catalogue.json"] = hashlib.sha256((old / "catalogue.json").read_bytes()).hexdigest()
    (old / "manifest.json").write_text(json.dumps(manifest))
    for file in old.glob("next.*"):
        file.unlink()
    opened = open_catalogue(old)
    assert not opened.broken
    found = retrieved(opened, history=LIKED)
    assert found.ids
    assert not found.missing
    assert "next" not in found.scores


def test_without_anything_known_there_is_what_is_popular_and_new(catalogue: OpenCatalogue) -> None:
    found = retrieved(catalogue, sources=("popular", "new"))
    assert (np.diff(found.popularity[np.argsort(found.ranks["popular"])]) <= 0).all()
    new = [found.age_days[found.ids.index(one)] for one in listed(found, "new")]
    assert len(new) == 28
    assert (np.diff(new) >= -1e-3).all()
    assert np.isnan(found.age_days).sum() == len(IDS) - 28  # those that nobody ever met


def test_what_is_excluded_does_not_come_back(catalogue: OpenCatalogue) -> None:
    found = retrieved(catalogue, query="red lamp", history=LIKED, exclude=[*IDS[:30], "nobody"])
    assert sorted(found.ids) == IDS[30:]


FILTERS: list[tuple[Mapping[str, Any], Callable[[Mapping[str, Any]], bool]]] = [
    ({"category": "lamp"}, lambda item: item["category"] == "lamp"),
    ({"category": ["lamp", "chair"], "brand": "Acme"}, lambda item: item["category"] in ("lamp", "chair") and item["brand"] == "Acme"),  # noqa: E501
    ({"tags": "sale"}, lambda item: "sale" in item["tags"]),
    ({"tags": ["sale", "blue"]}, lambda item: bool({"sale", "blue"} & set(item["tags"]))),
    ({"price": {"gte": 20, "lt": 50}}, lambda item: 20 <= item["price"] < 50),
    ({"price": [5, 7.5]}, lambda item: item["price"] in (5, 7.5)),
    ({"brand": "of nobody"}, lambda item: False),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(FILTERS)))
def test_filters_hold_in_every_source(catalogue: OpenCatalogue, number: int) -> None:
    filters, admits = FILTERS[number]
    expected = [item["item_id"] for item in ITEMS if admits(item)]
    found = retrieved(catalogue, query="red lamp", history=LIKED, filters=filters)
    assert sorted(found.ids) == expected
    similar = catalogue.similar("item-04", 50, filters)
    assert sorted(similar.ids) == [one for one in expected if one != "item-04"]


@pytest.mark.parametrize(
    ("filters", "said"),
    [
        ({"colour": "red"}, r"filters\.colour.*brand, category, price, tags, title"),
        ({"price": "cheap"}, r"filters\.price"),
        ({"price": {"above": 3}}, r"filters\.price\.above.*gte"),
        ({"price": {"gte": "3"}}, r"filters\.price\.gte"),
        ({"brand": {"gte": 3}}, r"filters\.brand"),
        ({"brand": [["Acme"]]}, r"filters\.brand"),
        ({"brand": ["x"] * 101}, r"filters\.brand.*100"),
    ],
)
def test_a_filter_that_cannot_be_used_is_named(catalogue: OpenCatalogue, filters: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        catalogue.retrieve(Wish(filters=filters))


def test_a_graph_answers_as_looking_at_all_does(folder: Path, tmp_path: Path) -> None:
    by_graph = open_catalogue(tiny_catalogue(tmp_path / "graph", exact_items=0))
    exact = open_catalogue(folder)
    assert by_graph.facts.index
    assert by_graph.facts.index.recall > 0.9
    wish = Wish(query="red lamp", history=LIKED, now=NOW, size=10, filters={"price": {"lt": 60}})
    one, other = by_graph.retrieve(wish), exact.retrieve(wish)
    assert one.ids == other.ids
    np.testing.assert_allclose(one.scores["two-tower"], other.scores["two-tower"], atol=1e-3)


def test_similar_leaves_the_item_itself_out_and_knows_no_strangers(catalogue: OpenCatalogue) -> None:
    found = catalogue.similar("item-04", 5, {})
    assert len(found.ids) == 5
    assert "item-04" not in found.ids
    with pytest.raises(KeyError):
        catalogue.similar("nobody", 5, {})


def test_texts_and_fields_come_as_they_were_written(catalogue: OpenCatalogue) -> None:
    stored = {name: value for name, value in ITEMS[5].items() if name != "item_id"}
    assert catalogue.fields(["nobody", "item-05"]) == [None, stored]
    assert catalogue.texts(["item-05", "nobody"]) == [ITEMS[5]["title"], None]
    assert len(catalogue) == len(IDS)


# Live changes


def changed(item_id: str, **fields: Any) -> ItemChange:
    return ItemChange(item_id, fields)


def test_a_new_item_is_in_every_source_that_can_know_it(catalogue: OpenCatalogue) -> None:
    catalogue.apply([changed("n", title="Zephyr red lamp", brand="Zephyr", price=1, colours=["teal"])])
    found = retrieved(catalogue, query="zephyr", history=LIKED)
    assert listed(found, "lexical") == ["n"]
    assert listed(found, "new")[0] == "n"
    assert "n" in listed(found, "two-tower")
    assert found.popularity[found.ids.index("n")] == 0
    for filters in ({"brand": "Zephyr"}, {"price": {"lt": 2}}, {"colours": "teal"}):
        assert retrieved(catalogue, filters=filters, query="lamp").ids == ["n"]
        assert catalogue.similar("item-04", 5, filters).ids == ["n"]
    assert "item-04" in catalogue.similar("n", 50, {}).ids
    assert catalogue.texts(["n"]) == ["Zephyr red lamp"]
    assert len(catalogue) == len(IDS) + 1


def test_a_changed_item_is_found_by_what_it_is_now(catalogue: OpenCatalogue) -> None:
    before = retrieved(catalogue, history=LIKED)
    catalogue.apply([changed("item-12", title="Acme teapot", brand="Acme", price=999.0)])
    found = retrieved(catalogue, query="teapot", history=LIKED)
    assert listed(found, "lexical") == ["item-12"]
    assert "item-12" not in listed(retrieved(catalogue, query="borealis"), "lexical")
    assert retrieved(catalogue, filters={"price": {"gt": 900}}).ids == ["item-12"]
    assert "item-12" not in retrieved(catalogue, filters={"category": "lamp"}, query="lamp").ids
    row, was = found.ids.index("item-12"), before.ids.index("item-12")
    assert found.scores["knn"][row] == before.scores["knn"][was]  # who liked it liked it
    assert found.popularity[row] == before.popularity[was]


def test_a_removed_item_never_comes_back_until_it_is_added_again(catalogue: OpenCatalogue) -> None:
    catalogue.apply([changed("item-12", title="Acme teapot"), ItemChange("item-12", None), ItemChange("nobody", None)])
    catalogue.apply([ItemChange("item-16", None)])
    gone = {"item-12", "item-16"}
    for wish in ({"query": "acme teapot green lamp"}, {"history": LIKED}, {}, {"filters": {"category": "lamp"}}):
        assert not gone & set(retrieved(catalogue, **wish).ids)
    assert not gone & set(catalogue.similar("item-04", 100, {}).ids)
    assert catalogue.fields(["item-12", "item-16"]) == [None, None]
    assert len(catalogue) == len(IDS) - 2
    with pytest.raises(KeyError):
        catalogue.similar("item-12", 5, {})
    catalogue.apply([changed("item-16", title="Acme green lamp")])
    assert "item-16" in retrieved(catalogue, history=LIKED).ids
    assert len(catalogue) == len(IDS) - 1


NAMES = st.sampled_from([*IDS[::6], "n1", "n2", "n3"])
WORDS = st.sampled_from(["red lamp", "green chair", "teal umbrella"])
CHANGES = st.lists(
    st.tuples(NAMES, st.none() | st.fixed_dictionaries({"title": WORDS, "price": st.integers(0, 9)})), max_size=30
)


@settings(max_examples=25, deadline=None)
@given(CHANGES, st.integers(1, 5), st.booleans())
def test_after_any_changes_all_is_as_if_it_had_been_so_from_the_start(
    folder: Path, changes: list[tuple[str, dict[str, Any] | None]], batch: int, is_written_anew: bool
) -> None:
    catalogue = open_catalogue(folder)
    now: dict[str, Mapping[str, Any]] = {item["item_id"]: item for item in ITEMS}
    for start in range(0, len(changes), batch):
        part = changes[start : start + batch]
        catalogue.apply([ItemChange(*change) for change in part])
        for name, fields in part:
            now.pop(name, None)
            if fields is not None:
                now[name] = fields
    if is_written_anew:
        catalogue.write_anew()
    assert len(catalogue) == len(now)
    assert sorted(retrieved(catalogue, history=LIKED, query="lamp").ids) == sorted(now)
    cheap = sorted(name for name, item in now.items() if item["price"] < 20)
    assert sorted(retrieved(catalogue, history=LIKED, query="lamp", filters={"price": {"lt": 20}}).ids) == cheap
    found = retrieved(catalogue, query="umbrella chair")
    with_words = {name for name, item in now.items() if {"umbrella", "chair"} & set(item["title"].split())}
    assert set(listed(found, "lexical")) == with_words
    vectors = catalogue.retrieve(Wish(query="green chair", size=100, sources=("two-tower",)))
    assert set(vectors.ids) == set(now)
    assert not np.isnan(vectors.scores["two-tower"]).any()


def test_many_changes_are_embedded_later_and_found_by_words_at_once(catalogue: OpenCatalogue) -> None:
    catalogue.apply([changed(f"n{number}", title=f"gadget {number}") for number in range(300)])
    assert len(listed(retrieved(catalogue, query="gadget", size=400), "lexical")) == 300
    catalogue.wait_for_vectors(seconds=60)
    assert catalogue.waiting_vectors == 0
    found = retrieved(catalogue, query="gadget", size=400)
    assert not np.isnan(found.scores["two-tower"]).any()


def test_a_change_of_price_leaves_words_and_vectors_where_they_are(catalogue: OpenCatalogue) -> None:
    before = retrieved(catalogue, query="red lamp", history=LIKED)
    for price in (500, 600):
        catalogue.apply([changed(item["item_id"], title=item["title"], price=price) for item in ITEMS])
        assert catalogue.waiting_vectors == 0  # more than are embedded at once, and none of them has to be
    found = retrieved(catalogue, query="red lamp", history=LIKED, filters={"price": 600})
    assert found.ids == before.ids
    for source in ("two-tower", "lexical"):
        np.testing.assert_array_equal(found.scores[source], before.scores[source])
    assert not retrieved(catalogue, filters={"price": [500, 5]}).ids


# Faults


@pytest.mark.parametrize(
    ("name", "source", "wish"),
    [
        ("vectors.npy", "two-tower", {"history": LIKED}),
        ("encoder/model.onnx", "two-tower", {"query": "lamp"}),
        ("lexical/vocab.index.json", "lexical", {"query": "lamp"}),
        ("knn.places.npy", "knn", {"history": LIKED}),
        ("ease.weights.npy", "ease", {"history": LIKED}),
    ],
)
def test_a_source_without_its_file_is_missing_and_the_others_answer(
    folder: Path, tmp_path: Path, name: str, source: str, wish: dict[str, Any]
) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / name).unlink()
    found = open_catalogue(copy).retrieve(Wish(**wish))
    assert set(found.missing) == {source}
    assert Path(name).name in found.missing[source]
    assert found.ids


def test_popularity_answers_even_without_its_file(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "popularity.npy").unlink()
    found = open_catalogue(copy).retrieve(Wish(sources=("popular",), size=36))
    assert sorted(found.ids) == IDS


@pytest.mark.parametrize("damage", ["catalogue.json", "items.db", "manifest.json"])
def test_what_is_no_catalogue_is_refused_with_the_next_command(folder: Path, tmp_path: Path, damage: str) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    path = copy / damage
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(CatalogueError, match=f"{re.escape(damage)}.*tritonrank build"):
        open_catalogue(copy)


def test_a_small_catalogue_has_its_items_in_memory(catalogue: OpenCatalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Items, "_select", lambda *_: pytest.fail("read while it serves"))
    found = retrieved(catalogue, query="red lamp", history=LIKED)
    assert catalogue.texts(found.ids) == found.texts
    assert catalogue.fields(found.ids) == found.fields


def test_a_changed_file_is_found_by_its_hash(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    path = copy / "knn.weights.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    assert "sha256" in open_catalogue(copy).broken["knn"]


def test_candidates_are_what_the_contract_says(catalogue: OpenCatalogue) -> None:
    found = retrieved(catalogue, query="red lamp", history=LIKED)
    assert {field.name for field in dataclasses.fields(found)} == {
        "ids", "fused", "ranks", "scores", "popularity", "age_days", "texts", "fields", "missing"
    }  # fmt: skip
    assert found.fused.dtype == found.popularity.dtype == found.age_days.dtype == np.float32
    assert {values.dtype for values in found.ranks.values()} == {np.dtype(np.int32)}
    assert {values.dtype for values in found.scores.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize("module", ["vectors", "later_vectors", "standing", "interface", "encoder"])
def test_whatever_is_imported_first_the_process_lives(module: str) -> None:
    """usearch before onnxruntime ends it with SIGSEGV."""
    command = f"import tritonrank_recommend.catalogue.{module}, tritonrank_recommend.catalogue.opened, onnxruntime"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
