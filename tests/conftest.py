"""What many tests share: a tiny build of the whole pipeline per architecture, and one real Triton that serves both."""

import os

import tritonrank  # noqa: F401 - its first act is to turn telemetry off, which libraries look for when imported

os.environ.setdefault("TRITON_INTERPRET", "1")  # OpenAI's Triton looks for it when imported, which PyTorch does
# Models this small gain nothing from a second thread, and threads that wait for each other lose much on busy cores.
# Libraries look for it when they are loaded; programs that tests start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# isort: split

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import polars as pl
import pytest
import torch
import yaml
from google.protobuf import text_format
from kept_builds import kept
from order_of_files import pytest_collection_modifyitems  # noqa: F401 - a hook
from stage_runs import publish_instead
from tiny_models import save_ranker
from torch.optim.optimizer import register_optimizer_step_pre_hook
from transformers import BertConfig, BertModel, PreTrainedModel
from tritonclient.grpc import model_config_pb2
from tritonrank.artifacts import Draft
from tritonrank.artifacts.workspace import Workspace
from tritonrank.data.dataset import Dataset
from tritonrank.data.requests import requests_of
from tritonrank.judge.open_scorer import open_scorer
from tritonrank.pipeline.stages import run_stages
from tritonrank.rankers.pretrained import load_tokenizer
from tritonrank.rankers.scorers import Request
from tritonrank.recipe import PACKAGED_MINILM, Recipe, load_recipe
from tritonrank.serve.models import write_golden_cases, write_models
from tritonrank.serve.server import LocalTriton
from tritonrank_runtime.cores import available_cores
from tritonrank_runtime.engines import loaded_files
from tritonrank_runtime.text import TextRules
from whole_runs import pytest_configure  # noqa: F401 - a hook

TESTS = Path(__file__).parent

torch.set_num_threads(1)  # whoever imported it first


def save_encoder(model: PreTrainedModel, folder: Path) -> Path:
    """A base model folder with the packaged MiniLM's tokenizer."""
    model.save_pretrained(folder)
    load_tokenizer(PACKAGED_MINILM).save_pretrained(folder)
    return folder


@contextmanager
def optimizer_steps(last: int | None = None) -> Iterator[list[int]]:
    """Grows by one with each step of an optimizer; the one after ``last`` is interrupted, as by Ctrl-C."""
    steps: list[int] = []

    def count(*_: object) -> None:
        if len(steps) == last:
            raise KeyboardInterrupt
        steps.append(1)

    hook = register_optimizer_step_pre_hook(count)
    try:
        yield steps
    finally:
        hook.remove()


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What users install, built as the Dockerfile builds it."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(TESTS.parent)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=folder, check=False)
    assert done.returncode == 0, done.stdout[-2_000:] + done.stderr[-2_000:]
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="session")
def perf_analyzer() -> Path:
    """The launcher that `make setup` installed: no test downloads anything."""
    launcher = TESTS.parent / ".tools" / "bin" / "perf_analyzer"
    assert launcher.exists(), f"{launcher} is missing: make setup"
    return launcher


@pytest.fixture(scope="session")
def kept_root(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where builds are kept between sessions, see kept_builds.py; `make clean` empties it."""
    cache = getattr(request.config, "cache", None)  # -p no:cacheprovider
    return tmp_path_factory.mktemp("kept") if cache is None else Path(cache.mkdir("builds"))


@pytest.fixture(scope="session")
def tiny_base(kept_root: Path) -> Path:
    """A random two-layer BERT; always in the same place, because recipes name it."""
    return kept(kept_root, "base", _save_tiny_base)


def _save_tiny_base(folder: Path) -> None:
    torch.manual_seed(5)
    config = BertConfig(
        vocab_size=30_522,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        initializer_range=0.2,  # so that logits spread and tolerances mean something
    )
    save_encoder(BertModel(config), folder)


@pytest.fixture(scope="session")
def tiny_recipe(tiny_base: Path) -> Recipe:
    return load_recipe(TESTS / "tiny.yaml", [f"model.base={tiny_base}"])


@pytest.fixture(scope="session")
def joint_recipe(tiny_base: Path) -> Recipe:
    overrides = [f"model.base={tiny_base}", "model.architecture=joint"]
    return load_recipe(TESTS / "tiny.yaml", overrides)


@pytest.fixture(scope="session")
def workspace(tiny_recipe: Recipe, kept_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """artifacts/tiny with every stage built, a shared-context ranker; tests must not change it."""
    built = kept(kept_root, "tiny", lambda folder: run_stages(tiny_recipe, Workspace(folder)))
    workspace = Workspace.of(tiny_recipe, tmp_path_factory.mktemp("artifacts"))
    shutil.copytree(built, workspace.root, symlinks=True)
    return workspace


@pytest.fixture(scope="session")
def joint_workspace(
    workspace: Workspace, joint_recipe: Recipe, kept_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> Workspace:
    """The same recipe and dataset for a joint ranker, built as far as it is served; tests must not change it."""

    def build(folder: Path) -> None:
        shutil.copytree(workspace.dataset, Workspace(folder).dataset)
        run_stages(joint_recipe, Workspace(folder), until="assemble")

    joint = Workspace.of(joint_recipe, tmp_path_factory.mktemp("joint"))
    shutil.copytree(kept(kept_root, "joint", build), joint.root)
    return joint


@pytest.fixture(scope="session")
def held_out(workspace: Workspace) -> list[Request]:
    """The test users' requests."""
    dataset = Dataset.read(workspace.dataset)
    return requests_of(dataset, dataset.test, TextRules.load(workspace.teacher))


@dataclass(frozen=True)
class Served:
    """The one running server.

    Its ensembles: ``rank`` is the shared-context INT8 repository as built, ``rank_joint`` the joint one;
    ``rank_fp32`` and ``rank_joint_fp32`` are the same around the FP32 graphs. ``rank_steps`` and ``rank_joint_steps``
    have a model for each step, ``tokenize``, ``score`` and ``select``. Their scorers let ids through that their engines
    refuse; that of the shared-context ranker takes longer rows than ``tokenize`` makes, and its time for them.
    """

    triton: LocalTriton
    workspace: Workspace
    joint_workspace: Workspace
    doors: Path
    """A folder for each scorer, see DOOR."""

    @property
    def urls(self) -> dict[str, str]:
        return {"http": self.triton.http_url, "grpc": self.triton.grpc_url}


@pytest.fixture(scope="session")
def served(
    workspace: Workspace,
    joint_workspace: Workspace,
    tiny_recipe: Recipe,
    joint_recipe: Recipe,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Served]:
    """The one real Triton of the test suite."""
    repository = tmp_path_factory.mktemp("served") / "repository"
    shutil.copytree(workspace.repository, repository)
    add_ensemble(repository, workspace, {"rank": "rank_fp32", "ranker": "ranker_fp32"}, fp32=True)
    add_ensemble(repository, joint_workspace, {"rank": "rank_joint", "ranker": "ranker_joint"})
    add_ensemble(repository, joint_workspace, {"rank": "rank_joint_fp32", "ranker": "ranker_joint_fp32"}, fp32=True)
    rankers = ("ranker", "ranker_fp32", "ranker_joint", "ranker_joint_fp32")
    for ranker in rankers:
        set_parameters(repository / ranker, batch_tokens="100000")
    add_steps(repository, tiny_recipe, workspace, "")
    add_steps(repository, joint_recipe, joint_workspace, "_joint")
    set_parameters(repository / "score", context_row_tokens="200", candidate_row_tokens="200")
    take_at_once(repository / "score", REQUESTS_AT_ONCE)
    scorers = ("score", "score_joint")
    for scorer in scorers:
        set_parameters(repository / scorer, vocabulary_size="1000000")
    doors = repository.with_name("doors")
    for scorer in (*rankers, *scorers):
        if scorer in scorers:
            set_parameters(repository / scorer, deadline_us="60000000")
        (doors / scorer).mkdir(parents=True)
        with (repository / scorer / "1" / "model.py").open("a", encoding="utf-8") as code:
            code.write(DOOR.format(folder=str(doors / scorer)))
    with LocalTriton(repository) as triton:
        yield Served(triton, workspace, joint_workspace, doors)


REQUESTS_AT_ONCE = 8
"""What a shared-context scorer of the tests takes in one run, as rankers there do. As assembled it takes one; that
scores do not depend on batch mates has to hold for whoever lets it take more."""

DOOR = """

import time
from pathlib import Path

DOOR = Path({folder!r})
initialize_without_a_door = TritonPythonModel.initialize


def initialize(self, args):
    initialize_without_a_door(self, args)
    run = self.engine.run

    def run_behind_the_door(tensors, **options):
        while (DOOR / "shut").exists():
            (DOOR / "waiting").touch()
            time.sleep(0.002)
        return run(tensors, **options)

    self.engine.run = run_behind_the_door


TritonPythonModel.initialize = initialize
"""
"""Put behind a scorer's code: while its folder has a file ``shut``, the engine does not begin, and says so."""


def add_ensemble(
    repository: Path, workspace: Workspace, names: Mapping[str, str], *, fp32: bool = False, source: Path | None = None
) -> None:
    """Add a workspace's assembled models under other names, so that one server shows them all.

    Args:
        repository: what the server will load; models that it has already are left alone.
        workspace: whose models to add.
        names: the new name of each model that is not shared with another ensemble.
        fp32: put the FP32 graphs in place of the INT8 ones.
        source: the models; default: the workspace's repository.
    """
    for name, new_name in names.items():
        target = repository / new_name
        if target.exists():
            continue
        shutil.copytree((source or workspace.repository) / name, target)
        config = text_format.Parse((target / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())
        config.name = new_name
        for step in config.ensemble_scheduling.step:
            step.model_name = names.get(step.model_name, step.model_name)
        if "queue" in config.parameters:
            config.parameters["queue"].string_value = names["rank"]
        (target / "config.pbtxt").write_text(text_format.MessageToString(config))
        if name == "ranker" and fp32:
            for path in loaded_files(workspace.onnx):
                shutil.copyfile(path, target / "1" / path.name)


def add_steps(repository: Path, recipe: Recipe, workspace: Workspace, suffix: str) -> None:
    """Add a workspace's ranker with a model for each step: ``tokenize`` and so on, all with a suffix."""
    apart = repository.with_name(f"apart{suffix}")
    write_models(recipe.serve, workspace.int8, apart, available_cores(), in_one=False)
    identity = json.loads((workspace.repository / "ranker" / "1" / "artifact.json").read_text())
    write_golden_cases(identity, [], apart)
    names = {"rank": f"rank{suffix}_steps"} | {name: f"{name}{suffix}" for name in ("tokenize", "score", "select")}
    add_ensemble(repository, workspace, names, source=apart)


def take_at_once(model: Path, requests: int) -> None:
    """Let Triton's batcher put so many requests into one run of a model."""
    path = model / "config.pbtxt"
    config = text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
    config.max_batch_size = requests
    path.write_text(text_format.MessageToString(config))


def set_parameters(model: Path, **values: str) -> None:
    """Change parameters of a model in a repository."""
    config = text_format.Parse((model / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())
    for name, value in values.items():
        assert name in config.parameters, f"{model.name} has no {name}"
        config.parameters[name].string_value = value
    (model / "config.pbtxt").write_text(text_format.MessageToString(config))


@pytest.fixture(scope="session")
def small_workload(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 requests of four candidates, even arrivals."""
    path = tmp_path_factory.mktemp("workload") / "workload.jsonl"
    lines = [
        {
            "number": number,
            "at_seconds": 0.5 * (number + 1),
            "user_id": f"u{number}",
            "query": "desk",
            "history": ["lamp"],
            "items": ["a", "bb", "ccc", "dddd"],
            "item_ids": [f"{number}-{place}" for place in range(4)],
            "labels": None,
        }
        for number in range(300)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


@dataclass(frozen=True)
class Build:
    """A recipe on disk and what was built from it, up to INT8."""

    recipe_path: Path
    recipe: Recipe
    workspace: Workspace

    def copied(self, root: Path) -> "Build":
        """A copy to change, below ``root``."""
        workspace = Workspace.of(self.recipe, root)
        shutil.copytree(self.workspace.root, workspace.root, symlinks=True)
        return Build(self.recipe_path, self.recipe, workspace)


@pytest.fixture(scope="session")
def certain(kept_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """A build whose checkpoint is right by definition: each test user's positive is what it ranks first itself.

    So NDCG@10 of checkpoint and FP32 graph is 1, and whatever a step breaks shows at once. Nothing is trained. Tests
    must not change it.
    """
    root = tmp_path_factory.mktemp("certain")
    checkpoint = kept(kept_root, "checkpoint", lambda folder: save_ranker("bert", folder))
    values = yaml.safe_load((TESTS / "tiny.yaml").read_text())
    values |= {"name": "certain", "model": {"checkpoint": str(checkpoint)}, "gate": {"budget": 0.15}}
    values["examples"] |= {"validation_users": 5, "test_users": 40, "training_examples": 40}
    recipe_path = root / "certain.yaml"
    recipe_path.write_text(yaml.safe_dump(values))
    build = Build(recipe_path, load_recipe(recipe_path), Workspace(root / "artifacts" / "certain"))
    shutil.copytree(kept(kept_root, "certain", partial(_build_certain, build.recipe)), build.workspace.root)
    return build


def _build_certain(recipe: Recipe, folder: Path) -> None:
    workspace = Workspace(folder)
    run_stages(recipe, workspace, until="finetune")
    _label_by_the_checkpoint(recipe, workspace)
    run_stages(recipe, workspace, until="quantize")


def _label_by_the_checkpoint(recipe: Recipe, workspace: Workspace) -> None:
    """Publish the dataset once more, as the same stage would, with the checkpoint's favourites as the positives."""
    folder = workspace.dataset
    dataset, scorer = Dataset.read(folder), open_scorer(workspace.teacher)
    requests = requests_of(dataset, dataset.test, scorer.tokenizer.rules)
    favourites = [scorer.score(request) for request in requests]
    labels = [(scores == scores.max()).astype("int8").tolist() for scores in favourites]

    def relabelled(draft: Draft) -> None:
        for path in folder.glob("*.parquet"):
            shutil.copyfile(path, draft.folder / path.name)
        test = pl.read_parquet(folder / "test.parquet")
        changed = test.with_columns(pl.Series("labels", labels, dtype=test.schema["labels"]))
        changed.write_parquet(draft.folder / "test.parquet")

    publish_instead(recipe, workspace, relabelled)
