"""What computes is chosen by measurement and by the gate, served with what it needs, replaced where it cannot run."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tritonrank.artifacts import read_manifest
from tritonrank.artifacts.stage import Stage, run_stage
from tritonrank.artifacts.workspace import Workspace
from tritonrank.errors import ArtifactError, GateError, RecipeError
from tritonrank.judge.engine_words import ENGINE_FILE, engine_in_words, read_choice
from tritonrank.judge.open_scorer import open_scorer
from tritonrank.pipeline import assemble, engine
from tritonrank.pipeline.stages import stages
from tritonrank.rankers.scorers import Request, tensors_of
from tritonrank.recipe import Recipe, load_recipe
from tritonrank.serve.serving import GOLDEN_FILE, check_golden_cases, serving
from tritonrank_client import RankClient
from tritonrank_runtime.engines import ExecutorError, open_engine, open_executor, open_native_engine
from tritonrank_runtime.native.library import library_name
from tritonrank_runtime.native.weights import NATIVE_FILE
from tritonrank_runtime.text import RequestTokenizer

TESTS = Path(__file__).parent
COPIED = ("dataset", "teacher", "onnx", "int8", "judgements")


def with_serve(recipe: Recipe, **changes: Any) -> Recipe:
    return recipe.model_copy(update={"serve": recipe.serve.model_copy(update=changes)})


def copied(source: Workspace, root: Path) -> Workspace:
    for name in COPIED:
        if (source.root / name).is_dir():
            shutil.copytree(source.root / name, root / name)
    return Workspace(root)


@pytest.fixture(scope="module")
def native_recipe(tiny_recipe: Recipe) -> Recipe:
    return with_serve(tiny_recipe, executor="native")


@pytest.fixture(scope="module")
def native(native_recipe: Recipe, workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The tiny shared-context ranker, assembled around the native engine."""
    made = copied(workspace, tmp_path_factory.mktemp("native") / "tiny")
    run_stage(engine.stage(native_recipe, made))
    run_stage(assemble.stage(native_recipe, made))
    return made


def verbs(recipe: Recipe, root: Path) -> list[str]:
    return [stage.verb for stage in stages(recipe, Workspace(root))]


def test_recipes_choose_by_themselves_unless_they_say_what_computes(tiny_recipe: Recipe, tmp_path: Path) -> None:
    smallest = tmp_path / "small.yaml"
    smallest.write_text("name: small\ndata: {source: sample}\n", encoding="utf-8")
    found = verbs(load_recipe(smallest), tmp_path)
    assert found.index("engine") + 1 == found.index("assemble")
    for setting in ("serve.executor=onnxruntime", "serve.executor=torch", "serve.device=cuda", "tensor_parallel=2"):
        assert "engine" not in verbs(load_recipe(smallest, [setting]), tmp_path)
    with pytest.raises(RecipeError, match=r"serve\.executor is native on serve\.device cuda.*Set executor to auto"):
        load_recipe(smallest, ["serve.executor=native", "serve.device=cuda"])


def test_the_choice_is_written_with_its_figures(native: Workspace) -> None:
    told = read_choice(native.engine)
    assert told["executor"] == "native"
    assert told == read_manifest(native.engine).metrics["engine"]
    rows = {row["name"]: row for row in told["rows"]}
    assert rows[told["chosen"]]["passed"]
    assert all(row["milliseconds"] > 0 and row["roof_share"] > 0 for row in rows.values())
    assert any(told["chosen"] in line for line in engine_in_words(told))
    assert {path.name for path in native.engine.iterdir()} >= {NATIVE_FILE, ENGINE_FILE, "text.json", "tokenizer.json"}


def test_a_damaged_choice_is_named(tmp_path: Path) -> None:
    (tmp_path / ENGINE_FILE).write_text('{"executor": "abacus"}', encoding="utf-8")
    with pytest.raises(ArtifactError, match=rf"{ENGINE_FILE}: damaged.*tritonrank build RECIPE"):
        read_choice(tmp_path)


def test_a_closed_gate_keeps_onnxruntime(tiny_recipe: Recipe, workspace: Workspace, tmp_path: Path) -> None:
    """No executor rounds as another does, so that a budget of nearly nothing lets none of them stand."""
    made = copied(workspace, tmp_path / "tiny")
    strict = tiny_recipe.model_copy(
        update={"gate": tiny_recipe.gate.model_copy(update={"quantize_budget": 1e-9, "budget": 1e-9})}
    )
    with pytest.raises(GateError, match=r"serve\.executor is native:\n.*gate closed(.|\n)*executor to auto"):
        run_stage(engine.stage(with_serve(strict, executor="native"), made))
    assert not made.engine.exists()
    automatic = with_serve(strict, executor="auto")
    run_stage(engine.stage(automatic, made))
    told = read_choice(made.engine)
    assert told["executor"] == "onnxruntime"
    assert told["notes"]
    assert not (made.engine / NATIVE_FILE).exists()
    run_stage(assemble.stage(automatic, made))
    assert "executor" not in (made.repository / "ranker" / "config.pbtxt").read_text(encoding="utf-8")
    assert not (made.repository / "ranker" / "1" / NATIVE_FILE).exists()


def test_the_repository_holds_what_a_server_needs(native: Workspace) -> None:
    scorer = native.repository / "ranker" / "1"
    assert {path.name for path in scorer.iterdir()} >= {NATIVE_FILE, "context.onnx", "candidates.onnx", "weights.bin"}
    assert (scorer / "tritonrank_runtime" / "native" / library_name()).is_file()
    assert f"ranker/1/{NATIVE_FILE}" in read_manifest(native.repository).files
    assert 'string_value: "native"' in (native.repository / "ranker" / "config.pbtxt").read_text(encoding="utf-8")


def test_a_ranker_in_process_gives_the_golden_scores(native: Workspace) -> None:
    golden = json.loads((native.repository / GOLDEN_FILE).read_text(encoding="utf-8"))
    with RankClient(native.repository.as_uri()) as client:
        for case in golden["cases"][:3]:
            found = client.rank(query=case["query"], items=case["items"], history=case["history"])
            scores = np.empty(len(case["items"]), dtype=np.float32)
            scores[list(found.indices)] = found.scores
            assert np.array_equal(scores, np.array(case["scores"], dtype=np.float32))


@pytest.mark.slow
def test_the_real_triton_serves_it(native: Workspace) -> None:
    with serving(native.repository) as server:
        check_golden_cases(native.repository, server.grpc_url)


def test_where_it_does_not_run_onnxruntime_computes(
    native: Workspace, held_out: list[Request], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scorer = tmp_path / "score"
    shutil.copytree(native.repository / "ranker" / "1", scorer)
    (scorer / NATIVE_FILE).write_bytes(b"damaged")
    with caplog.at_level(logging.WARNING, logger="tritonrank"):
        found = open_executor("native", scorer)
    (record,) = caplog.records
    assert NATIVE_FILE in record.getMessage()
    tokenizer = RequestTokenizer.from_folder(native.onnx)
    requests = [tensors_of(request, tokenizer) for request in held_out[:3]]
    assert all(map(np.array_equal, found.run(requests), open_engine(native.int8).run(requests)))
    for name in ("context.onnx", "candidates.onnx"):
        (scorer / name).unlink()
    with pytest.raises(ExecutorError, match=r"native\.safetensors.*tritonrank build RECIPE"):
        open_executor("native", scorer)


def test_a_processor_without_vectors_takes_onnxruntime(
    native: Workspace, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tritonrank_runtime.native.library.kernels_here", lambda name="": "plain")
    with caplog.at_level(logging.WARNING, logger="tritonrank"):
        found = open_executor("native", native.repository / "ranker" / "1")
    assert "AVX2" in caplog.text
    ids = np.arange(5, 14, dtype=np.int32)
    request = {"context_ids": ids, "candidate_ids": ids.reshape(3, 3)}
    assert np.array_equal(found.run([request])[0], open_engine(native.int8).run([request])[0])


def test_golden_scores_hold_for_what_takes_its_place(native: Workspace) -> None:
    golden = json.loads((native.repository / GOLDEN_FILE).read_text(encoding="utf-8"))
    in_place = open_scorer(native.int8)
    for case in golden["cases"]:
        scores = in_place.score(Request(case["query"], case["history"], case["items"]))
        assert np.abs(scores - np.array(case["scores"], dtype=np.float32)).max() <= golden["tolerance"]


@pytest.mark.parametrize("rows", [1, 3, 29])
def test_scores_depend_on_neither_threads_nor_neighbours(native: Workspace, held_out: list[Request], rows: int) -> None:
    tokenizer = RequestTokenizer.from_folder(native.onnx)
    request = tensors_of(held_out[0], tokenizer)
    one, many = open_native_engine(native.engine, threads=1), open_native_engine(native.engine, threads=4)
    (whole,) = many.run([request])
    assert np.array_equal(one.run([request])[0], whole)
    part = request | {"candidate_ids": request["candidate_ids"][:rows]}
    assert np.array_equal(one.run([part])[0], whole[:rows])
    parted = np.concatenate(
        [part["candidate_ids"], np.full_like(request["candidate_ids"][:1], -1), part["candidate_ids"]]
    )
    (both,) = many.run([request | {"candidate_ids": parted}])
    assert np.array_equal(both[:rows], whole[:rows])
    assert np.array_equal(both[rows + 1 :], whole[:rows])
    computed, needed = one.token_counts([request])
    assert computed == needed


@pytest.mark.slow
def test_a_joint_ranker(
    joint_recipe: Recipe, joint_workspace: Workspace, held_out: list[Request], tmp_path: Path
) -> None:
    made, recipe = copied(joint_workspace, tmp_path / "tiny"), with_serve(joint_recipe, executor="native")
    run_stage(engine.stage(recipe, made))
    stage: Stage = assemble.stage(recipe, made)
    run_stage(stage)
    assert stage.why_anew() is None
    tokenizer = RequestTokenizer.from_folder(made.onnx)
    requests = [tensors_of(Request(r.query, r.history, r.items[:7]), tokenizer) for r in held_out[:3]]
    found = open_executor("native", made.repository / "ranker" / "1")
    together = found.run(requests)
    assert all(np.array_equal(found.run([one])[0], score) for one, score in zip(requests, together, strict=True))
    assert found.token_counts(requests)[0] == found.token_counts(requests)[1]
    exact = open_engine(made.onnx).run(requests)
    assert np.abs(np.concatenate(together) - np.concatenate(exact)).max() < 0.2 * np.concatenate(exact).std()
