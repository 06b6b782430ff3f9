"""NVIDIA's own parser and builder take every graph: TensorRT-RTX compiles them ahead of time, without a GPU.

What this proves and what not is in docs/tensorrt.md. `make test-engines` runs it; `make test` leaves it out, because it
takes minutes.
"""

import itertools
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import Build
from onnx import numpy_helper
from tensorrt_ladder import PRECISIONS, TensorRTLadder, check_ladder, ladder_of, tiny_ladder
from test_families import spread_logits
from tiny_models import FAMILIES
from tritonrank import cli
from tritonrank.artifacts import read_manifest, verify_artifact
from tritonrank.artifacts.workspace import Target
from tritonrank.errors import ArtifactError
from tritonrank.judge.open_scorer import open_scorer
from tritonrank.pipeline.gpu_targets import assemble_target
from tritonrank.quantize.qdq_rules import check_graph
from tritonrank.recipe import Recipe, load_recipe
from tritonrank.tensorrt.compile import Builder, build_plan, find_builder
from tritonrank.tensorrt.plans import Gpu, check_plan, check_plans, read_identity
from tritonrank.tensorrt.profiles import Range, profiles_of
from tritonrank.train.finetune import untrained_ranker
from tritonrank_runtime.joint import JOINT
from tritonrank_runtime.shared_context import SHARED_CONTEXT

pytestmark = [pytest.mark.engines, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def builder() -> Builder:
    found = find_builder()
    assert found.name == "tensorrt_rtx", "this suite compiles ahead of time"
    return found


@pytest.fixture(scope="module", params=list(itertools.product(FAMILIES, (JOINT, SHARED_CONTEXT))), ids="-".join)
def ladder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TensorRTLadder:
    family, architecture = request.param
    return tiny_ladder(family, architecture, tmp_path_factory.mktemp(f"{family}-{architecture}"))


def plan_of(graph: Path, ladder: TensorRTLadder, builder: Builder, cache: Path) -> bytes:
    inputs = [tensor.name for tensor in onnx.load(graph).graph.input]
    profiles = profiles_of(ladder.recipe, open_scorer(ladder.onnx).tokenizer, inputs)
    return build_plan(graph, profiles, ladder.recipe.tensorrt, builder, cache)


def test_every_family_keeps_the_rules_and_follows_fp32(ladder: TensorRTLadder) -> None:
    check_ladder(ladder)


@pytest.mark.parametrize("precision", ["fp32", "int8-fp16"])  # the latter has FP32 and FP16 parts as well
def test_every_family_compiles(ladder: TensorRTLadder, precision: str, builder: Builder, tmp_path: Path) -> None:
    assert len(plan_of(ladder.graph(precision), ladder, builder, tmp_path)) > 10_000


@pytest.fixture(scope="module", params=[SHARED_CONTEXT, JOINT])
def minilm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TensorRTLadder:
    """The packaged MiniLM-L6 with a fresh head."""
    model = {"architecture": request.param}
    text = {"query_tokens": 8, "history_tokens": 60, "candidate_tokens": 24}
    tensorrt = {"candidate_buckets": [128, 1_000]}
    recipe = Recipe(name="minilm", data={"source": "sample"}, text=text, model=model, tensorrt=tensorrt)
    ranker, _ = untrained_ranker(recipe)
    if request.param == SHARED_CONTEXT:
        spread_logits(ranker)
    return ladder_of(recipe, ranker, tmp_path_factory.mktemp(f"minilm-{request.param}"))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_minilm_compiles(minilm: TensorRTLadder, precision: str, builder: Builder, tmp_path: Path) -> None:
    plan = plan_of(minilm.graph(precision), minilm, builder, tmp_path)
    weights = minilm.graph(precision).stat().st_size
    assert len(plan) > 0.9 * weights, "a plan holds its weights"
    assert len(check_graph(minilm.graph(precision)).int8) == (36 if "int8" in precision else 0)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> TensorRTLadder:
    return tiny_ladder("bert", SHARED_CONTEXT, tmp_path_factory.mktemp("bert"))


def test_what_the_parser_refuses_is_an_error(bert: TensorRTLadder, builder: Builder, tmp_path: Path) -> None:
    model = onnx.load(bert.graph("fp16"))
    next(node for node in model.graph.node if node.op_type == "Softmax").op_type = "Sofmax"
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(ArtifactError, match=r"model\.onnx: tensorrt_rtx 1\..* cannot parse it:\n  /Softmax: "):
        plan_of(tmp_path / "model.onnx", bert, builder, tmp_path)


def test_types_that_do_not_fit_are_refused_by_us_and_by_nvidia(
    bert: TensorRTLadder, builder: Builder, tmp_path: Path
) -> None:
    """Strongly typed means that nothing is cast on the quiet; the checker says so before the builder does."""
    model = onnx.load(bert.graph("fp16"))
    constant = next(node for node in model.graph.node if node.name == "/activation/Add").input[1]
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == constant)
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), constant))
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    assert ("/activation/Add", "types") in {(fault.node, fault.rule) for fault in check_graph(path).faults}
    with pytest.raises(ArtifactError, match=r"cannot (parse|build) it"):
        plan_of(path, bert, builder, tmp_path)


def test_a_profile_that_the_graph_cannot_have_is_refused(
    bert: TensorRTLadder, builder: Builder, tmp_path: Path
) -> None:
    wrong = {"context_ids": Range((1, 1), (1, 8), (1, 8)), "candidate_ids": Range((1, 4, 1), (1, 2, 8), (1, 2, 8))}
    with pytest.raises(ArtifactError, match=r"refuses the optimization profile|cannot build it"):
        build_plan(bert.graph("fp32"), [wrong], bert.recipe.tensorrt, builder, tmp_path)


def test_the_whole_way_from_a_recipe_to_plans(
    certain: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command: graphs are made and judged, plans built, and the second time there is nothing to do."""
    build = certain.copied(tmp_path)
    recipe = tmp_path / "certain.yaml"  # the target says itself what computes
    recipe.write_text(build.recipe_path.read_text().replace("  executor: onnxruntime\n", ""))
    loose = ["precisions=[fp32,fp16,int8,int8-fp16]", "noise=1000", "candidate_buckets=[1000]"]
    arguments = ["compile", str(recipe), "--artifacts", str(tmp_path)]
    arguments += [word for setting in loose for word in ("--set", f"tensorrt.{setting}")]
    monkeypatch.setattr("sys.argv", ["tritonrank", *arguments])

    def run() -> list[str]:
        with pytest.raises(SystemExit) as exited:
            cli.main()
        assert not exited.value.code, capsys.readouterr().err
        return capsys.readouterr().out.splitlines()

    first = run()
    plans = build.workspace.plans
    assert first[-4:] == [str(plans / precision) for precision in PRECISIONS]
    for precision in PRECISIONS:
        manifest, identity = verify_artifact(plans / precision), read_identity(plans / precision)
        assert manifest.metrics["plan"] == vars(identity)
        assert (identity.module, identity.precision) == ("tensorrt_rtx", precision)
        assert identity.version == "1.7.1.116"
        assert identity.compute_capabilities == ["8.0", "8.9"]
        assert identity.profiles[0]["input_ids"]["largest"][0] == 1_000
        assert bool(manifest.metrics["int8_nodes"]) == ("int8" in precision)
        with pytest.raises(ArtifactError, match="TensorRT-RTX engine, which Triton's tensorrt backend does not load"):
            check_plan(plans / precision, "11.4.0", Gpu("A100", "8.0", "1"))
    judged = read_manifest(build.workspace.int8_fp16).metrics
    assert judged["gate against checkpoint"]["passed"]
    written = {path: path.stat().st_mtime_ns for path in plans.rglob("model.plan")}
    assembled = assemble_target(load_recipe(recipe, arguments[5::2]), build.workspace, Target.TENSORRT)
    with pytest.raises(ArtifactError, match="TensorRT-RTX engine"):
        check_plans(assembled)
    second = run()
    stages = 7  # prepare, finetune, export, quantize, fp16, quantize-tensorrt, mix
    assert sum("up to date" in line for line in second) == stages + len(written)
    assert {path: path.stat().st_mtime_ns for path in plans.rglob("model.plan")} == written
