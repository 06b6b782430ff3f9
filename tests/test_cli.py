"""The command line: helpful, quick to start, and one clear message when something is wrong."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TESTS
from tritonrank import cli
from tritonrank.cli.panels import IN_ORDER, Panel
from tritonrank.errors import ArtifactError, DataError, GateError, RecipeError, ServerError
from tritonrank.pipeline import stages as pipeline
from tritonrank.recipe import Recipe, setting_rows
from typer.models import CommandInfo, TyperInfo
from typer.testing import CliRunner

COMMANDS = ["build", "prepare", "finetune", "prune", "distill", "export", "quantize", "shard", "assemble", "evaluate"]
COMMANDS += [
    "retriever",
    "catalogue",
    "blend",
    "judge-recommend",
    "estimate-clicks",
    "compile",
    "check-graph",
    "pack",
    "gpu-check",
    "serve",
    "watch",
    "demo",
    "rank",
    "import-events",
    "workload",
    "report",
    "settings",
    "check",
    "init",
    "recipes",
    "up",
    "calibrate",
    "convert-weights",
    "builds",
    "promote",
    "back",
    "prune-builds",
    "push",
    "pull",
    "store",
    "rollout",
    "learn",
    "sweep-log",
    "replay-events",
    "dump-store",
    "fleet",
    "search",
]
RECIPE_COMMANDS = [
    "build",
    "search",
    "prepare",
    "finetune",
    "prune",
    "distill",
    "export",
    "quantize",
    "shard",
    "compile",
]
RECIPE_COMMANDS += [
    "learn",
    "search",
    "assemble",
    "evaluate",
    "demo",
    "retriever",
    "catalogue",
    "blend",
    "judge-recommend",
    "estimate-clicks",
]


def main(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """The exit code of ``tritonrank`` with these arguments, in this process."""
    monkeypatch.setattr("sys.argv", ["tritonrank", *map(str, arguments)])
    with pytest.raises(SystemExit) as raised:
        cli.main()
    return int(raised.value.code or 0)


def registered() -> dict[str, CommandInfo | TyperInfo]:
    """Commands, and groups of commands, by name."""
    commands = {command.name or command.callback.__name__: command for command in cli.app.registered_commands}
    return commands | {str(group.name): group for group in cli.app.registered_groups}


def help_of(*command: str) -> str:
    result = CliRunner().invoke(cli.app, [*command, "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
    assert result.exit_code == 0, result.output
    return result.output


def test_the_first_page_lists_every_command_and_where_to_start() -> None:
    page = help_of()
    for command in COMMANDS:
        assert f" {command} " in page
    assert set(registered()) == set(COMMANDS)
    assert "tritonrank build build/recipes/demo.yaml" in page


def test_panels_and_commands_stand_in_the_order_of_use() -> None:
    known = registered()
    placed = {name: panel for panel, names in IN_ORDER.items() for name in names}
    assert {name: command.rich_help_panel for name, command in known.items()} == {name: placed[name] for name in known}
    page = help_of()
    panels = [panel for panel in Panel if any(placed[name] is panel for name in known)]
    headings = [page.index(f"─ {panel} ─") for panel in panels]
    assert headings == sorted(headings)
    rows = [page.index(f"│ {name} ") for name in placed if name in known]
    assert rows == sorted(rows)


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("tritonrank bui", ["build", "builds"]),
        ("tritonrank build movielens-j", ["movielens-joint-small", "movielens-joint"]),
        ("tritonrank build {recipes}/d", ["{recipes}/demo.yaml"]),
        ("tritonrank build {recipes}/nothing", []),
        ("tritonrank build demo --set quantize.me", ["quantize.method="]),
        ("tritonrank build demo --set quantize.method=", []),
    ],
)
def test_tab_offers_commands_recipes_and_settings(
    typed: str, offered: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipes = str(TESTS.parent / "build" / "recipes")
    words = typed.format(recipes=recipes)
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    result = CliRunner().invoke(cli.app, prog_name="tritonrank", env={"_TRITONRANK_COMPLETE": "complete_bash"})
    assert result.output.split() == [one.format(recipes=recipes) for one in offered]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    page = help_of(command)
    first_page = help_of()
    (summary,) = [line for line in first_page.splitlines() if line.split()[1:2] == [command]]
    assert len(summary.split()) > 5
    if command in RECIPE_COMMANDS:
        assert "RECIPE" in page
        for option in ("--set", "KEY=VALUE", "--artifacts"):
            assert option in page
    for line in page.splitlines():
        if "--" in line and "│" in line:
            assert len(line.replace("│", " ").split()) > 3, f"{command}: an option without a word of help: {line}"


def test_without_a_command_the_first_page_is_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(monkeypatch) == 2
    captured = capsys.readouterr()
    assert "build/recipes/demo.yaml" in captured.out + captured.err


def test_a_real_process_reports_a_missing_recipe(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tritonrank", "build", str(tmp_path / "absent.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"RecipeError: {tmp_path / 'absent.yaml'}: no such recipe")
    assert "movielens-small" in done.stderr
    assert "tritonrank recipes" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", RECIPE_COMMANDS)
def test_all_faults_of_a_recipe_are_in_one_message(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "faulty.yaml"
    recipe.write_text("name: Faulty Name\ndata: {source: sample}\nfinetune:\n  epoch: 2\n  learning_rate: 7\n")
    assert main(monkeypatch, command, recipe, "--artifacts", tmp_path / "artifacts") == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert lines[0] == f"RecipeError: {recipe} has 3 fault(s):"
    for number, key in ((1, "name"), (4, "finetune.epoch"), (5, "finetune.learning_rate")):
        assert any(line.startswith(f"  {recipe}:{number}: {key}: ") for line in lines), key
    assert "did you mean epochs?" in captured.err
    assert "Traceback" not in captured.err
    assert [path.name for path in tmp_path.iterdir()] == ["faulty.yaml"]


@pytest.mark.parametrize("override", ["finetune.epochs", "finetune.epochs=many", "finetune.epoch=2", "=3"])
def test_a_wrong_override_is_named(
    override: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = ["prepare", TESTS / "tiny.yaml", "--artifacts", tmp_path, "--set", override]
    assert main(monkeypatch, *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("RecipeError: ")
    assert override.partition("=")[0] in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "code"), [(RecipeError, 2), (DataError, 2), (ArtifactError, 2), (ServerError, 2), (GateError, 1)]
)
def test_our_errors_are_one_message_and_an_exit_code(
    error: type[Exception],
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    message = f"{tmp_path}/[items].csv:100: " + "long " * 60 + "[bold]end[/]"

    def fail(*_: object, **__: object) -> None:
        raise error(message)

    monkeypatch.setattr("tritonrank.pipeline.stages.run_stages", fail)
    assert main(monkeypatch, "prepare", TESTS / "tiny.yaml") == code
    # Word for word: brackets are no markup, :100: is no emoji, and a path is not broken in two at column 80.
    assert capsys.readouterr().err == f"{error.__name__}: {message}\n"


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("tritonrank.pipeline.stages.run_stages", fail)
    monkeypatch.setattr("sys.argv", ["tritonrank", "prepare", str(TESTS / "tiny.yaml")])
    with pytest.raises(ZeroDivisionError):
        cli.main()


def test_stage_commands_stop_after_their_stage_and_pass_force_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls: list[tuple[str, float, Path, str | None, str | None]] = []

    def record(
        recipe: Recipe,
        workspace: pipeline.Workspace,
        until: str | None = None,
        *,
        force: str | None = None,
        data: object = None,
    ) -> None:
        calls.append((recipe.name, recipe.finetune.epochs, workspace.root, until, force))

    monkeypatch.setattr("tritonrank.pipeline.stages.run_stages", record)
    arguments = [TESTS / "tiny.yaml", "--set", "finetune.epochs=0.5", "--artifacts", tmp_path]
    for verb in ("prepare", "export", "quantize", "assemble"):
        assert main(monkeypatch, verb, *arguments) == 0
        assert main(monkeypatch, verb, *arguments, "--force") == 0
        assert calls[-2:] == [("tiny", 0.5, tmp_path / "tiny", verb, force) for force in (None, verb)]
    main(monkeypatch, "finetune", *arguments)  # ends with what the comparison says, which nobody made here
    assert calls[-1][3:] == ("compare", None)


@pytest.mark.parametrize("columns", ["80", "200"])
def test_settings_lists_every_setting_whole(columns: str) -> None:
    result = CliRunner().invoke(cli.app, ["settings"], env={"COLUMNS": columns})
    assert result.exit_code == 0
    rows = list(setting_rows())
    assert len(rows) > 50
    lines = result.output.splitlines()
    listed = [line.split(" = ")[0].strip() for line in lines if line.startswith("  ") and not line.startswith("   ")]
    assert listed == [row.key.rpartition(".")[2] for row in rows]
    unwrapped = " ".join(result.output.split())
    assert all(f"{row.key.rpartition('.')[2]} = {' '.join(str(row.default).split())}" in unwrapped for row in rows)
    words = set(result.output.split())
    assert {word for row in rows for word in row.description.split()} <= words, "values and file names are whole"
    assert max(len(line) for line in lines if line.startswith(" ")) <= int(columns)


def test_every_setting_says_what_it_means() -> None:
    for row in setting_rows():
        assert row.default, row.key
        assert len(row.description.split()) >= 2, row.key


def test_the_command_line_starts_without_torch() -> None:
    heavy = ["torch", "transformers", "onnx", "onnxruntime", "polars", "sklearn", "tritonclient"]
    code = f"import sys, tritonrank.cli; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_a_fault_of_the_recipe_shows_before_torch_is_imported(tmp_path: Path) -> None:
    code = f"""
import sys
from tritonrank import cli
from tritonrank.cli.panels import IN_ORDER, Panel
for command in {RECIPE_COMMANDS!r}:
    sys.argv = ["tritonrank", command, {str(tmp_path / "absent.yaml")!r}]
    try:
        cli.main()
    except SystemExit as error:
        print(command, error.code, "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines() == [f"{command} 2 False" for command in RECIPE_COMMANDS]
