"""NVIDIA's own parser and builder take every shard, with its sums over the ranks.

What that proves is in docs/tensorrt.md. How the ranks meet on GPUs is not run here (docs/tensor-parallel.md).
"""

import itertools
import shutil
from pathlib import Path

import onnx
import pytest
from tensorrt_ladder import PRECISIONS, TensorRTLadder, ladder_of
from test_decoder import NO, YES
from test_families import recipe_for, spread_logits
from tiny_decoders import causal_model
from tiny_models import FAMILIES, save_ranker
from transformers import AutoModel
from tritonrank.artifacts import verify_artifact
from tritonrank.artifacts.stage import bring_up_to_date
from tritonrank.artifacts.workspace import Target, Workspace
from tritonrank.errors import ArtifactError
from tritonrank.graphs.batched import export_batched_graph
from tritonrank.graphs.export import export_graphs
from tritonrank.graphs.parallel.shard import write_shards
from tritonrank.judge.open_scorer import open_scorer
from tritonrank.pipeline import compile_ranks
from tritonrank.pipeline.gpu_targets import assemble_target
from tritonrank.rankers.checkpoint_source import folder_of
from tritonrank.rankers.decoder_weights import decoder_from, yes_no_head
from tritonrank.rankers.modeling import SharedContextRanker
from tritonrank.recipe import PACKAGED_MINILM, Recipe
from tritonrank.tensorrt.compile import Builder, build_plan, find_builder
from tritonrank.tensorrt.compile_ranks import one_profile
from tritonrank.tensorrt.plans import check_plans
from tritonrank.tensorrt.profiles import Profile, Range, profiles_of
from tritonrank.train.finetune import untrained_ranker
from tritonrank_runtime.decoder import BRANCHES_FILE, PREFIX_FILE
from tritonrank_runtime.engine import MODEL_FILE
from tritonrank_runtime.joint import JOINT
from tritonrank_runtime.shard_runner import shard_file
from tritonrank_runtime.shared_context import CANDIDATES_FILE, CONTEXT_FILE, SHARED_CONTEXT

pytestmark = [pytest.mark.engines, pytest.mark.timeout(600)]
RANKS = 2
ARCHITECTURES = (JOINT, SHARED_CONTEXT)


@pytest.fixture(scope="module")
def builder() -> Builder:
    found = find_builder()
    assert found.name == "tensorrt_rtx", "this suite compiles ahead of time"
    return found


@pytest.fixture(scope="module", params=ARCHITECTURES)
def minilm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TensorRTLadder:
    """Two layers of the packaged MiniLM with a fresh head: the four others are cut, summed and compiled alike."""
    whole, cut = folder_of(PACKAGED_MINILM), tmp_path_factory.mktemp("two-layers")
    shutil.copytree(whole, cut, dirs_exist_ok=True)
    AutoModel.from_pretrained(whole, num_hidden_layers=2).save_pretrained(cut)
    text = {"query_tokens": 8, "history_tokens": 60, "candidate_tokens": 24}
    model = {"architecture": request.param, "base": str(cut)}
    recipe = Recipe(name="minilm", data={"source": "sample"}, text=text, model=model)
    ranker, _ = untrained_ranker(recipe)
    if isinstance(ranker, SharedContextRanker):
        spread_logits(ranker)
    return ladder_of(recipe, ranker, tmp_path_factory.mktemp(f"minilm-{request.param}"))


@pytest.fixture(scope="module", params=list(itertools.product(FAMILIES, ARCHITECTURES)), ids="-".join)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TensorRTLadder:
    family, architecture = request.param
    root = tmp_path_factory.mktemp(f"{family}-{architecture}")
    recipe = recipe_for(save_ranker(family, root / "hub", head=architecture == JOINT), architecture)
    ranker, _ = untrained_ranker(recipe)
    return ladder_of(recipe, ranker, root)


def profile_for(ladder: TensorRTLadder, graph: Path) -> Profile:
    inputs = [tensor.name for tensor in onnx.load(graph, load_external_data=False).graph.input]
    return one_profile(profiles_of(ladder.recipe, open_scorer(ladder.onnx).tokenizer, inputs))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_shard_of_minilm_compiles(
    minilm: TensorRTLadder, precision: str, builder: Builder, tmp_path: Path
) -> None:
    sizes = write_shards(minilm.folders[precision], tmp_path, RANKS)
    for rank in range(RANKS):
        graph = tmp_path / shard_file(rank, MODEL_FILE)
        plan = build_plan(graph, [profile_for(minilm, graph)], minilm.recipe.tensorrt, builder, tmp_path)
        held = sizes["rank_bytes"][rank] + sizes["replicated_bytes"]
        assert len(plan) > 0.9 * held, "a plan holds its rank's weights"


def test_a_shard_of_every_family_compiles(tiny: TensorRTLadder, builder: Builder, tmp_path: Path) -> None:
    write_shards(tiny.folders["int8-fp16"], tmp_path, RANKS)
    graph = tmp_path / shard_file(1, MODEL_FILE)
    assert len(build_plan(graph, [profile_for(tiny, graph)], tiny.recipe.tensorrt, builder, tmp_path)) > 10_000


def test_the_two_graphs_of_the_cpu_compile_too(builder: Builder, tmp_path: Path) -> None:
    recipe = recipe_for(save_ranker("bert", tmp_path / "hub", head=False), SHARED_CONTEXT)
    ranker, _ = untrained_ranker(recipe)
    ladder = ladder_of(recipe, ranker, tmp_path)
    (tmp_path / "shards").mkdir()
    write_shards(ladder.onnx, tmp_path / "shards", RANKS)
    for name in (CONTEXT_FILE, CANDIDATES_FILE):
        graph = tmp_path / "shards" / shard_file(0, name)
        assert len(build_plan(graph, [any_profile(graph)], recipe.tensorrt, builder, tmp_path)) > 10_000


def test_a_recipe_compiles_to_plans_that_the_target_takes(
    joint_recipe: Recipe, joint_workspace: Workspace, builder: Builder, tmp_path: Path
) -> None:
    workspace = Workspace.of(joint_recipe, tmp_path)
    shutil.copytree(joint_workspace.root, workspace.root)
    tensorrt = joint_recipe.tensorrt.model_copy(update={"precisions": ["fp32"]})
    recipe = joint_recipe.model_copy(update={"tensor_parallel": RANKS, "tensorrt": tensorrt})
    bring_up_to_date(compile_ranks.shards(recipe, workspace, "fp32"))
    stage = compile_ranks.stage(recipe, workspace, "fp32", builder)
    folder = stage.folder
    bring_up_to_date(stage)
    held = verify_artifact(folder)
    assert {"model.plan", "model.plan.rank0", "model.plan.rank1", "plan.json"} <= set(held.files)
    assert held.files["model.plan"] == held.files["model.plan.rank0"] != held.files["model.plan.rank1"]
    created = held.created
    bring_up_to_date(stage)
    assert verify_artifact(folder).created == created, "up to date"
    repository = assemble_target(recipe, workspace, Target.TENSORRT_TP)
    with pytest.raises(ArtifactError, match="TensorRT-RTX engine, which Triton's tensorrt backend does not load"):
        check_plans(repository)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gpt2"])
def test_the_shards_of_decoders_compile(family: str, builder: Builder, tmp_path: Path) -> None:
    """The padded graph that TensorRT serves, and the two of the CPU: grouped queries, rotation, norms, gate."""
    decoder = decoder_from(causal_model(family), family, yes_no_head(causal_model(family), YES, NO))
    folders = {name: tmp_path / name for name in ("checkpoint", "split", "batched", "split-ranks", "batched-ranks")}
    for folder in folders.values():
        folder.mkdir()
    decoder.save_pretrained(folders["checkpoint"])
    export_graphs(folders["checkpoint"], folders["split"])
    export_batched_graph(decoder, folders["batched"])
    recipe = Recipe(name="decoder", data={"source": "sample"})
    for kind, names in (("split", (PREFIX_FILE, BRANCHES_FILE)), ("batched", (MODEL_FILE,))):
        shards = folders[f"{kind}-ranks"]
        write_shards(folders[kind], shards, RANKS)
        for name in names:
            graph = shards / shard_file(1, name)
            plan = build_plan(graph, [any_profile(graph)], recipe.tensorrt, builder, tmp_path)
            assert len(plan) > 10_000


def any_profile(graph: Path) -> Profile:
    profile = {}
    for tensor in onnx.load(graph, load_external_data=False).graph.input:
        sizes = [dim.dim_value for dim in tensor.type.tensor_type.shape.dim]
        least, usual, most = (tuple(size or free for size in sizes) for free in (1, 8, 16))
        profile[tensor.name] = Range(least, usual, most)
    return profile
