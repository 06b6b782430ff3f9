"""Shapes, identities and refusals of plans; the builds themselves are in test_engines.py."""

import dataclasses
import json
import shutil
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from planted_plans import A100, VERSION, identify
from tritonrank.artifacts import read_manifest
from tritonrank.artifacts.workspace import Workspace
from tritonrank.errors import ArtifactError, RecipeError
from tritonrank.judge.open_scorer import open_scorer
from tritonrank.pipeline.gpu_targets import compile_recipe
from tritonrank.pipeline.stages import run_stages
from tritonrank.quantize.calibrate import METHODS
from tritonrank.quantize.qdq_rules import check_graph
from tritonrank.recipe import Recipe, load_recipe
from tritonrank.serve.serving import serving
from tritonrank.tensorrt import compile as compiling
from tritonrank.tensorrt import plans as plans_module
from tritonrank.tensorrt.compile import find_builder, layer_types, targets
from tritonrank.tensorrt.plans import (
    IDENTITY_FILE,
    PLAN_FILE,
    Gpu,
    check_plan,
    check_plans,
    find_gpu,
)
from tritonrank.tensorrt.profiles import buckets_of, profiles_from, profiles_of
from tritonrank_runtime.engines import model_files
from tritonrank_runtime.padding import Buckets
from tritonrank_runtime.text import RequestTokenizer


def with_tensorrt(recipe: Recipe, **settings: Any) -> Recipe:
    return recipe.model_copy(update={"tensorrt": recipe.tensorrt.model_copy(update=settings)})


# Profiles


@pytest.fixture
def tokenizer(workspace: Workspace) -> RequestTokenizer:
    return open_scorer(workspace.onnx).tokenizer


def test_profiles_of_a_shared_context_ranker(tiny_recipe: Recipe, tokenizer: RequestTokenizer) -> None:
    recipe = with_tensorrt(tiny_recipe, candidate_buckets=[16, 300, 1_000], token_buckets=[8], requests=4)
    profiles = profiles_of(recipe, tokenizer, ["context_ids", "candidate_ids"])
    context, tokens = tokenizer.longest_rows["context_ids"], tokenizer.longest_rows["candidate_ids"]
    pairs = [(one["context_ids"], one["candidate_ids"]) for one in profiles]
    found = [(contexts.largest, candidates.smallest, candidates.largest) for contexts, candidates in pairs]
    assert found == [
        ((4, context), (1, 1, 1), (4, 16, 8)),
        ((4, context), (1, 1, 9), (4, 16, tokens)),
        ((4, context), (1, 17, 1), (4, 300, 8)),
        ((4, context), (1, 17, 9), (4, 300, tokens)),
        ((4, context), (1, 301, 1), (4, 1_000, 8)),  # Triton would put four of these together, too
        ((4, context), (1, 301, 9), (4, 1_000, tokens)),
    ]
    assert buckets_of(profiles) == Buckets((16, 300, 1_000), (8, tokens))
    described = [{name: dataclasses.asdict(one) for name, one in profile.items()} for profile in profiles]
    assert profiles_from(json.loads(json.dumps(described))) == profiles
    for profile in profiles:
        for one in profile.values():
            assert all(a <= b <= c for a, b, c in zip(one.smallest, one.best, one.largest, strict=True))


def test_profiles_of_a_joint_ranker(joint_workspace: Workspace, joint_recipe: Recipe) -> None:
    tokenizer = open_scorer(joint_workspace.onnx).tokenizer
    recipe = with_tensorrt(joint_recipe, candidate_buckets=[64, 1_000], token_buckets=[32])
    names = ["input_ids", "attention_mask", "token_type_ids"]
    profiles = profiles_of(recipe, tokenizer, names)
    assert [list(profile) for profile in profiles] == [names] * 4
    longest = -(-tokenizer.longest_rows["input_ids"] // 8) * 8
    assert [profile["input_ids"].largest for profile in profiles] == [
        (64, 32),
        (64, longest),
        (1_000, 32),
        (1_000, longest),
    ]
    assert buckets_of(profiles) == Buckets((64, 1_000), (32, longest))


def test_a_token_bucket_that_no_row_fills_is_an_error(tiny_recipe: Recipe, tokenizer: RequestTokenizer) -> None:
    with pytest.raises(RecipeError, match=r"tensorrt\.token_buckets: 500 is more than the \d+ tokens"):
        profiles_of(with_tensorrt(tiny_recipe, token_buckets=[500]), tokenizer, [])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            "tensorrt: {candidate_buckets: [16, 500]}",
            r"candidate_buckets.*serve\.max_candidates",
        ),
        ("tensorrt: {candidate_buckets: [1000, 16]}", "candidate_buckets"),
        ("tensorrt: {token_buckets: [0]}", "token_buckets"),
        ("tensorrt: {precisions: [fp8]}", r"tensorrt\.precisions"),
    ],
)
def test_faults_of_the_section_are_named(settings: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"name: faulty\ndata: {{source: sample}}\n{settings}\n")
    with pytest.raises(RecipeError, match=message):
        load_recipe(path)


# Finding TensorRT


def only(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    """Only these modules can be imported, in these versions."""

    def load(name: str) -> types.ModuleType:
        if name not in versions:
            raise ImportError(name)
        module = types.ModuleType(name)
        module.__dict__["__version__"] = versions[name]
        return module

    monkeypatch.setattr(compiling.importlib, "import_module", load)


def test_tensorrt_comes_before_tensorrt_rtx(monkeypatch: pytest.MonkeyPatch, tiny_recipe: Recipe) -> None:
    monkeypatch.setattr(compiling, "find_gpu", lambda: A100)
    only(monkeypatch, tensorrt="10.13.0", tensorrt_rtx="1.7")
    builder = find_builder()
    assert (builder.name, builder.version) == ("tensorrt", "10.13.0")
    assert targets(builder) == ["8.0"]
    only(monkeypatch, tensorrt_rtx="1.7")
    assert targets(find_builder()) == ["8.0", "8.9"]


@pytest.mark.parametrize(
    ("versions", "gpu", "message"),
    [
        (
            {},
            A100,
            r"pip install 'tritonrank\[tensorrt\]'.*docker build --target builder .*docker run .*tritonrank-builder",
        ),
        ({"tensorrt": "10.5.0"}, A100, r"10\.5\.0.*10\.13"),
        ({"tensorrt": "11.4.0"}, None, "nvidia-smi.*docker run"),
    ],
)
def test_what_is_missing_is_said_with_the_command_that_helps(
    versions: dict[str, str], gpu: Gpu | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    only(monkeypatch, **versions)
    monkeypatch.setattr(compiling, "find_gpu", lambda: gpu)
    with pytest.raises(ArtifactError, match=message):
        find_builder()


def test_nothing_to_compile_is_an_error(tiny_recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"tensorrt\.precisions.*--set 'tensorrt\.precisions=\[fp16\]'"):
        compile_recipe(tiny_recipe, Workspace(tmp_path))


def test_nvidia_smi_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA H200, 9.0, 580.65.06'\necho 'NVIDIA H200, 9.0, 580.65.06'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_gpu() == Gpu("NVIDIA H200", "9.0", "580.65.06")
    tool.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'\nexit 9\n")
    assert find_gpu() is None
    monkeypatch.setenv("PATH", "")
    assert find_gpu() is None


def test_layers_are_counted_by_what_they_read() -> None:
    def layer(kind: str) -> dict[str, Any]:
        return {"Name": "x", "Inputs": [{"Name": "i", "Format/Datatype": kind}], "Outputs": []}

    engine = {
        "Layers": [layer("Int8"), layer("Half"), layer("Row major linear FP16"), layer("Int8"), "name", {"Inputs": []}]
    }
    assert layer_types(engine) == {"Int8": 2, "Half": 1, "Fp16": 1}


class Config:
    """What the timing cache needs of a builder's config; timings are numbers of builds."""

    def __init__(self) -> None:
        self.cache = b""

    def create_timing_cache(self, kept: bytes) -> bytes:
        return kept

    def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
        self.cache = cache
        return cache != b"damaged"

    def get_timing_cache(self) -> Any:
        return types.SimpleNamespace(serialize=lambda: self.cache + b"+")


def test_timings_of_kernels_are_kept_for_the_next_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "find_gpu", lambda: A100)
    only(monkeypatch, tensorrt=VERSION)
    for expected in (b"+", b"++"):
        with compiling.timing_cache(Config(), find_builder(), tmp_path):
            pass
        (path,) = tmp_path.iterdir()
        assert path.name == f"timing-{VERSION}-NVIDIA-A100-SXM4-80GB.cache"
        assert path.read_bytes() == expected
    path.write_bytes(b"damaged")
    with compiling.timing_cache(Config(), find_builder(), tmp_path):
        pass
    assert path.read_bytes() == b"+"
    only(monkeypatch, tensorrt_rtx="1.7")
    with compiling.timing_cache(Config(), find_builder(), tmp_path / "absent"):
        pass  # it has no timings


# Where a plan may run


def make_plan(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / PLAN_FILE).write_bytes(b"a plan")
    identify(folder, **changes)
    return folder


@pytest.mark.parametrize(
    ("changes", "version", "gpu"),
    [
        ({}, VERSION, A100),
        ({}, "11.4.0", A100),  # the library does not tell the build number
        ({"version_compatible": True}, "11.5.0", A100),
        ({"version_compatible": True, "version": "10.16.1"}, "11.5.0", A100),
        ({"hardware_compatibility": "ampere-plus"}, VERSION, Gpu("NVIDIA L4", "8.9", "1")),
        ({"hardware_compatibility": "same-compute-capability"}, VERSION, Gpu("NVIDIA A30", "8.0", "1")),
    ],
)
def test_a_plan_that_fits_is_accepted(changes: dict[str, Any], version: str, gpu: Gpu, tmp_path: Path) -> None:
    check_plan(make_plan(tmp_path, **changes), version, gpu)


@pytest.mark.parametrize(
    ("changes", "version", "gpu", "message"),
    [
        ({}, "11.5.0", A100, r"11\.4\.0\.106.*11\.5\.0"),
        ({"version_compatible": True}, "11.1.0", A100, r"11\.1\.0"),
        ({"version_compatible": True, "version": "8.6.1"}, "11.1.0", A100, r"11\.1\.0"),
        ({}, None, A100, "no TensorRT"),
        ({}, VERSION, None, "no GPU"),
        ({}, VERSION, Gpu("NVIDIA L4", "8.9", "1"), r"NVIDIA A100.*NVIDIA L4 \(8\.9\)"),
        ({}, VERSION, Gpu("NVIDIA A30", "8.0", "1"), "NVIDIA A30"),
        ({"hardware_compatibility": "ampere-plus"}, VERSION, Gpu("Tesla T4", "7.5", "1"), "Tesla T4"),
        ({"module": "tensorrt_rtx"}, VERSION, A100, "TensorRT-RTX engine"),
        ({"sha256": "0"}, VERSION, A100, "truncated or changed"),
    ],
)
def test_a_foreign_plan_is_refused_with_the_command_that_rebuilds_it(
    changes: dict[str, Any], version: str | None, gpu: Gpu | None, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ArtifactError, match=message) as raised:
        check_plan(make_plan(tmp_path, **changes), version, gpu)
    assert "tritonrank compile RECIPE" in str(raised.value)
    assert str(tmp_path / PLAN_FILE) in str(raised.value)


def truncate(folder: Path) -> None:
    (folder / PLAN_FILE).write_bytes(b"a pl")


def lose_the_plan_of(folder: Path) -> None:
    (folder / PLAN_FILE).unlink()


def lose_identity(folder: Path) -> None:
    (folder / IDENTITY_FILE).unlink()


def damage_identity(folder: Path) -> None:
    (folder / IDENTITY_FILE).write_text('{"module": "tensorrt"}')


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "truncated or changed"),
        (lose_the_plan_of, "truncated or changed"),
        (lose_identity, r"plan\.json"),
        (damage_identity, "cannot be read"),
    ],
)
def test_a_damaged_plan_is_refused(damage: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    make_plan(tmp_path)
    damage(tmp_path)
    with pytest.raises(ArtifactError, match=message):
        check_plan(tmp_path, VERSION, A100)


def test_every_plan_of_a_repository_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_plans(tmp_path)
    make_plan(tmp_path / "score" / "1")
    make_plan(tmp_path / "other" / "1", version="10.13.0")
    monkeypatch.setattr(plans_module, "runtime_version", lambda: VERSION)
    monkeypatch.setattr(plans_module, "find_gpu", lambda: A100)
    with pytest.raises(ArtifactError, match=r"other/1/model\.plan"):
        check_plans(tmp_path)
    shutil.rmtree(tmp_path / "other")
    check_plans(tmp_path)


def test_serve_refuses_a_foreign_plan_before_triton_starts(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "repository"
    shutil.copytree(workspace.repository, repository)
    make_plan(repository / "score" / "1", version="10.13.0")
    monkeypatch.setattr("tritonrank.serve.serving.verify_artifact", lambda _: None)
    monkeypatch.setattr("tritonrank.serve.serving.check_contents", lambda *_: None)
    monkeypatch.setattr("tritonrank.serve.serving.LocalTriton", lambda *_, **__: pytest.fail("Triton was started"))
    with pytest.raises(ArtifactError, match=r"model\.plan"), serving(repository):
        pass


# The stages that make the graphs


def test_the_stages_make_and_judge_what_the_recipe_asks_for(
    workspace: Workspace, tiny_recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copied = Workspace.of(tiny_recipe, tmp_path)
    shutil.copytree(workspace.root, copied.root)
    recipe = with_tensorrt(tiny_recipe, precisions=["fp16", "int8-fp16"], noise=1_000.0)
    run_stages(recipe, copied, until="mix")
    for folder, int8 in (
        (copied.onnx_batched, 0),
        (copied.fp16, 0),
        (copied.int8_tensorrt, 12),
        (copied.int8_fp16, 12),
    ):
        manifest = read_manifest(folder)
        assert [path.name for path in model_files(folder)] == ["model.onnx"]
        assert len(check_graph(folder / "model.onnx").int8) == int8
        if folder != copied.onnx_batched:
            assert manifest.metrics["gate against fine-tuned"]["passed"]
            assert manifest.metrics["gate against ONNX FP32"]["passed"]
            assert len(manifest.metrics["int8_nodes"]) == int8
    metrics = read_manifest(copied.int8_tensorrt).metrics
    assert set(metrics["noise_by_calibration"]) == set(METHODS)
    assert all(sum(one["counts"]) > 0 for one in metrics["activations"].values())
    assert set(read_manifest(copied.fp16).metrics["noise_by_kind"]) >= {"layer norm", "softmax", "linear", "attention"}
    capsys.readouterr()
    run_stages(recipe, copied, until="mix")
    lines = capsys.readouterr().out.splitlines()
    assert sum("up to date" in line for line in lines) == 8


def test_without_precisions_nothing_is_made(workspace: Workspace, tiny_recipe: Recipe) -> None:
    assert not any(path.exists() for path in (workspace.onnx_batched, workspace.fp16, workspace.int8_tensorrt))
    with pytest.raises(RecipeError, match="no stage mix"):
        run_stages(tiny_recipe, workspace, until="mix")
