"""Nights in MLflow's file store: parents, data versions, figures and reasons come back as the ledger has them."""

from pathlib import Path
from typing import Any

import pytest
from refused_ports import refused_address
from test_learn_night import all_steps, going_through, night_of, raises, step, with_build
from test_learn_parts import COMPARED
from tritonrank.artifacts import read_manifest, write_artifact
from tritonrank.artifacts.workspace import Workspace
from tritonrank.errors import GateError
from tritonrank.learn.ledger import Ledger, Night
from tritonrank.learn.lists.windows import Span, Windows
from tritonrank.learn.run import Run
from tritonrank.learn.tracking import UNTRACKED

mlflow = pytest.importorskip("mlflow")

HOUR, DAY = 3_600.0, 86_400.0
SEGMENT = COMPARED | {"name": "lamps: red & new", "is_segment": True, "drop": 0.02, "low": -0.01, "high": 0.05}


@pytest.fixture(autouse=True)
def _environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_ALLOW_FILE_STORE", "MLFLOW_HTTP_REQUEST_MAX_RETRIES"):
        monkeypatch.setenv(name, "set so that it is removed")
        monkeypatch.delenv(name)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return with_build(tmp_path / "artifacts" / "small")


def collect(run: Run) -> dict[str, Any]:
    new, newest = Span(DAY, DAY + 8 * HOUR), Span(DAY + 8 * HOUR, DAY + 12 * HOUR)
    windows = Windows(new, newest, newest, Span(0, DAY), Span(newest.end, newest.end), Span(0, newest.end))
    return step("collect", run, windows=windows.as_json(), events=900, log="5e" * 32)


def examples(run: Run) -> dict[str, Any]:
    with write_artifact(run.home.dataset, "examples", {}, {}) as draft:
        (draft.folder / "train.parquet").write_text(f"lists of {run.night.id}")
    return step("examples", run, training=70)


def judge(run: Run) -> dict[str, Any]:
    return step("judge", run, compared=[COMPARED, SEGMENT], said="newest: gained")


def runs_of(uri: str) -> dict[str, Any]:
    """The runs of the recipe's nights, by name."""
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("small")
    return {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])} if experiment else {}


def learnt(root: Path, tracking: str, minutes: float = 7, **others: Any) -> Night:
    steps = all_steps(collect=collect, examples=examples, judge=judge) | others
    return night_of(root, steps, f"tracking={tracking}", f"learn.minutes={minutes}")


def test_nights_come_back_from_a_store_with_parent_data_figures_and_reason(
    tmp_path: Path, workspace: Workspace
) -> None:
    uri = (tmp_path / "runs").as_uri()
    first = learnt(tmp_path, f"mlflow:{uri}")
    worse = going_through("judge", raises(GateError("worse on frozen lists")))["judge"]
    second = learnt(tmp_path, f"mlflow:{uri}", judge=worse)
    assert (first.outcome, second.outcome) == ("accepted", "refused")
    found = runs_of(uri)
    assert found.keys() == {f"night-{first.id}", f"night-{second.id}"}
    accepted, refused = found[f"night-{first.id}"].data, found[f"night-{second.id}"].data
    dataset = read_manifest(Ledger(workspace.root).workspace_of(first).dataset).artifact
    expected = {
        "tritonrank.night": first.id,
        "tritonrank.parent": "build",
        "tritonrank.outcome": "accepted",
        "tritonrank.log": "5e" * 6,
        "tritonrank.log_read": "1970-01-01T00:00Z/1970-01-02T12:00Z",
        "tritonrank.learnt": "1970-01-02T00:00Z/1970-01-02T08:00Z",
        "tritonrank.judged": "1970-01-02T08:00Z/1970-01-02T12:00Z",
        "tritonrank.dataset": dataset[:12],
        "mlflow.note.content": "accepted: newest: gained",
    }
    assert expected.items() <= accepted.tags.items()
    assert refused.tags["tritonrank.parent"] == first.id
    assert refused.tags["tritonrank.dataset"] != accepted.tags["tritonrank.dataset"], "other data, another version"
    assert refused.tags["mlflow.note.content"] == "refused: judge: worse on frozen lists"
    assert (accepted.metrics["accepted"], refused.metrics["accepted"]) == (1.0, 0.0)
    assert accepted.metrics["newest.new_ndcg"] == COMPARED["new_ndcg"]
    segment = {name: accepted.metrics[f"lamps_red_new.{name}"] for name in ("drop", "low", "high")}
    assert segment == {"drop": 0.02, "low": -0.01, "high": 0.05}
    assert not any(name.startswith(("newest.", "lamps")) for name in refused.metrics), "it was not judged"
    assert (accepted.metrics["collect.events"], accepted.metrics["examples.training"]) == (900.0, 70.0)
    assert accepted.metrics["seconds.build"] >= 0
    assert accepted.params["learn.minutes"] == "7.0"
    client = mlflow.MlflowClient(tracking_uri=uri)
    (page,) = client.list_artifacts(found[f"night-{second.id}"].info.run_id)
    drawn = Path(client.download_artifacts(found[f"night-{second.id}"].info.run_id, page.path)).read_text()
    assert "<svg" in drawn
    assert second.id in drawn


def test_a_tracker_that_is_away_holds_no_night_up_and_gets_its_run_later(
    tmp_path: Path, workspace: Workspace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    away = f"http://{refused_address()}"
    first, second = learnt(tmp_path, f"mlflow:{away}"), learnt(tmp_path, f"mlflow:{away}")
    assert (first.outcome, second.outcome, second.parent) == ("accepted", "accepted", first.id)
    said = " ".join(capsys.readouterr().out.split())
    assert said.count(f"tracking: {away} did not take night {first.id}") == 2
    assert said.count("The next tritonrank learn tries again") == 2, "the second one waits behind the first"
    waiting = Ledger(workspace.root).folder / UNTRACKED
    assert [path.stem for path in sorted(waiting.iterdir())] == [first.id, second.id]

    third = learnt(tmp_path, "mlflow", minutes=9)
    found = runs_of((tmp_path / "mlruns").as_uri())
    assert found.keys() == {f"night-{one.id}" for one in (first, second, third)}
    minutes = [found[f"night-{one.id}"].data.params["learn.minutes"] for one in (first, second, third)]
    assert minutes == ["7.0", "7.0", "9.0"], "each with the settings that it had"
    assert list(waiting.iterdir()) == []


def test_a_night_that_could_not_go_on_is_tracked_as_failed(tmp_path: Path, workspace: Workspace) -> None:
    ledger = Ledger(workspace.root)
    cut_off = ledger.begin("", "of another build")
    learnt(tmp_path, "mlflow")
    found = runs_of((tmp_path / "mlruns").as_uri())
    assert found[f"night-{cut_off.id}"].data.tags["tritonrank.outcome"] == "failed"


def test_without_the_setting_nothing_is_kept_for_anybody(tmp_path: Path, workspace: Workspace) -> None:
    night_of(tmp_path, all_steps())
    assert not (Ledger(workspace.root).folder / UNTRACKED).exists()
    assert not (tmp_path / "mlruns").exists()
