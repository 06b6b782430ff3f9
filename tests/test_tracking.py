"""The setting ``tracking``: builds in MLflow's file store or Weights & Biases, and nothing lost when those are down."""

import json
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from made_builds import make_build
from refused_ports import refused_address
from tritonrank.artifacts.builds import RecordedBuild, find_build
from tritonrank.artifacts.promotions import history
from tritonrank.errors import RecipeError
from tritonrank.pipeline.tracking import track, tracked_run
from tritonrank.recipe import load_recipe

mlflow = pytest.importorskip("mlflow")

SECRET = "hunter2"


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RecordedBuild:
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_ALLOW_FILE_STORE", "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "WANDB_MODE"):
        monkeypatch.setenv(name, "set so that it is removed")
        monkeypatch.delenv(name)
    root = tmp_path / "artifacts" / "shop"
    recorded = find_build(root, make_build(root, "bb"))
    (recorded.folder / "report.html").write_text("<html>")
    return recorded


def tracked(build: RecordedBuild) -> list[str]:
    return [line["to"] for line in history(build.root) if line["event"] == "tracked"]


def test_a_build_is_one_run_in_files(build: RecordedBuild, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    track(build, "mlflow")
    track(build, "mlflow")  # once is enough
    client = mlflow.MlflowClient(tracking_uri=(tmp_path / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("shop")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == build.name
    assert run.info.status == "FINISHED"
    assert run.data.params == {"name": "shop", "finetune.epochs": "2"}
    assert run.data.metrics["INT8.ndcg_at_10"] == pytest.approx(0.4)
    assert run.data.metrics["INT8.ndcg_at_10.low"] == pytest.approx(0.3)
    assert run.data.metrics["INT8.megabytes"] == 2
    assert run.data.metrics["success"] == 1
    assert run.data.tags["tritonrank.build"] == build.name
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["report.html"]
    assert "logged to MLflow" in capsys.readouterr().out
    assert tracked(build) == ["mlflow"]


def test_many_settings_and_long_ones_are_logged(build: RecordedBuild, tmp_path: Path) -> None:
    settings = build.manifest.settings
    settings |= {"many": {f"n{number}": number for number in range(250)}, "long": "x" * 10_000}
    settings |= {"data": {"items": f"postgresql://me:{SECRET}@host/db#items"}}
    run = tracked_run(build)
    assert SECRET not in json.dumps(run.parameters)
    uri = (tmp_path / "elsewhere").as_uri()
    track(build, f"mlflow:{uri}")
    (found,) = mlflow.MlflowClient(tracking_uri=uri).search_runs(
        [mlflow.MlflowClient(tracking_uri=uri).get_experiment_by_name("shop").experiment_id]
    )
    assert len(found.data.params) == 254


@pytest.mark.parametrize("kind", ["down", "no store"])
def test_a_server_that_is_down_costs_a_warning_that_names_it(
    kind: str, build: RecordedBuild, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    target = f"http://{refused_address()}" if kind == "down" else (tmp_path / "file" / "below").as_uri()
    track(build, f"mlflow:{target}")
    said = " ".join(capsys.readouterr().out.split())
    assert target in said
    assert build.name in said
    assert tracked(build) == []
    track(build, "mlflow")  # the next build tries again
    assert tracked(build) == ["mlflow"]


def test_what_is_not_installed_is_named_with_its_command(
    build: RecordedBuild, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.delitem(sys.modules, "tritonrank.pipeline.tracking_wandb", raising=False)
    track(build, "wandb")
    assert "pip install wandb" in capsys.readouterr().out
    assert tracked(build) == []


class Run:
    """As much of wandb.Run as its documentation promises and the adapter calls."""

    def __init__(self, told: dict[str, Any]) -> None:
        self.told, self.summary, self.url, self.dir = told, dict[str, Any](), None, "wandb/offline-run"

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        self.told["finished"] = dict(self.summary)

    def log_artifact(self, artifact: Any) -> None:
        self.told["artifact"] = artifact


@pytest.mark.parametrize(
    ("tracking", "project", "entity"), [("wandb", "shop", None), ("wandb:team/web", "web", "team")]
)
def test_weights_and_biases_gets_the_same(
    tracking: str, project: str, entity: str | None, build: RecordedBuild, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: dict[str, Any] = {}

    def init(**given: Any) -> Run:
        told.update(given)
        return Run(told)

    class Artifact:
        def __init__(self, name: str, type: str) -> None:
            self.name, self.files = name, list[str]()

        def add_file(self, path: str) -> None:
            self.files.append(Path(path).name)

    stand_in = types.ModuleType("wandb")
    vars(stand_in).update(init=init, Artifact=Artifact)
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    monkeypatch.delitem(sys.modules, "tritonrank.pipeline.tracking_wandb", raising=False)
    track(build, tracking)
    assert (told["project"], told["entity"], told["name"]) == (project, entity, build.name)
    assert told["config"]["finetune.epochs"] == "2"
    assert told["finished"]["success"] == 1
    assert told["artifact"].files == ["report.html"]
    assert tracked(build) == [tracking]


@pytest.mark.parametrize(
    "tracking",
    ["none", "mlflow", "mlflow:http://host:5000", "wandb", "wandb:team/project", "tensorboard", "tensorboard:logs/all"],
)
def test_the_setting_takes(tracking: str, tmp_path: Path) -> None:
    path = tmp_path / "small.yaml"
    path.write_text("name: small\ndata: {source: sample}\n")
    assert load_recipe(path, [f"tracking={tracking}"]).tracking == tracking


@pytest.mark.parametrize(
    "tracking", ["tensorboards", "tensorboard:", "mlflow:", f"mlflow:http://me:{SECRET}@host", "wandb:a/b/c"]
)
def test_the_setting_refuses(tracking: str, tmp_path: Path) -> None:
    path = tmp_path / "small.yaml"
    path.write_text("name: small\ndata: {source: sample}\n")
    with pytest.raises(RecipeError, match="tracking"):
        load_recipe(path, [f"tracking={tracking}"])


def test_who_logs_nowhere_imports_no_library_for_it() -> None:
    program = "import sys; import tritonrank.pipeline.stages; print('mlflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
