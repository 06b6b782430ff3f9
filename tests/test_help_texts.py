"""Every ``--help`` of the three command lines says what was written, brackets and colons too."""

import inspect
import re

import pytest
import typer
from tritonrank import __version__, cli
from tritonrank.system.literal_help import LiteralGroup
from tritonrank_client import cli as client
from typer.testing import CliRunner

from loadtests import __main__ as loadtests

APPS = {"tritonrank": cli.app, "loadtests": loadtests.app, "tritonrank-client": client.app}
BRACKETED = re.compile(r"\[[^\[\]\s][^\[\]]*\]")
COMMANDS = [(name, "") for name in APPS] + [
    (name, command) for name, app in APPS.items() for command in sorted(typer.main.get_command(app).commands)
]
COMMANDS += [
    (name, f"{group.name} {command}")
    for name, app in APPS.items()
    for group in app.registered_groups
    for command in sorted(typer.main.get_command(group.typer_instance).commands)
]
PLANTED = "take [fp16] or [bold]int8[/bold], a list[str], [/] and artifacts/<name>"


def written(app: typer.Typer, command: str) -> list[str]:
    """Help texts in the source: the docstring, and what each option says."""
    if not command:
        return [str(app.info.help)]
    first, _, rest = command.partition(" ")
    if first in (groups := {group.name: group.typer_instance for group in app.registered_groups}):
        return written(groups[first], rest)
    named = {one.name or str(one.callback.__name__).replace("_", "-"): one for one in app.registered_commands}
    callback = named[command].callback
    options = inspect.signature(callback).parameters.values()
    notes = [note for option in options for note in getattr(option.annotation, "__metadata__", ())]
    return [str(named[command].help or inspect.getdoc(callback)), *(str(note.help) for note in notes if note.help)]


def shown(app: typer.Typer, command: str) -> str:
    """The page, as it is without the line breaks and boxes that its width brings."""
    result = CliRunner().invoke(app, [*command.split(), "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
    assert result.exit_code == 0, result.output
    return " ".join(result.output.replace("│", " ").split())


@pytest.mark.parametrize(("name", "command"), COMMANDS)
def test_every_bracketed_word_is_shown(name: str, command: str) -> None:
    page = shown(APPS[name], command)
    for text in written(APPS[name], command):
        for bracketed in BRACKETED.findall(text):
            assert bracketed in page, f"{name} {command}"
        for word in " ".join(text.split()).split():
            assert word in page, f"{name} {command}: {word}"


def test_brackets_are_there_to_be_compared() -> None:
    found = {command for name, command in COMMANDS for text in written(APPS[name], command) if BRACKETED.search(text)}
    assert {"compile", "assemble"} <= found


@pytest.mark.parametrize("apps", ["tritonrank", "loadtests"])
def test_no_help_text_is_markup(apps: str) -> None:
    assert issubclass(APPS[apps].info.cls, LiteralGroup)
    app = typer.Typer(cls=LiteralGroup, help=PLANTED)

    @app.command(help=PLANTED)
    def first(option: str = typer.Option("x", help=PLANTED), argument: str = typer.Argument("y", help=PLANTED)) -> None:
        raise AssertionError

    app.command("second")(first)
    assert shown(app, "").count(PLANTED) == 2
    assert shown(app, "first").count(PLANTED) == 3


def test_the_version_is_told() -> None:
    result = CliRunner().invoke(cli.app, ["--version"])
    assert (result.exit_code, result.output.split()) == (0, ["tritonrank", __version__])
