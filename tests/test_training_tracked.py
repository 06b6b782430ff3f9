"""A training is logged step by step where the recipe says so, and shown on a page of its own whoever logs it."""

import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from refused_ports import refused_address
from training_runs import EVALUATIONS, STEPS, Run, make_run, weights_of
from transformers.integrations import integration_utils
from tritonrank.artifacts import read_manifest
from tritonrank.report.training_page import write_training_page
from tritonrank.train import tracking

VARIABLES = (
    "MLFLOW_TRACKING_URI",
    "MLFLOW_EXPERIMENT_NAME",
    "MLFLOW_ALLOW_FILE_STORE",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES",
    "MLFLOW_HTTP_REQUEST_TIMEOUT",
    "WANDB_MODE",
)
SHORT = ("finetune.epochs=2", "finetune.evaluations=2")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _clean_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in VARIABLES:
        monkeypatch.setenv(name, "set so that it is removed")
        monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return make_run(tmp_path_factory.mktemp("tracked"), "shared-context")


@pytest.fixture(scope="module")
def plain(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run.again(tmp_path_factory.mktemp("plain"), *SHORT)


def test_mlflow_gets_losses_and_ndcg_by_step(run: Run, plain: Path, tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    uri = (tmp_path / "somewhere").as_uri()
    folder = run.again(tmp_path / "run", *SHORT, f"tracking=mlflow:{uri}")
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("small")
    (logged,) = client.search_runs([experiment.experiment_id])
    assert logged.info.run_name == "small finetune"
    assert logged.info.status == "FINISHED"
    judged = client.get_metric_history(logged.info.run_id, "eval_ndcg")
    expected = read_manifest(folder).metrics["validation_ndcg@10"]
    assert [one.step for one in judged] == [step for step, _ in expected]
    assert [one.value for one in judged] == pytest.approx([value for _, value in expected], abs=1e-5)
    assert client.get_metric_history(logged.info.run_id, "loss")
    assert weights_of(folder) == weights_of(plain)  # who watches changes nothing


def test_a_server_that_is_down_costs_a_warning(
    run: Run, plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    away = f"http://{refused_address()}"
    folder = run.again(tmp_path / "run", *SHORT, f"tracking=mlflow:{away}")
    said = " ".join(capsys.readouterr().out.split())
    assert f"{away} does not take this training" in said
    assert said.count("does not take this training") == 1
    assert weights_of(folder) == weights_of(plain)


@pytest.mark.parametrize(("kind", "command"), [("wandb", "pip install wandb"), ("tensorboard", "pip install tensor")])
def test_what_is_not_installed_is_named_with_its_command(
    kind: str,
    command: str,
    run: Run,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from tritonrank.train import tracking

    find = tracking.importlib.util.find_spec
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: None if name == kind else find(name))
    run.again(tmp_path / "run", "finetune.epochs=0.5", f"tracking={kind}")
    assert command in " ".join(capsys.readouterr().out.split())


def test_tensorboard_gets_event_files_in_the_folder_that_was_named(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: dict[str, list[tuple[str, int]]] = {}

    class SummaryWriter:
        """As much of TensorBoard's as the Trainer's callback calls."""

        def __init__(self, log_dir: str) -> None:
            self.seen = written.setdefault(log_dir, [])

        def add_scalar(self, name: str, value: float, step: int) -> None:
            self.seen.append((name, step))

        def add_text(self, *_: Any) -> None: ...

        def add_hparams(self, *_: Any, **__: Any) -> None: ...

        def flush(self) -> None: ...

        def close(self) -> None: ...

    stand_in = types.ModuleType("torch.utils.tensorboard")
    vars(stand_in)["SummaryWriter"] = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", stand_in)
    monkeypatch.setattr(integration_utils, "is_tensorboard_available", lambda: True)
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: object())
    run.again(tmp_path / "run", *SHORT, "tracking=tensorboard:logs")
    assert set(written) == {"logs/small/finetune"}
    assert ("eval/ndcg", 8) in written["logs/small/finetune"]
    assert {name for name, _ in written["logs/small/finetune"]} >= {"train/loss", "train/learning_rate", "eval/ndcg"}


# The page


def test_the_page_shows_both_curves_and_what_was_asked_for(run: Run) -> None:
    page = (run.folder.parent / "training.html").read_text()
    judged = read_manifest(run.folder).metrics["validation_ndcg@10"]
    best_step, best = max(judged, key=lambda point: point[1])
    assert page.count("<svg") == 2
    assert "validation NDCG@10 over step" in page
    assert f"best at step {best_step} of {STEPS}, {best:.4f}" in page
    assert page.count("<circle") >= EVALUATIONS
    for told in ("finetune.learning_rate", "0.01", "finetune.loss", "listwise", "parameters trained"):
        assert told in page
    assert "http" not in page.replace("http-equiv", "")  # nothing from elsewhere
    assert "<script" not in page


def test_texts_on_the_page_are_escaped_and_no_curve_is_no_page(tmp_path: Path) -> None:
    metrics = {"loss": [(1, 2.0)], "steps": 1}
    page = write_training_page(tmp_path, "<b>shop</b>", "finetune", metrics, {"teacher": "<script>"})
    assert page is not None
    text = page.read_text()
    assert "<b>shop" not in text
    assert "<script" not in text
    assert write_training_page(tmp_path, "shop", "distill", {"trained": False}, {}) is None
    assert not (tmp_path / "training-student.html").exists()
