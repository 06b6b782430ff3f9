"""What many tests share: one tiny build of the whole pipeline, and one real Triton that serves it."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from google.protobuf import text_format
from transformers import BertConfig, BertModel, PreTrainedModel
from tritonclient.grpc import model_config_pb2
from tritonrank.assemble import copy_text_files
from tritonrank.pipeline import Workspace, run_stages
from tritonrank.prepare import Dataset
from tritonrank.pretrained import load_tokenizer
from tritonrank.recipe import PACKAGED_MINILM, Recipe, load_recipe
from tritonrank.scorers import Request, requests_of
from tritonrank.server import LocalTriton
from tritonrank.text import TextRules

TESTS = Path(__file__).parent


def save_encoder(model: PreTrainedModel, folder: Path) -> Path:
    """A base model folder with the packaged MiniLM's tokenizer."""
    model.save_pretrained(folder)
    load_tokenizer(PACKAGED_MINILM).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer BERT."""
    torch.manual_seed(5)
    config = BertConfig(
        vocab_size=30_522, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128
    )
    return save_encoder(BertModel(config), tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def tiny_recipe(tiny_base: Path) -> Recipe:
    return load_recipe(TESTS / "tiny.yaml", [f"model.base={tiny_base}"])


@pytest.fixture(scope="session")
def workspace(tiny_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """artifacts/tiny with every stage built; tests must not change it."""
    workspace = Workspace.of(tiny_recipe, tmp_path_factory.mktemp("artifacts"))
    run_stages(tiny_recipe, workspace)
    return workspace


@pytest.fixture(scope="session")
def held_out(workspace: Workspace) -> list[Request]:
    """The test users' requests."""
    dataset = Dataset.read(workspace.dataset)
    return requests_of(dataset, dataset.test, TextRules.load(workspace.teacher))


@dataclass(frozen=True)
class Served:
    """The one running server: model ``rank`` is the INT8 repository as built, ``rank_fp32`` the FP32 graph."""

    triton: LocalTriton
    workspace: Workspace

    @property
    def urls(self) -> dict[str, str]:
        return {"http": self.triton.http_url, "grpc": self.triton.grpc_url}


@pytest.fixture(scope="session")
def served(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The one real Triton of the test suite."""
    repository = tmp_path_factory.mktemp("served") / "repository"
    shutil.copytree(workspace.repository, repository)
    _add_fp32_twin(repository, workspace)
    with LocalTriton(repository) as triton:
        yield Served(triton, workspace)


def _add_fp32_twin(repository: Path, workspace: Workspace) -> None:
    """rank_fp32: the same ensemble around the FP32 graph, so that one server shows both precisions."""
    for name in ("rank", "score"):
        twin = repository / f"{name}_fp32"
        shutil.copytree(repository / name, twin)
        config = text_format.Parse((twin / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())
        config.name = twin.name
        for step in config.ensemble_scheduling.step:
            step.model_name = step.model_name.replace("score", "score_fp32")
        (twin / "config.pbtxt").write_text(text_format.MessageToString(config))
    shutil.copyfile(workspace.onnx / "model.onnx", repository / "score_fp32" / "1" / "model.onnx")
    copy_text_files(workspace.onnx, repository / "tokenize" / "1")
