"""``tritonrank up``: whatever a checkpoint looks like, what is served scores as transformers does, or is refused."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import more_families as more
import numpy as np
import onnx
import pytest
import torch
from conftest import add_ensemble, set_parameters
from onnx import numpy_helper
from tiny_models import FAMILIES, TEXTS, save_ranker
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
)
from tritonrank.artifacts import read_manifest
from tritonrank.artifacts.stage import bring_up_to_date
from tritonrank.artifacts.workspace import Workspace
from tritonrank.errors import ArtifactError, DataError, RecipeError, TritonRankError
from tritonrank.judge.open_scorer import open_scorer
from tritonrank.pipeline.convert_weights import convert_weights
from tritonrank.pipeline.up import UpOptions, made_folder, make_from_checkpoint, up_stages
from tritonrank.quantize import int8
from tritonrank.rankers.golden_rows import check_golden_tokens
from tritonrank.rankers.server_scorer import Request
from tritonrank.serve.server import LocalTriton
from tritonrank_client import RankClient
from tritonrank_runtime.text import GOLDEN_TOKENS_FILE

QUERY = "a warm lamp for the desk"
DOCUMENTS = [*TEXTS, "Lamp"]
FP32 = UpOptions(precision="fp32")
FORMS: dict[str, Callable[[Path], Path]] = {
    **{family: lambda folder, family=family: save_ranker(family, folder) for family in FAMILIES},
    **{family: lambda folder, family=family: more.save_family(family, folder) for family in more.CONFIGS},
    "xlm-roberta with 8,194 positions": lambda folder: save_ranker("xlm-roberta", folder, positions=8_194),
    "two labels": more.save_two_labels,
    "half precision in shards": more.save_half_in_shards,
    "adapter": more.save_adapter,
    "modules": more.save_modular,
    "code of its own": more.save_code_of_its_own,
}


def options_for(form: str) -> UpOptions:
    return UpOptions(precision="fp32", trust_remote_code=form == "code of its own")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """By form: a checkpoint, and the folder of what ``up`` made of it; each is made once."""
    root = tmp_path_factory.mktemp("up")
    done: dict[str, tuple[Path, Path]] = {}

    def make(form: str) -> tuple[Path, Path]:
        if form not in done:
            checkpoint = FORMS[form](root / re.sub(r"\W", "-", form))
            done[form] = checkpoint, make_from_checkpoint(str(checkpoint), options_for(form), root / "artifacts")
        return done[form]

    return make


@torch.inference_mode()
def reference(form: str, checkpoint: Path) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The logits that the library which made the checkpoint gives the documents, texts and all."""
    pairs = [(QUERY, document) for document in DOCUMENTS]
    if form == "modules":
        from sentence_transformers import CrossEncoder

        ranker = CrossEncoder(str(checkpoint), device="cpu", activation_fn=torch.nn.Identity())
        return np.asarray(ranker.predict(pairs), dtype=np.float32)
    if form == "adapter":
        from peft import AutoPeftModelForSequenceClassification

        model = AutoPeftModelForSequenceClassification.from_pretrained(checkpoint, num_labels=1).eval()
        tokenizer = AutoTokenizer.from_pretrained(checkpoint.parent / "base")
    else:
        trust = form == "code of its own"
        model = AutoModelForSequenceClassification.from_pretrained(
            checkpoint, dtype=torch.float32, trust_remote_code=trust
        ).eval()
        tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    rows = tokenizer([QUERY] * len(DOCUMENTS), DOCUMENTS, padding=True, return_tensors="pt")
    logits = model(**rows).logits.numpy()
    return np.asarray(logits[:, 0] if logits.shape[1] == 1 else logits[:, 1] - logits[:, 0])


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_checkpoint_scores_as_its_own_library_does(
    form: str, made: Callable[[str], tuple[Path, Path]]
) -> None:
    checkpoint, root = made(form)
    expected = reference(form, checkpoint)
    assert expected.std() > 1e-2, "scores that are all alike would show nothing"
    scores = open_scorer(root / "served").score(Request(QUERY, [], DOCUMENTS))
    np.testing.assert_allclose(scores, expected, atol=1e-4)
    config = (root / "repository" / "rank" / "config.pbtxt").read_text()
    assert 'key: "activation"' in config
    check_golden_tokens(root / "served")
    assert not list(root.rglob("modeling_own.py")), "no code of a checkpoint goes where it is served"


@pytest.mark.slow
def test_every_form_goes_through_triton(made: Callable[[str], tuple[Path, Path]], tmp_path: Path) -> None:
    """One server, an ensemble per form."""
    repository = tmp_path / "repository"
    repository.mkdir()
    names = {form: re.sub(r"\W+", "_", form) for form in FORMS}
    for form, name in names.items():
        _, root = made(form)
        renamed = {model: f"{model}_{name}" for model in ("rank", "ranker")}
        add_ensemble(repository, Workspace(root), renamed)
        set_parameters(repository / f"ranker_{name}", deadline_us="60000000", lanes="1")
    with LocalTriton(repository, ready_timeout_seconds=200) as triton:
        for form, name in names.items():
            with RankClient(triton.grpc_url, model=f"rank_{name}", timeout=20) as client:
                result = client.rank(query=QUERY, items=DOCUMENTS)
            scores = np.empty(len(DOCUMENTS), dtype=np.float32)
            scores[list(result.indices)] = result.scores
            np.testing.assert_allclose(scores, reference(form, made(form)[0]), atol=1e-4, err_msg=form)


def test_what_is_made_is_kept_by_content(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = save_ranker("bert", tmp_path / "checkpoint")
    root = make_from_checkpoint(str(checkpoint), FP32, tmp_path / "artifacts")
    first = read_manifest(root / "repository").artifact
    capsys.readouterr()
    make_from_checkpoint(str(checkpoint), FP32, tmp_path / "artifacts")
    assert capsys.readouterr().out.count("up to date") == 3
    (checkpoint / "model.safetensors").unlink()
    shutil.copyfile(
        save_ranker("bert", tmp_path / "other", initializer_range=0.1) / "model.safetensors",
        checkpoint / "model.safetensors",
    )
    make_from_checkpoint(str(checkpoint), FP32, tmp_path / "artifacts")
    assert read_manifest(root / "repository").artifact != first


# --- the judge -------------------------------------------------------------------------------------------------------


def test_int8_is_served_where_it_ranks_alike(tmp_path: Path) -> None:
    checkpoint = save_ranker("bert", tmp_path / "checkpoint")
    root = make_from_checkpoint(str(checkpoint), UpOptions(), tmp_path / "artifacts")
    metrics = read_manifest(root / "served").metrics
    assert metrics["precision"] == "INT8", metrics["reason"]
    assert metrics["label_free"]["passed"]
    assert metrics["label_free"]["difference"] > 0, "INT8 never equals FP32"
    kinds = {node.op_type for node in onnx.load(root / "served" / "model.onnx").graph.node}
    assert "DequantizeLinear" in kinds


def test_a_sabotaged_int8_is_not_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = int8.quantize_graphs

    def sabotaged(source: Path, folder: Path, *rest: Any) -> list[str]:
        nodes = whole(source, folder, *rest)
        model = onnx.load(folder / "model.onnx")
        for tensor in model.graph.initializer:
            if tensor.name.endswith("_scale") and tensor.dims and tensor.dims[0] > 1:
                values = numpy_helper.to_array(tensor)
                tensor.CopyFrom(numpy_helper.from_array(values[::-1].copy() * 1.5, tensor.name))
        onnx.save(model, folder / "model.onnx")
        return nodes

    monkeypatch.setattr(int8, "quantize_graphs", sabotaged)
    checkpoint = save_ranker("bert", tmp_path / "checkpoint")
    root = make_from_checkpoint(str(checkpoint), UpOptions(), tmp_path / "artifacts")
    metrics = read_manifest(root / "served").metrics
    assert metrics["precision"] == "FP32"
    assert "tau" in metrics["reason"]
    assert (root / "served" / "model.onnx").read_bytes() == (root / "onnx" / "model.onnx").read_bytes()


def test_the_callers_texts_judge(tmp_path: Path) -> None:
    texts = tmp_path / "texts.jsonl"
    texts.write_text(
        json.dumps({"query": "lamp", "documents": TEXTS})
        + "\npan\tCast iron pan\npan\tWool blanket\nGreen teapot\nGarden shears\n"
    )
    checkpoint = save_ranker("bert", tmp_path / "checkpoint")
    root = make_from_checkpoint(str(checkpoint), UpOptions(texts=texts), tmp_path / "artifacts")
    assert read_manifest(root / "served").metrics["label_free"]["requests"] == 2
    texts.write_text('{"query": 3, "documents": ["a"]}\n')
    with pytest.raises(DataError, match=r"texts\.jsonl:1: query"):
        make_from_checkpoint(str(checkpoint), UpOptions(texts=texts), tmp_path / "artifacts")


# --- refusals --------------------------------------------------------------------------------------------------------


def save_causal(folder: Path) -> Path:
    config = GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=100, architectures=["GPT2LMHeadModel"])
    GPT2LMHeadModel(config).save_pretrained(folder)
    more.plain_tokenizer("roberta").save_pretrained(folder)
    return folder


def save_embedder(folder: Path) -> Path:
    BertModel(
        BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    ).save_pretrained(folder)
    more.plain_tokenizer("bert").save_pretrained(folder)
    kinds = ("Transformer", "Pooling", "Normalize")
    modules = [
        {"idx": place, "path": f"{place}_{kind}" if place else "", "type": f"sentence_transformers.models.{kind}"}
        for place, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    return folder


def save_strange_tokenizer(folder: Path) -> Path:
    """Its vocabulary is a file that nothing converts."""
    save_ranker("bert", folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        (folder / name).unlink(missing_ok=True)
    (folder / "vocab.tiktoken").write_text("YQ== 0\n")
    return folder


@pytest.mark.parametrize(
    ("save", "found"),
    [
        (save_causal, "model.template"),
        (save_embedder, "embedder that encodes two texts apart"),
        (more.save_pickle, "pickle.*tritonrank convert-weights"),
        (save_strange_tokenizer, "tokenizer"),
        (more.save_code_of_its_own, "--trust-remote-code"),
        (lambda folder: save_ranker("bert", folder, labels=3), "one label, this one 3"),
    ],
    ids=["causal without a prompt", "embedder", "pickle", "tokenizer", "code", "three labels"],
)
def test_what_is_not_served_is_refused_by_name_at_once(
    save: Callable[[Path], Path], found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.onnx, "export", None)  # refused before any work
    checkpoint = save(tmp_path / "checkpoint")
    with pytest.raises(ArtifactError, match=re.compile(found, re.DOTALL)) as refusal:
        make_from_checkpoint(str(checkpoint), FP32, tmp_path / "artifacts")
    assert str(refusal.value).startswith(str(checkpoint))
    assert not made_folder(str(checkpoint), FP32, tmp_path / "artifacts").parent.exists()


def test_a_tokenizer_that_becomes_another_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The original says "[CLS] a [SEP] b [SEP]"; what is converted of it swaps two tokens."""
    from tritonrank.rankers import golden_tokens

    checkpoint = save_ranker("bert", tmp_path / "checkpoint")
    (checkpoint / "tokenizer.json").rename(tmp_path / "tokenizer.json")
    vocabulary = json.loads((tmp_path / "tokenizer.json").read_text())["model"]["vocab"]
    (checkpoint / "vocab.txt").write_text("".join(f"{token}\n" for token in sorted(vocabulary, key=vocabulary.get)))
    make_from_checkpoint(str(checkpoint), FP32, tmp_path / "artifacts")  # the slow original agrees
    whole = golden_tokens.rows_of
    monkeypatch.setattr(golden_tokens, "rows_of", lambda *given: [row[::-1] for row in whole(*given)])
    with pytest.raises(ArtifactError, match=r"cannot be converted to tokenizer\.json"):
        make_from_checkpoint(str(checkpoint), FP32, tmp_path / "elsewhere")


def test_golden_tokens_notice_another_tokenizer(made: Callable[[str], tuple[Path, Path]], tmp_path: Path) -> None:
    _, root = made("bert")
    folder = shutil.copytree(root / "served", tmp_path / "served")
    cases = json.loads((folder / GOLDEN_TOKENS_FILE).read_text())
    cases[3]["ids"][1] += 1
    (folder / GOLDEN_TOKENS_FILE).write_text(json.dumps(cases))
    with pytest.raises(ArtifactError, match=r"installed tokenizers.*manifest\.json"):
        check_golden_tokens(folder)


@pytest.mark.parametrize("tokens", [8, 100_000])
def test_rows_are_as_long_as_the_model_takes(tokens: int, tmp_path: Path) -> None:
    checkpoint = save_ranker("bert", tmp_path / "checkpoint")
    with pytest.raises(RecipeError, match=r"--max-tokens.*16 to 256"):
        make_from_checkpoint(str(checkpoint), UpOptions(max_tokens=tokens), tmp_path / "artifacts")


# --- pickles ---------------------------------------------------------------------------------------------------------


def test_converted_pickles_are_the_same_weights(tmp_path: Path) -> None:
    checkpoint = more.save_pickle(tmp_path / "checkpoint")
    assert convert_weights(checkpoint) == [checkpoint / "model.safetensors"]
    stage = up_stages(str(checkpoint), FP32, tmp_path / "root")[0]
    bring_up_to_date(stage)
    original = save_ranker("bert", tmp_path / "original")
    expected = reference("bert", original)
    np.testing.assert_allclose(open_scorer(stage.folder).score(Request(QUERY, [], DOCUMENTS)), expected, atol=1e-4)


class Malicious:
    """Runs when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def test_a_pickle_with_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    checkpoint = save_ranker("bert", tmp_path / "checkpoint")
    (checkpoint / "model.safetensors").unlink()
    torch.save({"weight": torch.ones(2), "more": Malicious(tmp_path / "ran")}, checkpoint / "pytorch_model.bin")
    with pytest.raises(ArtifactError, match=r"pytorch_model\.bin: not converted"):
        convert_weights(checkpoint)
    assert not (tmp_path / "ran").exists()
    assert not list(checkpoint.glob("*.safetensors*"))


def test_errors_are_the_users_own() -> None:
    with pytest.raises(TritonRankError, match="nothing to convert"):
        convert_weights(Path(__file__).parent)
