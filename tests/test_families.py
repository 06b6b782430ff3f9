"""Every family goes the whole way: checkpoint -> ONNX -> INT8 -> scores in process -> the repository's configs."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from google.protobuf import text_format
from numpy.typing import NDArray
from tiny_models import RANKERS, TEXTS, WITH_SEGMENTS, save_ranker
from transformers import AutoTokenizer, PreTrainedModel
from tritonclient.grpc import model_config_pb2
from tritonrank.errors import RecipeError
from tritonrank.graphs.export import compare_with_torch, export_graphs
from tritonrank.judge.open_scorer import open_scorer
from tritonrank.quantize.int8 import quantize_graphs
from tritonrank.rankers.scorers import Request
from tritonrank.recipe import QuantizeSettings, Recipe
from tritonrank.serve.models import engine_inputs, write_models
from tritonrank.train.finetune import save_checkpoint, text_rules, untrained_ranker
from tritonrank_runtime.engine import MODEL_FILE
from tritonrank_runtime.engines import model_files
from tritonrank_runtime.joint import JOINT
from tritonrank_runtime.padding import PADDING
from tritonrank_runtime.shared_context import SHARED_CONTEXT
from tritonrank_runtime.text import copy_text_files

OPSET = 18
TOLERANCE = 1e-4
LARGEST_NOISE = 0.4
"""Of the spread of the scores. Two random layers of width 32 round by 0.02 to 0.33 of it when all of them are INT8."""
REQUESTS = [
    Request("", [], TEXTS[:3]),
    Request("waterproof shoe", TEXTS[2:4], TEXTS),
    Request("café ☕ 日本語", TEXTS * 3, [*TEXTS, "a", "unheard-of xyzzy " * 20]),
]
RULES = {"query_tokens": 8, "history_items": 6, "history_tokens": 41, "candidate_tokens": 20}


def recipe_for(model: Path, architecture: str = JOINT) -> Recipe:
    """A ready joint ranker, or an encoder that becomes a shared-context one."""
    settings = {"architecture": architecture, "checkpoint" if architecture == JOINT else "base": str(model)}
    return Recipe(name="family", data={"source": "sample"}, text=RULES, model=settings)


@dataclass(frozen=True)
class Ladder:
    """The artifacts' folders of one family in one architecture."""

    family: str
    architecture: str
    recipe: Recipe
    checkpoint: Path
    graph: Path
    int8: Path

    @property
    def has_segment_input(self) -> bool:
        return self.architecture == JOINT and self.family in WITH_SEGMENTS

    def scores(self, folder: Path) -> list[NDArray[np.float32]]:
        scorer = open_scorer(folder)
        return [scorer.score(request) for request in REQUESTS]


@pytest.fixture(scope="module", params=RANKERS)  # most of which have mark.slow
def ladder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Ladder:
    family, architecture = request.param
    root = tmp_path_factory.mktemp(f"{family}-{architecture}")
    recipe = recipe_for(save_ranker(family, root / "hub", head=architecture == JOINT), architecture)
    made = Ladder(family, architecture, recipe, root / "checkpoint", root / "onnx", root / "int8")
    model, _ = untrained_ranker(recipe)
    if architecture == SHARED_CONTEXT:
        spread_logits(model)
    for folder in (made.checkpoint, made.graph, made.int8):
        folder.mkdir()
    save_checkpoint(recipe, model, made.checkpoint)
    export_graphs(made.checkpoint, made.graph, OPSET)
    copy_text_files(made.checkpoint, made.graph)
    quantize_graphs(made.graph, made.int8, REQUESTS, QuantizeSettings(noise=1_000))
    copy_text_files(made.graph, made.int8)
    return made


def spread_logits(model: PreTrainedModel) -> None:
    """A fresh head would give all candidates nearly the same logit, and tolerances would prove nothing."""
    torch.manual_seed(3)
    torch.nn.init.normal_(model.head.weight, std=0.5)


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
    spread = exact.std()
    assert (rounded - exact).std() < LARGEST_NOISE * spread
    assert (rounded[::-1] - exact).std() > 2 * LARGEST_NOISE * spread  # scores of other items would be noticed


def test_inputs_are_those_of_the_family(ladder: Ladder) -> None:
    joint = {"input_ids", "attention_mask"} | ({"token_type_ids"} if ladder.has_segment_input else set())
    expected = joint if ladder.architecture == JOINT else {"context_ids", "candidate_ids"}
    cache = {"context_keys", "context_values"}
    for folder in (ladder.graph, ladder.int8):
        inputs = [tensor for path in model_files(folder) for tensor in onnx.load(path).graph.input]
        ids = [tensor for tensor in inputs if tensor.name not in cache]
        assert sorted(tensor.name for tensor in ids) == sorted(expected)
        assert {tensor.type.tensor_type.elem_type for tensor in ids} == {onnx.TensorProto.INT32}
        assert {tensor.name for tensor in inputs} - expected == (set() if ladder.architecture == JOINT else cache)
        assert set(engine_inputs(folder)) == expected


def test_configs_name_segments_only_where_the_family_has_them(ladder: Ladder, tmp_path: Path) -> None:
    write_models(ladder.recipe.serve, ladder.int8, tmp_path / "repository", cores=2, in_one=False)
    texts = {path.parent.name: path.read_text() for path in (tmp_path / "repository").glob("*/config.pbtxt")}
    assert set(texts) == {"rank", "tokenize", "score", "select"}
    assert {"token_type_ids" in texts[name] for name in ("rank", "tokenize", "score")} == {ladder.has_segment_input}
    score = text_format.Parse(texts["score"], model_config_pb2.ModelConfig())
    assert [tensor.name for tensor in score.input] == [*engine_inputs(ladder.int8), "deadline", "ticket"]
    tokenize = text_format.Parse(texts["tokenize"], model_config_pb2.ModelConfig())
    assert {tensor.name for tensor in score.input} <= {tensor.name for tensor in tokenize.output}


def test_rows_have_the_layout_of_the_familys_own_tokenizer(ladder: Ladder) -> None:
    tokenizer = AutoTokenizer.from_pretrained(ladder.checkpoint)
    scorer = open_scorer(ladder.graph)
    items = ["oak lamp", "tea"]
    rows = scorer.tensors(Request("blue", [], items))
    if ladder.architecture == SHARED_CONTEXT:
        assert rows["context_ids"].tolist() == tokenizer("blue")["input_ids"]
        for row, item in zip(rows["candidate_ids"].tolist(), items, strict=True):
            own = [token for token in row if token != PADDING]
            assert own == [tokenizer.cls_token_id, *tokenizer(item, add_special_tokens=False)["input_ids"]]
        return
    expected = tokenizer(["blue"] * 2, items, padding=True, return_tensors="np")
    np.testing.assert_array_equal(rows["input_ids"], expected["input_ids"])
    np.testing.assert_array_equal(rows["attention_mask"], expected["attention_mask"])
    if ladder.has_segment_input:
        np.testing.assert_array_equal(rows["token_type_ids"], expected["token_type_ids"])


@pytest.mark.parametrize(("family", "reserved"), [("roberta", 2), ("xlm-roberta", 2), ("bert", 0), ("distilbert", 0)])
def test_longest_padded_row_fits_the_position_embeddings(family: str, reserved: int, tmp_path: Path) -> None:
    probe = untrained_ranker(recipe_for(save_ranker(family, tmp_path / "probe")))[1]
    longest = probe.architecture.run_tokens(probe.longest_rows["input_ids"])
    assert longest > probe.longest_rows["input_ids"]  # the row alone would fit where the padded row does not

    shorter = save_ranker(family, tmp_path / "shorter", positions=longest + reserved - 1)
    with pytest.raises(RecipeError, match=f"rows of up to {longest} tokens.*takes {longest - 1}"):
        untrained_ranker(recipe_for(shorter))

    recipe = recipe_for(save_ranker(family, tmp_path / "fitting", positions=longest + reserved))
    model, tokenizer = untrained_ranker(recipe)
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    save_checkpoint(recipe, model, folder)
    export_graphs(folder, folder, OPSET)
    filler = " ".join(TEXTS)
    full = Request(filler, [filler] * 2, [filler, "lamp"])
    assert open_scorer(folder).tensors(full)["attention_mask"].sum(axis=1).max() == tokenizer.longest_rows["input_ids"]
    by_torch = tmp_path / "torch"
    shutil.copytree(folder, by_torch, ignore=shutil.ignore_patterns(MODEL_FILE))
    np.testing.assert_allclose(open_scorer(folder).score(full), open_scorer(by_torch).score(full), atol=TOLERANCE)


@pytest.mark.parametrize(
    ("family", "reserved"), [("roberta", 2), ("xlm-roberta", 2), ("electra", 0), ("distilbert", 0)]
)
def test_longest_context_and_candidate_fit_the_position_embeddings(family: str, reserved: int, tmp_path: Path) -> None:
    probe = recipe_for(save_ranker(family, tmp_path / "probe", head=False), SHARED_CONTEXT)
    tokenizer = untrained_ranker(probe)[1]
    longest = tokenizer.longest_rows["context_ids"] + tokenizer.longest_rows["candidate_ids"]

    shorter = save_ranker(family, tmp_path / "shorter", positions=longest + reserved - 1, head=False)
    with pytest.raises(RecipeError, match=f"a context and a candidate of up to {longest} tokens.*takes {longest - 1}"):
        untrained_ranker(recipe_for(shorter, SHARED_CONTEXT))

    fitting = save_ranker(family, tmp_path / "fitting", positions=longest + reserved, head=False)
    recipe = recipe_for(fitting, SHARED_CONTEXT)
    model, tokenizer = untrained_ranker(recipe)
    spread_logits(model)
    folder, by_torch = tmp_path / "checkpoint", tmp_path / "torch"
    by_torch.mkdir()
    save_checkpoint(recipe, model, by_torch)
    shutil.copytree(by_torch, folder)
    export_graphs(folder, folder, OPSET)
    filler = " ".join(TEXTS)
    full = Request(filler, [filler] * 2, [filler, "lamp"])
    rows = open_scorer(folder).tensors(full)
    assert rows["context_ids"].size == tokenizer.longest_rows["context_ids"] == model.config.context_positions
    assert rows["candidate_ids"].shape == (2, tokenizer.longest_rows["candidate_ids"])
    np.testing.assert_allclose(open_scorer(folder).score(full), open_scorer(by_torch).score(full), atol=TOLERANCE)


def test_rules_travel_with_the_checkpoint(ladder: Ladder) -> None:
    assert open_scorer(ladder.int8).tokenizer.rules == text_rules(ladder.recipe)
