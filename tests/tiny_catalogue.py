"""A small sound catalogue in well under a second: real files of every kind, and a tiny encoder that knows words."""

import datetime
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import polars as pl
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from tritonrank.artifacts import write_artifact
from tritonrank.retrieval.catalogue_writer import Contents, write_catalogue
from tritonrank_recommend.catalogue.encoder import MODEL_FILE, TOKENIZER_FILE, QueryEncoder, Towers
from tritonrank_recommend.catalogue.interface import SOURCES
from tritonrank_recommend.catalogue.layout import DATA_READ
from tritonrank_runtime.item_text import render_fields

DIMENSIONS = 32
DAY = 86_400
NOW = 1_760_000_000
BRANDS = ("Acme", "Borealis", "Corvid")
KINDS = ("lamp", "chair", "kettle", "bottle")
COLOURS = ("red", "green", "blue")
ITEMS: tuple[dict[str, Any], ...] = tuple(
    {
        "item_id": f"item-{number:02}",
        "title": f"{BRANDS[number % 3]} {COLOURS[number // 12]} {KINDS[number % 4]}",
        "brand": BRANDS[number % 3],
        "category": KINDS[number % 4],
        "tags": [COLOURS[number // 12], "sale"] if number % 5 == 0 else [COLOURS[number // 12]],
        "price": 5.0 + 2.5 * number,
    }
    for number in range(36)
)
TEMPLATE = "{title}"


def tiny_catalogue(
    folder: Path,
    items: Sequence[Mapping[str, Any]] = ITEMS,
    events: Iterable[tuple[str, str, int, int]] | None = None,
    *,
    template: str = TEMPLATE,
    exact_items: int | None = None,
    data_read: datetime.datetime | None = None,
) -> Path:
    """Write a catalogue.

    Args:
        folder: where; it does not exist yet.
        items: item_id and fields of each.
        events: user, item, unix seconds, label; by default users who like items of one kind.
        template: of the items' texts.
        exact_items: as ``write_catalogue``; 0 for a graph over even these few.
        data_read: when the items were read; None does not tell.

    Returns:
        The folder.
    """
    frame = pl.DataFrame(list(items), infer_schema_length=None)
    ids = frame["item_id"].to_list()
    texts = [render_fields(template, dict(item)) for item in items]
    encoder = tiny_encoder(folder.with_name(f"{folder.name}-encoder"), texts)
    rows = list(likes_of_one_kind(ids) if events is None else events)
    contents = Contents(
        items=frame.select("item_id", pl.exclude("item_id")),
        texts=texts,
        template=template,
        vectors=QueryEncoder.open(encoder).embed(texts).astype(np.float16),
        encoder=encoder,
        events=pl.DataFrame(
            rows,
            schema={"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64, "label": pl.Int64},
            orient="row",
        ),
        half_life_days=30.0,
        sources=SOURCES,
    )
    with write_artifact(folder, "catalogue", {}, {}) as draft:
        draft.metrics |= write_catalogue(contents, draft.folder, exact_items=exact_items)
        if data_read is not None:
            draft.metrics[DATA_READ] = data_read.isoformat()
    return folder


def likes_of_one_kind(ids: Sequence[str]) -> Iterable[tuple[str, str, int, int]]:
    """Of 24 users, each of whom likes every fourth item but the last few of all: those stay cold."""
    for user in range(24):
        liked = [item for place, item in enumerate(ids[: len(ids) * 4 // 5]) if place % 4 == user % 4]
        for step, item in enumerate(liked[user // 4 : user // 4 + 6]):
            yield f"user-{user:02}", item, NOW - (30 - step) * DAY - user, 1


def tiny_encoder(folder: Path, texts: Iterable[str]) -> Path:
    """An encoder that adds up a random vector per word: texts that share words are near each other."""
    folder.mkdir(parents=True, exist_ok=True)
    words = sorted({word for text in texts for word in text.lower().split()})
    vocabulary = {"[UNK]": 0} | {word: number for number, word in enumerate(words, start=1)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / TOKENIZER_FILE))
    table = np.random.default_rng(1).normal(size=(len(vocabulary), DIMENSIONS)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["words", "input_ids"], ["rows"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["wide_mask"]),
        helper.make_node("Mul", ["rows", "wide_mask"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "middle"], ["summed"], keepdims=0),
        helper.make_node("LpNormalization", ["summed"], ["vectors"], axis=-1, p=2),
    ]
    ids = [
        helper.make_tensor_value_info(name, TensorProto.INT32, ["texts", "tokens"])
        for name in ("input_ids", "attention_mask")
    ]
    constants = {"words": table, "last": np.array([-1]), "middle": np.array([1])}
    graph = helper.make_graph(
        nodes,
        "tiny",
        ids,
        [helper.make_tensor_value_info("vectors", TensorProto.FLOAT, ["texts", DIMENSIONS])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), folder / MODEL_FILE)
    Towers(dimension=DIMENSIONS, tokens=32, query_weight=1.0, history_weights=(1.0, 0.7, 0.5, 0.35, 0.25)).save(folder)
    return folder
