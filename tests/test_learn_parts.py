"""What a night is made of: hours that are looked at again, training in time, decisions, the page, what trackers get."""

import json
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import Result
from made_builds import make_build
from test_recipe import SMALLEST, write
from transformers import get_linear_schedule_with_warmup
from tritonrank import cli
from tritonrank.artifacts.promotions import back, promote
from tritonrank.artifacts.workspace import Workspace
from tritonrank.errors import ServerError
from tritonrank.learn.inspecting import spans_to_inspect
from tritonrank.learn.ledger import Ledger, Night
from tritonrank.learn.lists.windows import Span
from tritonrank.learn.page import write_page
from tritonrank.learn.release import write_decisions
from tritonrank.learn.run import Run
from tritonrank.learn.steps import collect
from tritonrank.learn.tracking import tracked_night
from tritonrank.recipe import FinetuneSettings, LearnSettings, load_recipe
from tritonrank.train.time_limit import SPENT_FILE, TimeLimit
from typer.testing import CliRunner

NOWHERE = "http://127.0.0.1:9"
COMPARED = {
    "name": "newest", "is_segment": False, "users": 40, "lists": 50, "live_ndcg": 0.5, "new_ndcg": 0.55, "drop": -0.1,
    "low": -0.2, "high": 0.01, "certain": -0.2, "excluded": 0.01, "allowed": 0.01, "passed": True, "reason": "gained",
}  # fmt: skip


def inspected(until: float, *, refused: str = "") -> Night:
    return Night("night", 0.0, steps={"inspect": {"until": until, "refused": refused, "seconds": 1.0}})


def test_hours_are_looked_through_once_and_refused_ones_once_more() -> None:
    read = Span(0, 48)
    assert spans_to_inspect([], read) == (Span(0, 0), Span(0, 48))
    sound = inspected(24)
    assert spans_to_inspect([sound], read) == (Span(24, 24), Span(24, 48))
    refused = inspected(36, refused="labels flipped")
    assert spans_to_inspect([sound, refused], read) == (Span(24, 36), Span(36, 48)), "apart from what came since"
    assert spans_to_inspect([sound, refused], Span(0, 36)) == (Span(24, 24), Span(24, 36)), "nothing has come since"
    assert spans_to_inspect([sound, refused, inspected(48)], read)[1].is_empty


def training(folder: Path, step: int = 0) -> tuple[Any, Any, Any]:
    arguments = SimpleNamespace(output_dir=str(folder))
    state = SimpleNamespace(global_step=step, max_steps=100, is_world_process_zero=True)
    control = SimpleNamespace(should_evaluate=False, should_save=False, should_training_stop=False)
    return arguments, state, control


def test_a_training_ends_in_time_with_an_evaluation_and_a_checkpoint(tmp_path: Path) -> None:
    now = [1000.0]
    limit = TimeLimit(60.0, lambda: now[0])
    arguments, state, control = training(tmp_path)
    limit.on_train_begin(arguments, state, control)
    now[0], state.global_step = 1030.0, 10
    limit.on_step_end(arguments, state, control)
    assert not control.should_training_stop
    limit.on_save(arguments, state, control)
    assert json.loads((tmp_path / SPENT_FILE).read_text()) == 30.0

    again = TimeLimit(60.0, lambda: now[0])
    now[0] = 9000.0
    again.on_train_begin(*training(tmp_path, step=10))
    now[0], state.global_step = 9029.0, 15
    again.on_step_end(arguments, state, control)
    assert not control.should_training_stop, "what was cut off has the rest of its time"
    now[0], state.global_step = 9030.0, 16
    again.on_step_end(arguments, state, control)
    assert (control.should_evaluate, control.should_save, control.should_training_stop) == (True, True, True)
    assert again.ended_at == 16

    fresh = TimeLimit(60.0, lambda: now[0])
    fresh.on_train_begin(*training(tmp_path, step=0))
    now[0] += 59
    stays = training(tmp_path, step=1)
    fresh.on_step_end(*stays)
    assert not stays[2].should_training_stop, "a training that begins anew has all of its time"


@pytest.mark.parametrize(("seconds_per_step", "steps_taken"), [(0.5, 100), (1.2, 84), (5.0, 20)])
def test_the_learning_rate_is_down_when_the_time_is_over(
    tmp_path: Path, seconds_per_step: float, steps_taken: int
) -> None:
    now = [0.0]
    limit = TimeLimit(100.0, lambda: now[0])
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = get_linear_schedule_with_warmup(optimizer, 10, 100)
    planned = schedule.lr_lambdas[0]
    arguments, state, control = training(tmp_path)
    limit.on_train_begin(arguments, state, control, lr_scheduler=schedule)
    rates = []
    while not control.should_training_stop and state.global_step < state.max_steps:
        now[0] += seconds_per_step
        optimizer.step()
        schedule.step()
        state.global_step += 1
        rates.append(schedule.get_last_lr()[0])
        limit.on_step_end(arguments, state, control)
    assert len(rates) == steps_taken
    if limit.ended_at is None:
        assert rates == [planned(step) for step in range(1, 101)], "a training that has its time changes nothing"
        return
    assert rates[-1] <= 1.2 * seconds_per_step / 90, "it fell to the end in the time that there was"
    peak = rates.index(max(rates))
    assert max(rates) > 0.4
    assert all(later <= before for before, later in pairwise(rates[peak:])), "and evenly"


def test_an_accepted_ranker_learns_slower_and_without_a_teacher() -> None:
    whole = FinetuneSettings(learning_rate=1e-4, epochs=3, teacher="artifacts/other/teacher")
    settings = LearnSettings(epochs=0.5).training(whole)
    assert (settings.learning_rate, settings.epochs, settings.teacher) == (2.5e-5, 0.5, None)
    lora = LearnSettings(adapter="lora").training(whole)
    assert (lora.adapter, lora.learning_rate) == ("lora", 5e-4 / 4), "matrices that begin at 0 have further to go"
    assert LearnSettings(learning_rate=1e-3).training(whole).learning_rate == 1e-3


def test_a_log_begins_at_the_recipe_s_folder(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    loaded = load_recipe(write(tmp_path, SMALLEST + "learn:\n  log: log\n"))
    assert loaded.learn.log == tmp_path / "log"


def accepted(ledger: Ledger, parent: str, build: str) -> Night:
    night = ledger.begin(parent, "base")
    night = ledger.finish_step(night, "build", 1.0, {"build": build})
    night = ledger.finish_step(night, "release", 1.0, {"by": "promote", "next": "tritonrank back"})
    return ledger.end(night, "accepted", "better")


def test_what_became_of_a_promoted_version_is_written_down(tmp_path: Path) -> None:
    root = tmp_path / "shop"
    make_build(root, "first")
    ledger = Ledger(root)
    night = accepted(ledger, "", make_build(root, "second", data="more"))
    assert write_decisions(ledger, root, NOWHERE) == [], "nobody has promoted it"
    promote(root, night.told("build")["build"])
    write_decisions(ledger, root, NOWHERE)
    assert ledger.night(night.id).decision == "live"
    assert write_decisions(ledger, root, NOWHERE) == [], "it is said once"
    back(root)
    (said,) = write_decisions(ledger, root, NOWHERE)
    assert said.startswith(f"night {night.id}: taken back")
    assert ledger.standing("base") == []


def test_a_controller_that_is_away_holds_no_night_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITONRANK_ADMIN_KEY", "an-admin-key-for-tests")
    ledger = Ledger(tmp_path)
    night = ledger.finish_step(ledger.begin("", "base"), "release", 1.0, {"by": "rollout", "next": ""})
    ledger.end(night, "accepted", "better")
    (said,) = write_decisions(ledger, tmp_path, NOWHERE)
    assert "what became of the last rollout is not known" in said
    assert ledger.night(night.id).decision == ""


def test_a_rollout_without_a_key_shows_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITONRANK_ADMIN_KEY", raising=False)
    ledger = Ledger(tmp_path)
    recipe = load_recipe(write(tmp_path, SMALLEST))
    run = Run(recipe, Workspace(tmp_path), ledger, ledger.begin("", "base"), 0.0, NOWHERE)
    with pytest.raises(ServerError, match="TRITONRANK_ADMIN_KEY is not set"):
        collect(run)


def night_with_figures(ledger: Ledger) -> Night:
    night = ledger.begin("", "base")
    exposure = [
        {"day": "2026-11-27", "top_tenth": 0.3, "gini": 0.5},
        {"day": "2026-11-28", "top_tenth": 0.4, "gini": 0.6},
    ]
    finding = {"check": "bot user", "where": "user 3f2a", "reason": "<b>a bot</b>", "refuses": False, "left_out": 3}
    night = ledger.finish_step(night, "collect", 1.0, {"hours": 8.0, "events": 100, "said": "8 new hours"})
    told = {"left_out": 3, "findings": [finding], "exposure": exposure, "refused": "", "until": 1.0}
    night = ledger.finish_step(night, "inspect", 1.0, told)
    night = ledger.finish_step(night, "judge", 2.0, {"compared": [COMPARED], "said": "<i>newest</i>: gained"})
    return ledger.end(night, "accepted", "newest: gained <script>")


def test_the_page_draws_nights_and_escapes_what_it_is_told(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    night = night_with_figures(ledger)
    page = write_page(ledger, "shop").read_text()
    assert page.count("<svg") == 5, "newest, last night, read, exposure, minutes"
    assert night.id in page
    assert "+10.0%" in page
    for hostile in ("<b>a bot", "<script>", "<i>newest"):
        assert hostile not in page


def test_the_page_of_no_night_says_so(tmp_path: Path) -> None:
    assert "No night yet." in write_page(Ledger(tmp_path), "shop").read_text()


def test_a_tracker_gets_figures_parents_and_the_page(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    night = night_with_figures(ledger)
    write_page(ledger, "small")
    run = tracked_night(ledger, night, load_recipe(write(tmp_path, SMALLEST)))
    assert (run.experiment, run.name) == ("small", f"night-{night.id}")
    assert run.metrics["newest.new_ndcg"] == 0.55
    assert (run.metrics["accepted"], run.metrics["inspect.left_out"], run.metrics["seconds.judge"]) == (1.0, 3.0, 2.0)
    assert run.tags["tritonrank.parent"] == "build"
    assert [path.name for path in run.files] == ["nights.html"]
    assert run.parameters["learn.minutes"] == "30.0"


def learnt(monkeypatch: pytest.MonkeyPatch, folder: Path, night: Night, *more: str) -> Result:
    """The command, with a night that came to this."""
    monkeypatch.setattr("tritonrank.learn.night.run_night", lambda *_, **__: night)
    recipe = write(folder, SMALLEST)
    return CliRunner().invoke(cli.app, ["learn", str(recipe), "--artifacts", str(folder), *more])


@pytest.mark.parametrize(
    ("outcome", "decision", "code"),
    [("accepted", "live", 0), ("accepted", "back", 1), ("nothing", "", 0), ("refused", "", 1), ("failed", "", 2)],
)
def test_the_exit_code_says_how_a_night_ended(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, outcome: Any, decision: Any, code: int
) -> None:
    steps: Any = {"release": {"next": "tritonrank rollout back", "seconds": 1.0}}
    night = Night("20261127T020000Z", 0.0, steps=steps, outcome=outcome, decision=decision, reason="for a reason")
    done = learnt(monkeypatch, tmp_path, night)
    assert done.exit_code == code, done.output
    told = json.loads(done.output.splitlines()[-1])
    assert (told["outcome"], told["decision"], told["reason"]) == (outcome, decision, "for a reason")
    assert "Next: tritonrank " in done.output
    assert "for a reason" in done.output


def test_every_goes_without_what_is_for_one_night(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    done = learnt(monkeypatch, tmp_path, Night("n", 0.0), "--every", "24h", "--once")
    assert done.exit_code == 2
    assert "goes without --once" in done.output
    assert learnt(monkeypatch, tmp_path, Night("n", 0.0), "--every", "soon").exit_code != 0


def test_nights_are_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "small")
    night = night_with_figures(ledger)
    done = learnt(monkeypatch, tmp_path, night, "--show")
    assert done.exit_code == 0, done.output
    assert [one["night"] for one in json.loads(done.output.splitlines()[-1])] == [night.id]
    assert "a bot" in done.output
