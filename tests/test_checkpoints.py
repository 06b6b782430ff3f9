"""Checkpoints that cannot be used are refused by name before any work, each with the next step; none runs code."""

import importlib.util
import json
import os
import pty
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny_models import save_ranker
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerFast
from tritonrank.artifacts.workspace import Workspace
from tritonrank.errors import ArtifactError, RecipeError, TritonRankError
from tritonrank.graphs.export import export_graphs
from tritonrank.judge.open_scorer import open_scorer
from tritonrank.pipeline.finetune import check_models
from tritonrank.pipeline.stages import run_stages
from tritonrank.rankers.checkpoint_source import identity
from tritonrank.rankers.pretrained import load_any_ranker, load_encoder, load_tokenizer
from tritonrank.recipe import PACKAGED_MINILM, Recipe
from tritonrank.train.finetune import untrained_ranker

RULES = {"query_tokens": 8, "history_items": 2, "history_tokens": 24, "candidate_tokens": 12}
EXAMPLES = {"training_examples": 32, "judged_negatives": 9, "validation_users": 5, "test_users": 5}
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 17000000\n"


def recipe_for(name: object, key: str = "checkpoint", **model: object) -> Recipe:
    return Recipe.model_validate(values_for(name, key, **model))


def values_for(name: object, key: str = "checkpoint", **model: object) -> dict[str, Any]:
    return {
        "name": "only",
        "data": {"source": "sample", "items": 60, "users": 60},
        "text": RULES,
        "examples": EXAMPLES,
        "model": {"architecture": "joint", key: str(name), **model},
    }


def refusal(name: object, key: str = "checkpoint", **model: object) -> str:
    """What a build says before it does anything."""
    with pytest.raises(ArtifactError) as caught:
        check_models(recipe_for(name, key, **model), Workspace(Path("nothing")))
    return str(caught.value)


def change_json(path: Path, **changes: object) -> None:
    known = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(known | changes))


@pytest.fixture(scope="module")
def rankers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A good ranker of three families; tests copy them."""
    root = tmp_path_factory.mktemp("rankers")
    return {family: save_ranker(family, root / family) for family in ("bert", "roberta", "xlm-roberta")}


@pytest.fixture
def folder(rankers: dict[str, Path], tmp_path: Path) -> Path:
    """A good BERT ranker, to be spoiled."""
    return shutil.copytree(rankers["bert"], tmp_path / "ranker")


def without_sentencepiece(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is for who installed the extra ``build`` alone."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "sentencepiece" else find(name, *rest)
    )


def only_sentencepiece(folder: Path, file: str, kind: str) -> None:
    for name in ("tokenizer.json", "vocab.txt"):
        (folder / name).unlink(missing_ok=True)
    (folder / file).write_bytes(b"\x0a\x00")
    change_json(folder / "tokenizer_config.json", tokenizer_class=kind)


def only_pickled(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def only(folder: Path, *files: str) -> None:
    (folder / "model.safetensors").unlink()
    for file in files:
        (folder / file).write_bytes(b"weights of another kind")


def sharded(folder: Path) -> list[Path]:
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="40KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    return shards


def modules(folder: Path, *kinds: str, model_type: str = "SentenceTransformer") -> None:
    named = [{"idx": n, "name": str(n), "path": f"{n}_X" if n else "", "type": kind} for n, kind in enumerate(kinds)]
    (folder / "modules.json").write_text(json.dumps(named))
    change_json(folder / "config_sentence_transformers.json", model_type=model_type)


TRANSFORMER = "sentence_transformers.models.Transformer"
POOLING, DENSE = "sentence_transformers.models.Pooling", "sentence_transformers.models.Dense"

UNUSABLE: dict[str, tuple[Callable[[Path], object], str]] = {
    # kind: how a good checkpoint is spoiled, and what the refusal names: the culprit, then the next step
    "sentencepiece of xlm-r": (
        lambda f: only_sentencepiece(f, "sentencepiece.bpe.model", "XLMRobertaTokenizer"),
        r"sentencepiece\.bpe\.model.*tokenizer\.json.*pip install sentencepiece.*python -c .*save_pretrained",
    ),
    "sentencepiece of albert": (
        lambda f: only_sentencepiece(f, "spiece.model", "AlbertTokenizer"),
        r"spiece\.model.*tokenizer\.json.*python -c",
    ),
    "sentencepiece of deberta": (lambda f: only_sentencepiece(f, "spm.model", "DebertaV2Tokenizer"), "python -c"),
    "no tokenizer": (
        lambda f: [(f / n).unlink() for n in ("tokenizer.json", "vocab.txt")],
        r"tokenizer\.json is missing.*Copy it",
    ),
    "no template": (
        lambda f: change_json(f / "tokenizer.json", post_processor=None),
        r"tokenizer\.json.*post_processor.*AutoTokenizer",
    ),
    "garbage tokenizer": (lambda f: (f / "tokenizer.json").write_text("{"), r"tokenizer\.json.*download it again"),
    "web page as tokenizer": (lambda f: (f / "tokenizer.json").write_text("<html>"), r"tokenizer\.json"),
    "own tokenizer class": (
        lambda f: change_json(f / "tokenizer_config.json", tokenizer_class="MyTokenizer"),
        r"tokenizer_config\.json.*MyTokenizer.*PreTrainedTokenizerFast",
    ),
    "two labels": (
        lambda f: change_json(f / "config.json", id2label={"0": "no", "1": "yes"}),
        r"one label, this one 2.*num_labels 1.*model\.base",
    ),
    "five labels": (
        lambda f: change_json(f / "config.json", id2label={str(n): str(n) for n in range(5)}),
        r"one label, this one 5.*model\.base",
    ),
    "labels left out": (
        lambda f: (f / "config.json").write_text(
            json.dumps({k: v for k, v in json.loads((f / "config.json").read_text()).items() if "label" not in k})
        ),
        r"this one 2.*model\.base",
    ),
    "adapter": (
        lambda f: (
            only(f, "adapter_model.safetensors"),
            (f / "config.json").unlink(),
            change_json(f / "adapter_config.json", peft_type="LORA", base_model_name_or_path="org/base-of-it"),
        ),
        r"adapter.*org/base-of-it.*pip install peft.*merge_and_unload.*save_pretrained",
    ),
    "modular head": (
        lambda f: modules(f, TRANSFORMER, POOLING, DENSE, model_type="CrossEncoder"),
        r"modules\.json: Transformer, Pooling, Dense.*model\.base",
    ),
    "embedder": (
        lambda f: [change_json(f / "config.json", architectures=["BertModel"]), modules(f, TRANSFORMER, POOLING)],
        r"embedder.*Transformer, Pooling.*model\.base",
    ),
    "code in a module": (lambda f: modules(f, "custom_st.Transformer"), r"modules\.json.*code.*custom_st\.Transformer"),
    "encoder": (
        lambda f: change_json(f / "config.json", architectures=["BertForMaskedLM"]),
        r"BertForMaskedLM.*model\.base",
    ),
    "causal": (
        lambda f: change_json(f / "config.json", model_type="qwen3", architectures=["Qwen3ForCausalLM"]),
        r"causal language model.*Qwen3ForCausalLM.*cross-encoder",
    ),
    "seq2seq": (
        lambda f: change_json(f / "config.json", model_type="t5", architectures=["T5ForConditionalGeneration"]),
        r"sequence-to-sequence.*T5ForConditionalGeneration.*cross-encoder",
    ),
    "no architectures": (
        lambda f: change_json(f / "config.json", architectures=None),
        r"architectures in config\.json",
    ),
    "no model_type": (lambda f: change_json(f / "config.json", model_type=None), r"config\.json names no model_type"),
    "unknown model_type": (
        lambda f: change_json(f / "config.json", model_type="rankformer"),
        r"config\.json.*model_type rankformer.*another checkpoint",
    ),
    "quantized": (
        lambda f: change_json(f / "config.json", quantization_config={"quant_method": "gptq"}),
        r"quantized \(gptq\).*Name the checkpoint that it was quantized from",
    ),
    "code of the checkpoint": (
        lambda f: change_json(f / "config.json", auto_map={"AutoConfig": "mine.Mine"}),
        r"config\.json.*code.*AutoConfig.*copy",
    ),
    "code of the tokenizer": (
        lambda f: change_json(f / "tokenizer_config.json", auto_map={"AutoTokenizer": ["mine.Mine", None]}),
        r"tokenizer_config\.json.*code.*AutoTokenizer.*copy",
    ),
    "kernel of the hub": (
        lambda f: change_json(f / "config.json", _attn_implementation="somebody/attention"),
        r"config\.json.*code from the hub.*somebody/attention.*copy",
    ),
    "pickle": (only_pickled, r"model\.safetensors.*pickle.*tritonrank convert-weights .*ranker"),
    "onnx": (lambda f: only(f, "model.onnx"), r"model\.safetensors.*ONNX.*name that checkpoint"),
    "tensorflow": (lambda f: only(f, "tf_model.h5"), r"model\.safetensors.*TensorFlow"),
    "another name": (lambda f: (f / "model.safetensors").rename(f / "model.fp16.safetensors"), r"fp16.*rename"),
    "truncated": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-1]),
        r"model\.safetensors.*truncated.*Download it again",
    ),
    "web page as weights": (
        lambda f: (f / "model.safetensors").write_text("<!DOCTYPE html><html>not found</html>"),
        r"model\.safetensors.*damaged.*Download it again",
    ),
    "missing shard": (lambda f: sharded(f)[1].unlink(), r"index\.json.*model-00002-of.*Download"),
    "truncated shard": (
        lambda f: (last := sharded(f)[-1]).write_bytes(last.read_bytes()[:100]),
        r"model-0000.*truncated.*Download",
    ),
    "broken index": (
        lambda f: [only(f), (f / "model.safetensors.index.json").write_text("{}")],
        r"index\.json.*weight_map.*Download",
    ),
    "broken config": (lambda f: (f / "config.json").write_text('{"model_type": "bert",'), r"config\.json: not JSON"),
    "a list as config": (lambda f: (f / "config.json").write_text("[]"), r"config\.json: a JSON object"),
    "no config": (lambda f: (f / "config.json").unlink(), r"no config\.json"),
    "empty": (lambda f: [path.unlink() for path in f.iterdir()], r"empty.*config\.json"),
    "dangling link": (
        lambda f: [(f / "tokenizer.json").unlink(), (f / "tokenizer.json").symlink_to("../blobs/gone")],
        r"links.*tokenizer\.json.*cp -rL",
    ),
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_what_cannot_be_used_is_named_with_the_next_step(
    kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_sentencepiece(monkeypatch)
    spoil, expected = UNUSABLE[kind]
    spoil(folder)
    message = refusal(folder)
    assert re.search(rf"(?s){re.escape(str(folder))}.*{expected}|{expected}", message), message
    assert str(folder) in message
    assert "trust_remote_code" not in message


@pytest.mark.parametrize(
    "kind", ["sentencepiece of xlm-r", "no template", "causal", "seq2seq", "code of the checkpoint", "truncated"]
)
def test_a_base_is_refused_alike(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_sentencepiece(monkeypatch)
    spoil, expected = UNUSABLE[kind]
    spoil(folder)
    assert re.search(f"(?s){expected}", refusal(folder, "base"))


@pytest.mark.parametrize("kind", ["two labels", "code of the checkpoint", "truncated", "causal"])
def test_a_teacher_is_checked_before_any_work(kind: str, folder: Path, rankers: dict[str, Path]) -> None:
    values = values_for(rankers["roberta"], "base") | {"finetune": {"teacher": str(folder)}}
    recipe = Recipe.model_validate(values)
    with pytest.raises(ArtifactError, match=r"finetune\.teacher: .*text\.json"):
        check_models(recipe, Workspace(Path("nothing")))
    spoil, expected = UNUSABLE[kind]
    spoil(folder)
    with pytest.raises(ArtifactError, match=f"(?s){re.escape(str(folder))}.*{expected.split('.*')[0]}"):
        check_models(recipe, Workspace(Path("nothing")))


POINTED = ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors", "special_tokens_map.json")


@pytest.mark.parametrize("file", [*POINTED, "vocab.txt", "modules.json"])
def test_pointers_are_named_with_the_command_that_fetches_them(file: str, folder: Path) -> None:
    if file == "vocab.txt":
        (folder / "tokenizer.json").unlink()
    (folder / file).write_text(POINTER)
    message = refusal(folder)
    assert file in message
    assert f"cd {shlex.quote(str(folder))} && git lfs" in message


def test_pointers_to_what_is_not_read_do_no_harm(folder: Path) -> None:
    for file in ("pytorch_model.bin", "model.onnx", "picture.png"):
        (folder / file).write_text(POINTER)
    check_models(recipe_for(folder), Workspace(Path("nothing")))
    (folder / "model.safetensors").unlink()
    assert "git lfs pull" in refusal(folder)


@pytest.mark.slow
def test_a_pickled_checkpoint_is_usable_after_the_command_of_its_refusal(folder: Path) -> None:
    expected = load_file(folder / "model.safetensors")
    only_pickled(folder)
    command = re.search(r"(?m)^ *(tritonrank convert-weights .*)$", refusal(folder))
    assert command is not None
    _, *arguments = shlex.split(command[1])
    subprocess.run([sys.executable, "-m", "tritonrank", *arguments], check=True, capture_output=True, timeout=120)
    model, _ = untrained_ranker(recipe_for(folder))
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, expected[name]), name


def byte_pairs(post_processor: processors.PostProcessor | None) -> PreTrainedTokenizerFast:
    pieces = ["<|endoftext|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({piece: place for place, piece in enumerate(pieces)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if post_processor is not None:
        tokenizer.post_processor = post_processor
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>", pad_token="<|endoftext|>")


@pytest.mark.parametrize(
    "post_processor",
    [
        None,
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing("<|endoftext|> $A", "<|endoftext|> $A <|endoftext|> $B", [("<|endoftext|>", 0)]),
    ],
    ids=["none", "byte level", "beginnings alone"],
)
def test_tokenizers_of_language_models_have_no_layout_for_pairs(
    post_processor: processors.PostProcessor | None, folder: Path
) -> None:
    byte_pairs(post_processor).save_pretrained(folder)
    change_json(folder / "config.json", vocab_size=1_000)
    message = refusal(folder)
    assert "post_processor" in message
    assert "Qwen3" in message


# Tokens and embeddings


def test_a_token_without_an_embedding_is_named(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = len(tokenizer)
    tokenizer.add_tokens(["wolframite"])
    tokenizer.save_pretrained(folder)
    for key in ("checkpoint", "base"):
        message = refusal(folder, key)
        assert f"'wolframite' ({rows})" in message
        assert "resize_token_embeddings" in message
    assert "wolframite" in refusal(folder, "base", architecture="shared-context")


def test_a_padding_token_without_an_embedding_is_named(rankers: dict[str, Path], tmp_path: Path) -> None:
    """It stands in rows of unequal length, though no text can hold it."""
    folder = shutil.copytree(rankers["bert"], tmp_path / "padded")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "<blank>"})
    tokenizer.save_pretrained(folder)
    assert "'<blank>'" in refusal(folder)


def test_a_special_token_that_no_text_can_hold_needs_no_embedding(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<turn>"]})
    tokenizer.save_pretrained(folder)
    check_models(recipe_for(folder), Workspace(Path("nothing")))


def test_the_tokenizer_of_another_model_is_refused(rankers: dict[str, Path], tmp_path: Path) -> None:
    """A larger vocabulary, or for those that count positions from the padding token another padding token."""
    large = shutil.copytree(rankers["bert"], tmp_path / "large")
    load_tokenizer(PACKAGED_MINILM).save_pretrained(large)
    assert "another model's tokenizer" in refusal(large)
    counted = shutil.copytree(rankers["roberta"], tmp_path / "counted")
    for path in counted.iterdir():
        if path.name not in {"config.json", "model.safetensors"}:
            path.unlink()
    AutoTokenizer.from_pretrained(rankers["bert"]).save_pretrained(counted)
    assert re.search(r"padding token, 1;.*'\[PAD\]' \(0\)", refusal(counted))


# Names


def test_a_path_that_is_not_there_is_never_asked_for_at_the_hub(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("./rankers", "~/absent", str(tmp_path / "rankerr"), "ranker/absent", "a/b/c", "absent/", "~nobody7/x"):
        message = refusal(name)
        assert f"{name}: no such folder" in message, message
    assert f"mean {folder}?" in refusal(tmp_path / "rankerr")
    assert str(folder) in refusal(folder / "config.json"), "a file is not a folder: its folder is named"
    broken = tmp_path / "link"
    broken.symlink_to("gone")
    assert "gone" in refusal(broken)
    for name in ("~/ranker", "./ranker", "ranker", "ranker/", "../" + tmp_path.name + "/ranker"):
        check_models(recipe_for(name), Workspace(Path("nothing")))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("org/model@main", r"checkpoint: org/model, revision: main"),
        ("https://huggingface.co/org/model", "org/model"),
        ("packaged:other", PACKAGED_MINILM),
        ("org/a model", "neither a folder here"),
        ("org/model..x", "neither a folder here"),
        ("x" * 300, "neither a folder here"),
    ],
)
def test_names_that_are_neither_are_refused_without_asking(name: str, expected: str) -> None:
    assert re.search(expected, refusal(name))


def test_what_holds_the_checkpoint_is_named(folder: Path, tmp_path: Path) -> None:
    assert str(folder) in refusal(tmp_path)
    cache = tmp_path / "models--org--name"
    (cache / "snapshots").mkdir(parents=True)
    assert "org/name" in refusal(cache)


@pytest.mark.parametrize("locked", ["config.json", "tokenizer.json", "model.safetensors", "."])
def test_files_that_may_not_be_read_are_named(locked: str, rankers: dict[str, Path]) -> None:
    with tempfile.TemporaryDirectory() as root:
        Path(root).chmod(0o755)
        folder = shutil.copytree(rankers["bert"], Path(root) / "ranker")
        for path in folder.iterdir():
            path.chmod(0o644)
        (folder / locked).chmod(0)
        owner = os.geteuid()
        try:
            if owner == 0:  # root reads everything
                os.seteuid(65_534)
            message = refusal(folder)
        finally:
            os.seteuid(owner)
            folder.chmod(0o755)
    assert "cannot be read" in message
    assert (folder.name if locked == "." else locked) in message


def test_a_revision_is_for_the_hub(folder: Path) -> None:
    for values in (values_for(folder, revision="main"), values_for(PACKAGED_MINILM, "base", revision="main")):
        with pytest.raises(RecipeError, match=r"model\.revision"):
            check_models(Recipe.model_validate(values), Workspace(Path("nothing")))


# The command line


def run_tritonrank(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tritonrank", *arguments]
    return subprocess.run(
        command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize("verb", ["prepare", pytest.param("evaluate", marks=pytest.mark.slow)])
def test_the_command_line_refuses_before_it_prepares(verb: str, folder: Path, tmp_path: Path) -> None:
    (folder / "tokenizer.json").write_text(POINTER)
    recipe = tmp_path / "only.yaml"
    recipe.write_text(yaml.safe_dump(values_for(folder)))
    done = run_tritonrank(verb, str(recipe), cwd=tmp_path)
    assert done.returncode == 2
    assert "git lfs pull" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "artifacts").rglob("manifest.json"))


@pytest.mark.slow
def test_a_checkpoint_that_is_not_trained_is_said_to_be_taken(folder: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "only.yaml"
    recipe.write_text(yaml.safe_dump(values_for(folder)))
    done = run_tritonrank("finetune", str(recipe), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"took the checkpoint as given, nothing is trained: {folder}" in " ".join(done.stdout.split()).replace(
        "- ", "-"
    )
    assert "Warning" not in done.stdout + done.stderr


# Code


@pytest.fixture
def with_code(folder: Path, tmp_path: Path) -> Iterator[Path]:
    """A ranker that brings code for everything; the code leaves a mark where it runs."""
    mark = tmp_path / "ran"
    code = f"open({str(mark)!r}, 'w')\nfrom transformers import *\nclass Mine(BertConfig):\n    model_type = 'mine'\n"
    for name in ("mine.py", "modeling_mine.py", "__init__.py", "handler.py", "sitecustomize.py"):
        (folder / name).write_text(code)
    change_json(folder / "config.json", auto_map={"AutoConfig": "mine.Mine", "AutoModel": "mine.Mine"})
    change_json(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["mine.Mine", None]})
    yield folder
    assert not mark.exists(), "code of the checkpoint ran"


def test_no_way_to_load_a_checkpoint_runs_its_code(with_code: Path, tmp_path: Path) -> None:
    """Also where nothing was checked before: a folder that is judged, exported, pruned."""
    ways: list[Callable[[], object]] = [
        lambda: load_any_ranker(with_code),
        lambda: load_encoder(str(with_code)),
        lambda: load_tokenizer(str(with_code)),
        lambda: open_scorer(with_code),
        lambda: export_graphs(with_code, tmp_path, 18),
        lambda: untrained_ranker(recipe_for(with_code)),
        lambda: untrained_ranker(recipe_for(with_code, "base")),
    ]
    for way in ways:
        with pytest.raises(ArtifactError, match="code of the checkpoint"):
            way()


@pytest.mark.slow
def test_no_prompt_offers_to_run_code_on_a_terminal(with_code: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "only.yaml"
    recipe.write_text(yaml.safe_dump(values_for(with_code)))
    seen = bytearray()

    def answer_yes(terminal: int) -> bytes:
        read = os.read(terminal, 1_024)
        seen.extend(read)
        os.write(terminal, b"y\n")
        return read

    with (tmp_path / "screen").open("wb") as screen:
        kept = os.dup(1)
        os.dup2(screen.fileno(), 1)  # pty.spawn copies what it reads there
        try:
            command = [sys.executable, "-m", "tritonrank", "export", str(recipe), "--artifacts", str(tmp_path / "a")]
            status = pty.spawn(command, answer_yes, lambda _: b"")
        finally:
            os.dup2(kept, 1)
            os.close(kept)
    text = " ".join(seen.decode().split())
    assert os.waitstatus_to_exitcode(status) == 2, text
    assert "[y/N]" not in text
    assert "ArtifactError" in text
    assert "trust_remote_code" not in text


# What a stage key says of a model


def test_every_file_that_makes_tokenizer_or_model_counts(folder: Path) -> None:
    modules(folder, TRANSFORMER, POOLING)
    (folder / "1_X").mkdir()
    (folder / "1_X" / "config.json").write_text("{}")
    seen = {identity(str(folder))}
    for file in (
        "vocab.txt", "merges.txt", "vocab.json", "spiece.model", "spm.model", "bpe.codes", "added_tokens.json",
        "tokenizer.json", "tokenizer_config.json", "config.json", "model.safetensors", "1_X/config.json",
    ):  # fmt: skip
        before = (folder / file).read_bytes() if (folder / file).exists() else b""
        (folder / file).write_bytes(before + b" ")
        seen.add(identity(str(folder)))
    assert len(seen) == 13
    known = identity(str(folder))
    (folder / "checkpoint-500").mkdir()
    (folder / "checkpoint-500" / "model.safetensors").write_bytes(b"of another model")
    (folder / "README.md").write_text("nothing that is read")
    assert identity(str(folder)) == known
    linked = folder.with_name("linked")
    linked.mkdir()
    for path in folder.iterdir():
        (linked / path.name).symlink_to(path)
    assert identity(str(linked)) == known, "links are followed"
    (folder / "vocab.txt").write_bytes(b"changed behind the link")
    assert identity(str(linked)) != known


def test_a_changed_vocabulary_is_not_up_to_date(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "tokenizer.json").unlink()  # vocab.txt is the tokenizer
    recipe = recipe_for(folder)
    workspace = Workspace.of(recipe, tmp_path / "artifacts")

    def made() -> list[bool]:
        run_stages(recipe, workspace, until="finetune")
        return ["up to date" in line for line in capsys.readouterr().out.splitlines() if line.startswith("finetune")]

    assert made() == [False]
    assert made() == [True]
    words = (folder / "vocab.txt").read_text().split("\n")
    lamp, shoe = words.index("lamp"), words.index("shoe")
    words[lamp], words[shoe] = "shoe", "lamp"
    (folder / "vocab.txt").write_text("\n".join(words))
    assert made() == [False]
    assert load_tokenizer(str(workspace.teacher)).convert_tokens_to_ids("shoe") == lamp


def test_whatever_stands_in_a_file_only_our_own_errors_come_out(folder: Path) -> None:
    contents = [b"", b"[]", b"null", b"{", b'"x"', b"{}", b"\x00\xff", b'[{"a": 1}]']
    for file in (*POINTED, "modules.json", "config_sentence_transformers.json", "adapter_config.json"):
        path = folder / file
        before = path.read_bytes() if path.exists() else None
        for content in contents:
            path.write_bytes(content)
            with suppress(TritonRankError):
                check_models(recipe_for(folder), Workspace(Path("nothing")))
        if before is None:
            path.unlink()
        else:
            path.write_bytes(before)


def test_stored_prompts_are_mentioned_once(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change_json(folder / "config_sentence_transformers.json", prompts={"query": "", "document": ""})
    recipe = recipe_for(folder)
    check_models(recipe, Workspace(tmp_path))
    assert "prompt" not in capsys.readouterr().err
    prompts = {"query": "Find the product: ", "document": ""}
    change_json(folder / "config_sentence_transformers.json", prompts=prompts, default_prompt_name="query")
    workspace = Workspace.of(recipe, tmp_path / "artifacts")
    run_stages(recipe, workspace, until="finetune")
    said = capsys.readouterr().err
    assert said.count("'Find the product: '") == 1
    assert "item_template" in said
    run_stages(recipe, workspace, until="finetune")
    assert "Find the product" not in capsys.readouterr().err
