"""What a catalogue is built of: fields as numbers and lists, words of any language, and the stage itself."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from small_tables import write_tables
from tiny_catalogue import DIMENSIONS, tiny_encoder
from tritonrank.artifacts import read_manifest, write_artifact
from tritonrank.artifacts.stage import run_stage
from tritonrank.artifacts.workspace import Workspace
from tritonrank.data.dataset import Dataset
from tritonrank.data.item_fields import field_fingerprints, item_fields
from tritonrank.data.sample import generate
from tritonrank.errors import DataError
from tritonrank.judge.counted import popularity_baseline
from tritonrank.pipeline import catalogue, prepare
from tritonrank.recipe import PublicData, Recipe, SampleData
from tritonrank.retrieval.catalogue_vectors import DTYPE, EXPANSION, write_index
from tritonrank.retrieval.catalogue_words import language_of
from tritonrank.retrieval.item_vectors import Residuals
from tritonrank_recommend.catalogue import open_catalogue
from tritonrank_recommend.catalogue.interface import SOURCES, Liked, Wish
from tritonrank_recommend.catalogue.vectors import graph
from tritonrank_recommend.catalogue.words import Words

SMALL = {"source": "sample", "items": 60, "users": 40}


def recipe_of(**more: object) -> Recipe:
    sections = {"name": "small", "data": SMALL, "retrieval": {}, "text": {"item_template": "{title}, {attributes}"}}
    examples = {"judged_negatives": 9, "validation_users": 5, "test_users": 5, "training_examples": 50}
    return Recipe.model_validate(sections | {"examples": examples} | more)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A dataset, a tiny retriever and the catalogue of both."""
    workspace = Workspace(tmp_path_factory.mktemp("small"))
    recipe = recipe_of()
    run_stage(prepare.stage(recipe, workspace))
    titles = [item["title"] for item in Dataset.read(workspace.dataset).items.values()]
    with write_artifact(workspace.retriever, "retriever", {}, {}) as draft:
        tiny_encoder(draft.folder, titles)
        Residuals.none(DIMENSIONS).save(draft.folder)
    run_stage(catalogue.stage(recipe, workspace))
    return workspace


def test_the_stage_makes_what_the_gateway_opens(workspace: Workspace) -> None:
    found = open_catalogue(workspace.catalogue)
    dataset = Dataset.read(workspace.dataset)
    assert found.artifact == read_manifest(workspace.catalogue).artifact
    assert len(found) == len(dataset.items)
    first = next(iter(dataset.items))
    (fields,), texts = found.fields([first]), dataset.items[first]
    assert fields is not None
    assert fields["price"] == float(texts["price"])
    assert fields["attributes"] == texts["attributes"].split(", ")
    candidates = found.retrieve(
        Wish(query=texts["title"], history=[Liked(first)], filters={"brand": texts["brand"]}, size=60)
    )
    assert not candidates.missing
    assert set(candidates.ranks) == set(SOURCES)
    assert first in candidates.ids
    assert {found.fields([one])[0]["brand"] for one in candidates.ids} == {texts["brand"]}
    manifest = read_manifest(workspace.catalogue)
    assert manifest.metrics["filters"] == list(texts)
    assert set(manifest.parents) == {"dataset", "retriever"}
    assert manifest.metrics["data_read"] == read_manifest(workspace.dataset).began.isoformat()


def test_what_is_long_ago_counts_less_and_held_out_events_do_not_count(workspace: Workspace) -> None:
    events = Dataset.read(workspace.dataset).training_events
    popularity = np.load(workspace.catalogue / "popularity.npy")
    plain = popularity_baseline(events)
    assert 0 < popularity.sum() < events.filter(pl.col("label") > 0).height
    ids = list(Dataset.read(workspace.dataset).items)
    from tritonrank.data.dataset import Example

    counts = plain(Example("", "", "", [], ids, [0.0] * len(ids)))
    assert (popularity <= counts + 1e-4).all()
    assert ((popularity > 0) == (counts > 0)).all()


def test_fields_leave_the_dataset_as_it_is(tmp_path: Path) -> None:
    data = write_tables(tmp_path, "csv")
    plain, asking = (
        Recipe.model_validate({"name": "small", "data": one})
        for one in (data, data.model_copy(update={"fields": ["watts"]}))
    )
    keys = [prepare.stage(one, Workspace(tmp_path)).settings() for one in (plain, asking)]
    assert keys[0] == keys[1]
    catalogues = [
        catalogue.stage(one.model_copy(update={"retrieval": recipe_of().retrieval}), Workspace(tmp_path)).settings()
        for one in (plain, asking)
    ]
    assert catalogues[0] != catalogues[1]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_columns_for_filters_keep_their_kind(tmp_path: Path, suffix: str) -> None:
    items = pl.DataFrame(
        {"sku": [1, 2, 3], "name": ["a", "b", "c"], "watts": [5.5, None, 7], "code": ["007", "12", None], "note": ["x", "", "y"]}  # noqa: E501
    )  # fmt: skip
    data = write_tables(tmp_path, suffix, items=items).model_copy(
        update={"text_fields": ["name"], "fields": {"watts": "watts", "part": "code", "note": "note"}}
    )
    fields = item_fields(data, pl.DataFrame({"item_id": ["3", "1"], "name": ["c", ""]}))
    assert fields.to_dicts() == [
        {"item_id": "3", "name": "c", "watts": 7.0, "part": None, "note": "y"},
        {"item_id": "1", "name": None, "watts": 5.5, "part": "007", "note": "x"},
    ]
    assert field_fingerprints(data)


def test_lists_stay_lists(tmp_path: Path) -> None:
    items = pl.DataFrame({"sku": [1, 2], "name": ["a", "b"], "tags": [["x", "y"], []], "new": [True, False]})
    data = write_tables(tmp_path, "parquet", items=items).model_copy(
        update={"text_fields": ["name"], "fields": ["tags", "new"]}
    )
    fields = item_fields(data, pl.DataFrame({"item_id": ["1", "2"], "name": ["a", "b"]}))
    assert fields["tags"].to_list() == [["x", "y"], []]
    assert fields["new"].to_list() == [True, False]


def test_a_column_that_is_not_there_is_named(tmp_path: Path) -> None:
    data = write_tables(tmp_path, "csv").model_copy(update={"fields": ["wattage"]})
    with pytest.raises(DataError, match=r"items\.csv.*'wattage'.*data\.fields"):
        item_fields(data, pl.DataFrame({"item_id": ["10"], "name": [""], "watts": [""], "sku": [""]}))


def test_public_sources_and_the_sample_have_numbers_and_lists() -> None:
    movies = pl.DataFrame({"item_id": ["1"], "title": ["Heat"], "year": ["1995"], "genres": ["Action Film-Noir"], "tags": [""]})  # noqa: E501 # fmt: skip
    public = PublicData.model_construct(source="movielens")
    assert item_fields(public, movies).to_dicts() == [
        {"item_id": "1", "title": "Heat", "year": 1995.0, "genres": ["Action", "Film-Noir"], "tags": None}
    ]
    sample = item_fields(SampleData(), generate(SampleData(items=50, users=20), 1).items)
    assert sample.schema["price"] == pl.Float64
    assert sample.schema["attributes"] == pl.List(pl.String)


def test_a_graph_goes_on_from_where_it_was(tmp_path: Path) -> None:
    vectors = np.random.default_rng(1).normal(size=(600, 16))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
    half, work = graph(vectors, dtype=DTYPE, expansion=EXPANSION), tmp_path / "work" / "graph"
    half.add(np.arange(300), vectors[:300].astype(np.float32))
    work.parent.mkdir()
    half.save(str(work))
    facts = write_index(vectors, tmp_path, exact_items=0, work=work)
    assert facts is not None
    assert facts.recall > 0.9
    whole = graph(vectors, dtype=DTYPE, expansion=EXPANSION)
    for saved in (work, tmp_path / "vectors.usearch"):
        whole.load(str(saved))
        assert len(whole) == 600


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("The Runner's  42-inch TV!", ["the", "runner", "s", "42", "inch", "tv"]),
        ("Café Ångström", ["cafe", "angstrom"]),
        ("Straße ΣΊΣΥΦΟΣ", ["strasse", "σισυφοσ"]),
        ("ёлка Йод", ["ёлка", "йод"]),
        ("東京タワー lamp", ["東京", "京タ", "タワ", "ワー", "lamp"]),
        ("กาแฟ", ["กา", "าแ", "แฟ"]),
        ("茶", ["茶"]),
        ("한국어 책", ["한국어", "책"]),
        ("हिन्दी", ["हिन्दी"]),
        ("!!! …", []),
    ],
)
def test_words_of_any_language(text: str, tokens: list[str]) -> None:
    assert Words()(text) == tokens


def test_stems_meet() -> None:
    assert Words("english")("running shoes") == Words("english")("run shoe")
    with pytest.raises(KeyError):
        Words("klingon")


@pytest.mark.parametrize(
    ("texts", "language"),
    [
        (["The lord of the rings", "Gone with the wind", "All about Eve"], "english"),
        (["Der Herr der Ringe und die zwei Türme", "Das Boot", "Im Westen nichts Neues"], "german"),
        (["Acme X200 Lamp", "Corvid Kettle 2"], ""),
        (["東京タワー", "茶"], ""),
    ],
)
def test_the_language_is_guessed_where_it_is_clear(texts: list[str], language: str) -> None:
    assert language_of(texts) == language
