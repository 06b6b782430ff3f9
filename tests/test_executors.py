"""The executors of the Python backend: PyTorch scores as the graphs do, also under the real Triton, and what a machine
lacks is named."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from google.protobuf import text_format
from safetensors.torch import load_file, save_file
from stage_runs import run_verb
from tiny_models import save_ranker
from tritonclient.grpc import model_config_pb2 as pb
from tritonrank.artifacts.workspace import Workspace
from tritonrank.errors import RecipeError, ServerError
from tritonrank.judge.open_scorer import open_scorer
from tritonrank.pipeline.assemble import assemble_settings
from tritonrank.rankers.scorers import EngineScorer, Request, ServerScorer, tensors_of
from tritonrank.recipe import Recipe, ServeSettings, load_recipe
from tritonrank.serve.assemble import HALF_SHARE
from tritonrank.serve.serving import check_golden_cases, golden_requests, golden_tolerance, serving
from tritonrank.serve.sources import python_sources
from tritonrank.serve.triton_config import model_configs
from tritonrank_client import RankClient
from tritonrank_runtime.architecture import EngineOptions
from tritonrank_runtime.candidate_rows import NO_TEXT_SCORE
from tritonrank_runtime.engine import ExecutorError, RowsError
from tritonrank_runtime.engines import engine_of, model_files, open_engine, open_executor
from tritonrank_runtime.sessions import CUDA_PROVIDER, open_session
from tritonrank_runtime.text import RequestTokenizer
from tritonrank_runtime.torch_engine import open_torch_engine
from tritonrank_runtime.torch_passes import CONFIG_FILE, WEIGHTS_FILE, load_network

TOLERANCE = 1e-4
TESTS = Path(__file__).parent


def with_serve(recipe: Recipe, **changes: Any) -> Recipe:
    return recipe.model_copy(update={"serve": recipe.serve.model_copy(update=changes)})


@pytest.fixture(scope="module", params=["shared-context", "joint"])
def built(request: pytest.FixtureRequest) -> Workspace:
    name = "workspace" if request.param == "shared-context" else "joint_workspace"
    found: Workspace = request.getfixturevalue(name)
    return found


def test_torch_scores_as_the_graphs_do(built: Workspace, held_out: list[Request]) -> None:
    tokenizer = RequestTokenizer.from_folder(built.onnx)
    requests = [tensors_of(one, tokenizer) for one in held_out[:8]]
    found = open_torch_engine(built.teacher).run(requests)
    for one, expected in zip(found, open_engine(built.onnx).run(requests), strict=True):
        assert np.abs(one - expected).max() <= TOLERANCE
        assert one.dtype == np.float32


@pytest.mark.parametrize("family", ["distilbert", "roberta"])
def test_torch_takes_the_inputs_of_the_family(family: str, tmp_path: Path) -> None:
    """Those without segment ids among them."""
    folder = save_ranker(family, tmp_path / family)
    found = open_torch_engine(folder)
    assert found.input_names == ["input_ids", "attention_mask"]
    rows = {"input_ids": np.array([[5, 6, 7], [8, 9, 1]]), "attention_mask": np.array([[1, 1, 1], [1, 1, 0]])}
    (logits,) = found.run([{name: tensor.astype(np.int32) for name, tensor in rows.items()}])
    assert logits.shape == (2,)
    assert np.isfinite(logits).all()


@pytest.mark.parametrize(
    ("tensor", "token", "length", "said"),
    [
        ("context_ids", 30_522, 3, r"context_ids: ids from 1 to 30522; the ranker knows 0 to 30521"),
        ("candidate_ids", 30_522, 3, r"candidate_ids: ids from 1 to 30522; the ranker knows -1 to 30521"),
        ("context_ids", 1, 513, r"context_ids: rows of 513 tokens; the ranker has 512 positions"),
        ("candidate_ids", 1, 512, r"candidate_ids: rows of 512 tokens; the ranker has \d+ positions"),
    ],
)
def test_rows_that_no_table_has_a_row_for_never_reach_the_device(
    tensor: str, token: int, length: int, said: str, workspace: Workspace
) -> None:
    """On a GPU the look-up would end CUDA for the process, and with it the scorer."""
    context, candidate = np.ones(3, dtype=np.int32), np.ones((1, 3), dtype=np.int32)
    row = np.ones(length, dtype=np.int32)
    row[-1] = token
    request = {"context_ids": context, "candidate_ids": candidate}
    request[tensor] = row if tensor == "context_ids" else row[np.newaxis]
    with pytest.raises(RowsError, match=said):
        open_torch_engine(workspace.teacher).run([request])


@pytest.mark.parametrize(
    ("family", "longest", "tensor", "value"),
    [("bert", 24, "input_ids", 10_000), ("bert", 24, "token_type_ids", 2), ("roberta", 22, "input_ids", -1)],
)
def test_rows_of_a_joint_ranker_never_reach_it_either(
    family: str, longest: int, tensor: str, value: int, tmp_path: Path
) -> None:
    """RoBERTa has two rows less than its table."""
    found = open_torch_engine(save_ranker(family, tmp_path / family, positions=24))
    request = {name: np.ones((1, 16), dtype=np.int32) for name in found.input_names}
    assert np.isfinite(found.run([request])[0]).all()
    request[tensor][0, -1] = value
    with pytest.raises(RowsError, match=rf"{tensor}: ids from .*{value}.*; the ranker knows 0 to"):
        found.run([request])
    request = {name: np.ones((1, 25), dtype=np.int32) for name in found.input_names}
    with pytest.raises(RowsError, match=rf"rows of 32 tokens; the ranker has {longest} positions"):
        found.run([request])


def test_a_returning_context_is_not_encoded_again(
    workspace: Workspace, held_out: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = open_torch_engine(workspace.teacher, context_cache_bytes=1_000_000)
    request = tensors_of(held_out[0], RequestTokenizer.from_folder(workspace.teacher))
    first, again = found.run([request, request])
    cache = found.context_cache
    assert (cache.hits, cache.misses) == (1, 1)
    assert cache.bytes > 0
    np.testing.assert_array_equal(first, again)


def test_a_checkpoint_in_half_precision_is_read(workspace: Workspace, held_out: list[Request], tmp_path: Path) -> None:
    for path in workspace.teacher.glob("*.json"):
        shutil.copyfile(path, tmp_path / path.name)
    weights = load_file(workspace.teacher / WEIGHTS_FILE)
    save_file({name: tensor.half() for name, tensor in weights.items()}, tmp_path / WEIGHTS_FILE)
    assert {parameter.dtype for parameter in load_network(tmp_path).parameters()} == {torch.float32}
    request = tensors_of(held_out[0], RequestTokenizer.from_folder(tmp_path))
    (found,), (exact,) = (open_torch_engine(folder).run([request]) for folder in (tmp_path, workspace.teacher))
    assert 0 < np.abs(found - exact).max() < 0.05


@pytest.fixture(scope="module")
def torch_repository(workspace: Workspace, tiny_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("torch") / "repository"
    recipe = with_serve(tiny_recipe, executor="torch")
    run_verb("assemble", recipe, workspace, folder)
    return folder


def test_the_folder_is_self_contained(torch_repository: Path, workspace: Workspace) -> None:
    held = {path.name for path in (torch_repository / "ranker" / "1").iterdir()}
    texts = {"tokenizer.json", "text.json", "scores.json", "artifact.json"}
    assert {"model.py", "tritonrank_runtime", CONFIG_FILE, WEIGHTS_FILE} == held - texts
    for source in (torch_repository / "ranker" / "1").rglob("*.py"):
        assert "pickle" not in source.read_text(encoding="utf-8")


def test_torch_is_served_by_the_real_triton(
    torch_repository: Path, workspace: Workspace, held_out: list[Request]
) -> None:
    expected = open_scorer(workspace.onnx)
    with serving(torch_repository) as server, RankClient(server.grpc_url, timeout=30) as client:
        live = ServerScorer(client)
        for request in held_out[:10]:
            assert np.abs(live.score(request) - expected.score(request)).max() <= TOLERANCE
        # Scores of something else must not pass for the artifact's own.
        broken = torch_repository.parent / "broken"
        broken.mkdir()
        golden = json.loads((torch_repository / "golden.json").read_text())
        golden["cases"][0]["scores"][0] += 1e-3
        (broken / "golden.json").write_text(json.dumps(golden))
        with pytest.raises(
            ServerError, match=r"golden request 0 differs by 1\.0e-03 .*: tritonrank assemble RECIPE --force"
        ):
            check_golden_cases(broken, server.grpc_url)


def test_the_sources_of_the_models_are_part_of_the_settings(tiny_recipe: Recipe) -> None:
    sources = assemble_settings(tiny_recipe)["sources"]
    assert set(sources) == set(python_sources())
    for name in ("model.py", "tritonrank_runtime/engine.py", "tritonrank_runtime/torch_engine.py"):
        assert f"ranker/1/{name}" in sources


def test_a_gpu_has_its_own_configs_and_tolerance(workspace: Workspace) -> None:
    settings = ServeSettings(executor="torch", device="cuda")
    ranker = model_configs(settings, ["context_ids", "candidate_ids"], cores=16)["ranker"]
    assert [(one.kind, one.count) for one in ranker.instance_group] == [(pb.ModelInstanceGroup.KIND_GPU, 1)]
    assert ranker.parameters["lanes"].string_value == "1"
    assert ranker.parameters["executor"].string_value == "torch"
    assert text_format.Parse(text_format.MessageToString(ranker), pb.ModelConfig()) == ranker
    assert golden_tolerance(workspace.repository) == 1e-4


def test_golden_scores_may_differ_more_where_fp16_computes(
    tiny_recipe: Recipe, workspace: Workspace, tmp_path: Path
) -> None:
    recipe = with_serve(tiny_recipe, executor="torch", device="cuda")
    run_verb("assemble", recipe, workspace, tmp_path / "repository")
    golden = golden_requests(tmp_path / "repository")
    scores = [score for _, scores in golden for score in scores if score != NO_TEXT_SCORE]
    assert golden_tolerance(tmp_path / "repository") == pytest.approx(max(1e-4, HALF_SHARE * np.std(scores)))


def test_what_is_served_follows_the_executor(tiny_recipe: Recipe, workspace: Workspace) -> None:
    assert workspace.served_model(tiny_recipe) == workspace.int8
    assert workspace.served_model(with_serve(tiny_recipe, executor="torch")) == workspace.teacher
    on_gpu = with_serve(tiny_recipe, device="cuda")
    assert workspace.served_model(on_gpu) == workspace.onnx
    half = on_gpu.model_copy(update={"tensorrt": on_gpu.tensorrt.model_copy(update={"precisions": ["fp16"]})})
    assert workspace.served_model(half) == workspace.fp16


@pytest.mark.parametrize("setting", ["serve.executor=torch", "serve.device=cuda"])
def test_ranks_run_in_onnxruntime_on_the_cpu_alone(setting: str) -> None:
    with pytest.raises(RecipeError, match=r"tensor_parallel is 2, but serve\.executor is .*--target tensorrt-tp"):
        load_recipe(TESTS / "tiny.yaml", ["tensor_parallel=2", setting])


# What a machine lacks


def test_a_missing_provider_is_named(workspace: Workspace) -> None:
    assert CUDA_PROVIDER not in onnxruntime.get_available_providers()
    with pytest.raises(ExecutorError, match=r"has no CUDAExecutionProvider .*pip install onnxruntime-gpu"):
        open_executor("onnxruntime", workspace.onnx, "cuda")


def test_a_provider_that_does_not_start_is_no_silent_cpu(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime falls back to the CPU with a warning in its log; whoever asked for a GPU must hear of it."""
    asked: list[Any] = []

    class Fallen:
        def __init__(self, model: str, options: Any, providers: list[Any]) -> None:
            asked.extend(providers)

        def get_providers(self) -> list[str]:
            return ["CPUExecutionProvider"]

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA_PROVIDER, "CPUExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", Fallen)
    with pytest.raises(ExecutorError, match=r"cannot use the GPU cuda:1: .*did not start"):
        open_executor("onnxruntime", workspace.onnx, "cuda:1")
    assert asked[0] == (CUDA_PROVIDER, {"device_id": "1"})


def test_a_gpu_that_torch_does_not_see_is_named(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ExecutorError, match=r"sees no GPU.*download\.pytorch\.org"):
        open_executor("torch", workspace.teacher, "cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ExecutorError, match=r"cuda:3: PyTorch sees 1 GPU"):
        open_executor("torch", workspace.teacher, "cuda:3")


def test_missing_torch_is_named(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.delitem(sys.modules, "tritonrank_runtime.torch_engine")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ExecutorError, match=r"serve\.executor is torch, but torch is not installed.*pip install torch"):
        open_executor("torch", workspace.teacher)


def test_a_gpu_gets_few_and_large_runs(workspace: Workspace, held_out: list[Request]) -> None:
    tokenizer = RequestTokenizer.from_folder(workspace.onnx)
    request = tensors_of(held_out[0], tokenizer)
    graphs = {path.name: open_session(path) for path in model_files(workspace.onnx)}
    on_gpu = engine_of(graphs, EngineOptions.on_gpu())
    assert [len(feeds) for feeds in on_gpu.graph_feeds([request]).values()] == [1, 1]
    expected = EngineScorer(tokenizer, open_engine(workspace.onnx).run).score(held_out[0])
    assert np.abs(on_gpu.run([request])[0] - expected).max() <= TOLERANCE
