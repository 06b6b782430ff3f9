"""Every family goes the whole way: checkpoint -> ONNX -> INT8 -> scores in process -> the repository's configs."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from google.protobuf import text_format
from numpy.typing import NDArray
from tiny_models import FAMILIES, TEXTS, WITH_SEGMENTS, save_ranker
from transformers import AutoTokenizer
from tritonclient.grpc import model_config_pb2
from tritonrank.assemble import engine_inputs, write_models
from tritonrank.engine import padded_length
from tritonrank.errors import RecipeError
from tritonrank.export import MODEL_FILE, compare_with_torch, copy_text_files, export_graph
from tritonrank.finetune import save_checkpoint, text_rules, untrained_ranker
from tritonrank.quantize import quantize_graph
from tritonrank.recipe import QuantizeSettings, Recipe
from tritonrank.scorers import Request, open_scorer

OPSET = 18
TOLERANCE = 1e-4
REQUESTS = [
    Request("", [], TEXTS[:3]),
    Request("waterproof shoe", TEXTS[2:4], TEXTS),
    Request("café ☕ 日本語", TEXTS * 3, [*TEXTS, "a", "unheard-of xyzzy " * 20]),
]


def recipe_for(checkpoint: Path, **text: object) -> Recipe:
    rules = {"query_tokens": 8, "history_items": 6, "history_tokens": 41, "candidate_tokens": 20} | text
    return Recipe(name="family", data={"source": "sample"}, text=rules, model={"checkpoint": str(checkpoint)})


@dataclass(frozen=True)
class Ladder:
    """The artifacts' folders of one family."""

    family: str
    recipe: Recipe
    checkpoint: Path
    graph: Path
    int8: Path

    @property
    def has_segments(self) -> bool:
        return self.family in WITH_SEGMENTS

    def scores(self, folder: Path) -> list[NDArray[np.float32]]:
        scorer = open_scorer(folder)
        return [scorer.score(request) for request in REQUESTS]


@pytest.fixture(scope="module", params=FAMILIES)
def ladder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Ladder:
    root = tmp_path_factory.mktemp(request.param)
    recipe = recipe_for(save_ranker(request.param, root / "hub"))
    made = Ladder(request.param, recipe, root / "checkpoint", root / "onnx", root / "int8")
    model, _ = untrained_ranker(recipe)
    for folder in (made.checkpoint, made.graph, made.int8):
        folder.mkdir()
    save_checkpoint(recipe, model, made.checkpoint)
    export_graph(made.checkpoint, made.graph / MODEL_FILE, OPSET)
    copy_text_files(made.checkpoint, made.graph)
    quantize_graph(
        made.graph, made.int8 / MODEL_FILE, REQUESTS, QuantizeSettings(calibration_candidates=8, noise=1_000)
    )
    copy_text_files(made.graph, made.int8)
    return made


def test_graph_computes_what_torch_computes(ladder: Ladder) -> None:
    difference = compare_with_torch(ladder.checkpoint, ladder.graph, REQUESTS, TOLERANCE)
    assert max(difference.on_grid, difference.on_requests) < 1e-5
    for ours, torchs in zip(ladder.scores(ladder.graph), ladder.scores(ladder.checkpoint), strict=True):
        np.testing.assert_allclose(ours, torchs, atol=TOLERANCE)
        assert torchs.std() > 100 * TOLERANCE  # or else the tolerance would prove nothing


def test_int8_follows_fp32(ladder: Ladder) -> None:
    exact, rounded = (np.concatenate(ladder.scores(folder)) for folder in (ladder.graph, ladder.int8))
    assert np.isfinite(rounded).all()
    assert np.abs(exact - rounded).max() > 1e-5  # something was quantized
    assert np.corrcoef(exact, rounded)[0, 1] > 0.9


def test_inputs_are_those_of_the_family(ladder: Ladder) -> None:
    expected = {"input_ids", "attention_mask"} | ({"token_type_ids"} if ladder.has_segments else set())
    for folder in (ladder.graph, ladder.int8):
        graph = onnx.load(folder / MODEL_FILE).graph
        assert {tensor.name for tensor in graph.input} == expected
        assert {tensor.type.tensor_type.elem_type for tensor in graph.input} == {onnx.TensorProto.INT32}


def test_configs_name_segments_only_where_the_family_has_them(ladder: Ladder, tmp_path: Path) -> None:
    write_models(ladder.recipe, ladder.int8, tmp_path / "repository", cores=2)
    texts = {path.parent.name: path.read_text() for path in (tmp_path / "repository").glob("*/config.pbtxt")}
    assert set(texts) == {"rank", "tokenize", "score", "select"}
    assert {"token_type_ids" in texts[name] for name in ("rank", "tokenize", "score")} == {ladder.has_segments}
    score = text_format.Parse(texts["score"], model_config_pb2.ModelConfig())
    assert [tensor.name for tensor in score.input] == [*engine_inputs(ladder.int8), "deadline"]
    tokenize = text_format.Parse(texts["tokenize"], model_config_pb2.ModelConfig())
    assert {tensor.name for tensor in score.input} <= {tensor.name for tensor in tokenize.output}


def test_rows_have_the_layout_of_the_familys_own_tokenizer(ladder: Ladder) -> None:
    tokenizer = AutoTokenizer.from_pretrained(ladder.checkpoint)
    scorer = open_scorer(ladder.graph)
    items = ["oak lamp", "tea"]
    rows = scorer.rows(Request("blue", [], items))
    expected = tokenizer(["blue"] * 2, items, padding=True, return_tensors="np")
    np.testing.assert_array_equal(rows["input_ids"], expected["input_ids"])
    np.testing.assert_array_equal(rows["attention_mask"], expected["attention_mask"])
    if ladder.has_segments:
        np.testing.assert_array_equal(rows["token_type_ids"], expected["token_type_ids"])


@pytest.mark.parametrize(("family", "reserved"), [("roberta", 2), ("xlm-roberta", 2), ("bert", 0), ("distilbert", 0)])
def test_longest_padded_row_fits_the_position_embeddings(family: str, reserved: int, tmp_path: Path) -> None:
    probe = untrained_ranker(recipe_for(save_ranker(family, tmp_path / "probe")))[1]
    longest = padded_length(probe.row_tokens)
    assert longest > probe.row_tokens  # the row alone would fit where the padded row does not

    shorter = save_ranker(family, tmp_path / "shorter", positions=longest + reserved - 1)
    with pytest.raises(RecipeError, match=f"rows of up to {longest} tokens.*takes {longest - 1}"):
        untrained_ranker(recipe_for(shorter))

    recipe = recipe_for(save_ranker(family, tmp_path / "fitting", positions=longest + reserved))
    model, tokenizer = untrained_ranker(recipe)
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    save_checkpoint(recipe, model, folder)
    export_graph(folder, folder / MODEL_FILE, OPSET)
    filler = " ".join(TEXTS)
    full = Request(filler, [filler] * 2, [filler, "lamp"])
    assert open_scorer(folder).rows(full)["attention_mask"].sum(axis=1).max() == tokenizer.row_tokens
    by_torch = tmp_path / "torch"
    shutil.copytree(folder, by_torch, ignore=shutil.ignore_patterns(MODEL_FILE))
    np.testing.assert_allclose(open_scorer(folder).score(full), open_scorer(by_torch).score(full), atol=TOLERANCE)


def test_rules_travel_with_the_checkpoint(ladder: Ladder) -> None:
    assert open_scorer(ladder.int8).tokenizer.rules == text_rules(ladder.recipe)
