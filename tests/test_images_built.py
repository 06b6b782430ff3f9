"""A shop whose pictures show what its titles hide: built, judged, compressed and served, with images and without."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import save_encoder
from transformers import BertConfig, BertModel
from tritonrank.artifacts import read_manifest
from tritonrank.artifacts.workspace import Workspace
from tritonrank.data.dataset import Dataset
from tritonrank.data.images.shop import write_shop
from tritonrank.data.requests import requests_of
from tritonrank.judge.evaluate import judge_artifact
from tritonrank.judge.metrics import interval
from tritonrank.pipeline.stages import run_stages
from tritonrank.rankers.scorers import tensors_of
from tritonrank.recipe import Recipe, load_recipe
from tritonrank.serve.server import LocalTriton
from tritonrank_client import RankClient
from tritonrank_recommend.catalogue import open_catalogue
from tritonrank_runtime.engines import open_engine
from tritonrank_runtime.images import FOLDER, REFERENCE, ImageTable, without_images
from tritonrank_runtime.text import RequestTokenizer, TextRules

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(900)]

SHORT = {
    "text": {"query_tokens": 4, "history_items": 6, "history_tokens": 60, "candidate_tokens": 16},
    "examples": {"training_examples": 2_000, "judged_negatives": 29, "validation_users": 40, "test_users": 200},
    "finetune": {
        "learning_rate": 1.0e-3,
        "examples_per_step": 16,
        "epochs": 3,
        "evaluations": 2,
        "mixed_precision": "off",
    },
    "quantize": {"calibration_examples": 24},
    "gate": {"budget": 0.1},
}


@dataclass(frozen=True)
class Build:
    """One of the two."""

    recipe: Recipe
    workspace: Workspace


def build(root: Path, name: str, until: str, **more: object) -> Build:
    values = SHORT | {"name": name, "model": {"base": str(root / "base")}}
    tables = {"source": "tables", "items": str(root / "items.csv"), "events": str(root / "events.csv")}
    template = "{image} {title}" if "images" in more else "{title}"
    fields = ["title", "image"] if "images" in more else ["title"]
    values |= more | {"data": tables | {"text_fields": fields}}
    values["text"] = SHORT["text"] | {"item_template": template}
    path = root / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    made = Build(load_recipe(path), Workspace(root / name))
    run_stages(made.recipe, made.workspace, until=until)
    return made


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shop")
    write_shop(root)
    torch.manual_seed(5)
    config = BertConfig(
        vocab_size=30_522,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        initializer_range=0.1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    save_encoder(BertModel(config), root / "base")
    return root


@pytest.fixture(scope="module")
def seeing(shop: Path) -> Build:
    more = {"images": {"folder": str(shop / "pictures")}, "blend": {"method": "none"}}
    return build(shop, "seeing", "assemble", retrieval={"sources": ["lexical", "knn", "popular"]}, **more)


@pytest.fixture(scope="module")
def blind(shop: Path) -> Build:
    return build(shop, "blind", "quantize")


@pytest.fixture(scope="module")
def served(seeing: Build, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalTriton]:
    repository = tmp_path_factory.mktemp("served") / "repository"
    shutil.copytree(seeing.workspace.repository, repository)
    environment = {"TRITONRANK_STORE": f"sqlite:{repository.parent / 'store.db'}"}
    with LocalTriton(repository, environment=environment) as running:
        yield running


def test_what_titles_hide_ranks_better(seeing: Build, blind: Build) -> None:
    for stage in ("teacher", "int8"):
        judged = [
            judge_artifact(stage, getattr(one.workspace, stage), one.workspace.dataset, one.workspace.judgements)
            for one in (seeing, blind)
        ]
        assert judged[0].example_ids == judged[1].example_ids
        gain = interval(judged[0].values() - judged[1].values())
        print(f"{stage}: NDCG@10 {judged[0].interval()} with images, {judged[1].interval()} without: {gain}")
        assert gain.low > 0


def test_both_judge_the_same_lists(seeing: Build, blind: Build) -> None:
    lists = [[(e.candidates, e.history) for e in Dataset.read(one.workspace.dataset).test] for one in (seeing, blind)]
    assert lists[0] == lists[1]


def test_the_gate_lets_int8_pass_and_the_table_travels(seeing: Build) -> None:
    made = read_manifest(seeing.workspace.int8)
    assert [one["passed"] for name, one in made.metrics.items() if name.startswith("gate")]
    assert all(one["passed"] for name, one in made.metrics.items() if name.startswith("gate"))
    assert f"{FOLDER}/vectors.npy" in made.files
    encoded = read_manifest(seeing.workspace.images)
    assert encoded.metrics["encoded"] == encoded.metrics["images"] == encoded.metrics["items_with_image"] > 100
    assert read_manifest(seeing.workspace.images).metrics["width"] == 1_280


def test_an_image_is_encoded_once(seeing: Build, capsys: pytest.CaptureFixture[str]) -> None:
    before = ImageTable.open(seeing.workspace.images)
    run_stages(seeing.recipe, seeing.workspace, until="images", force="images")
    assert "0 of them new" in " ".join(capsys.readouterr().out.split())
    after = ImageTable.open(seeing.workspace.images)
    assert np.array_equal(before.vectors, after.vectors)
    assert before.items == after.items


def test_a_server_finds_images_by_the_ids_of_items(seeing: Build, served: LocalTriton) -> None:
    dataset = Dataset.read(seeing.workspace.dataset)
    example = dataset.test[0]
    (request,) = requests_of(dataset, [example], TextRules.load(seeing.workspace.int8))
    assert sum(bool(REFERENCE.search(text)) for text in request.items) > 20
    words = [without_images(text) for text in request.items]
    with RankClient(served.grpc_url, timeout=60.0) as client:
        named = client.rank(items=request.items, history=request.history)
        by_id = client.rank(items=words, history=request.history, item_ids=example.candidates)
        unseen = client.rank(items=words, history=request.history)
        fields = client.rank(items=[dataset.items[one] for one in example.candidates], history=request.history)
    assert by_id.indices == named.indices == fields.indices
    assert by_id.scores == pytest.approx(named.scores)
    assert sorted(unseen.scores) != pytest.approx(sorted(named.scores), abs=1e-3)
    reads, engine = RequestTokenizer.from_folder(seeing.workspace.int8), open_engine(seeing.workspace.int8)
    here = engine.run([tensors_of(request, reads)])[0]
    assert np.sort(here)[::-1] == pytest.approx(named.scores, abs=1e-4)


def test_recommendations_see_pictures_and_retrieval_reads_words(seeing: Build, served: LocalTriton) -> None:
    catalogue = open_catalogue(seeing.workspace.catalogue)
    dataset = Dataset.read(seeing.workspace.dataset)
    liked = dataset.test[0].history[-6:]
    (text,) = catalogue.texts([next(item for item in liked if dataset.items[item]["image"])])
    assert text is not None
    assert REFERENCE.match(text)
    told = {"recent": liked, "order": "ranker", "size": 20}
    with RankClient(served.grpc_url, timeout=60.0) as client:
        answer = client.recommend(**told)
        shown = [item.item_id for item in answer.items]
        texts = [text or "" for text in catalogue.texts(shown)]
        ranked = client.rank(items=texts, history=[text or "" for text in catalogue.texts(liked)], item_ids=shown)
    assert not answer.degraded
    assert list(ranked.indices) == list(range(len(shown)))
    lexical = json.loads((seeing.workspace.catalogue / "catalogue.json").read_text(encoding="utf-8"))
    assert "lexical" in lexical["sources"]
    vocabulary = (seeing.workspace.catalogue / "lexical" / "vocab.index.json").read_text(encoding="utf-8")
    assert "image" not in json.loads(vocabulary)


def test_images_cost_a_token_each(seeing: Build, blind: Build) -> None:
    """What a request takes grows with its tokens, and their number is this."""
    dataset = Dataset.read(seeing.workspace.dataset)
    pictured = {name for name, fields in dataset.items.items() if fields["image"]}
    reads = [RequestTokenizer.from_folder(one.workspace.int8, 10_000) for one in (seeing, blind)]
    assert seeing.recipe.images is not None
    each = seeing.recipe.images.soft_tokens
    assert each == 1
    for example in dataset.test[:50]:
        (request,) = requests_of(dataset, [example], reads[0].rules)
        words = [without_images(text) for text in request.items]
        shown = [reads[0].items(request.items), reads[1].items(words)]
        more = [len(seen) - len(read) for seen, read in zip(*shown, strict=True)]
        assert more == [each * (item in pictured) for item in example.candidates]
        past = [without_images(text) for text in request.history]
        contexts = [len(reads[0].context("", request.history)), len(reads[1].context("", past))]
        recent = example.history[-reads[0].rules.history_items :]
        assert contexts[0] - contexts[1] == each * sum(item in pictured for item in recent)
