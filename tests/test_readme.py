"""The README and the docs promise nothing that is not there."""

import ast
import inspect
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
import yaml
from tritonrank import cli
from tritonrank.recipe import load_recipe
from tritonrank_client import RankClient
from tritonrank_client import cli as client_cli

from loadtests.__main__ import app as loadtests_app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMAND_PAGES = "\n".join(page.read_text(encoding="utf-8") for page in PAGES if page.name != "log.md")
"""The log tells what was."""
MEASUREMENTS = (ROOT / "docs" / "measurements.md").read_text(encoding="utf-8")
MOST_README_WORDS = 1_300
APPS = {"tritonrank": cli.app, "tritonrank-client": client_cli.app, "python -m loadtests": loadtests_app}
ON_GPU = "on_gpu "
"""Runs what follows in a container."""


def code_blocks(language: str, pages: str = README) -> Iterator[str]:
    for found, body in re.findall(r"^```(\w*)\n(.*?)^```", pages, flags=re.M | re.S):
        if found == language:
            yield body


def shell_lines() -> list[str]:
    """Commands in the README and the docs: lines of plain blocks, and `code` in the text."""
    lines = [line.split(" #")[0].strip() for block in code_blocks("", COMMAND_PAGES) for line in block.splitlines()]
    lines += re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", COMMAND_PAGES, flags=re.M | re.S))
    parts = [part.strip().removeprefix(ON_GPU) for line in lines for part in line.split("&&")]
    return [part for part in parts if re.match(rf"({'|'.join(['make', *APPS])}) [a-z]", part)]


def test_the_readme_has_commands_to_check() -> None:
    commands = {line.split()[0] for line in shell_lines()}
    assert commands == {"make", *(name.split()[0] for name in APPS)}


@pytest.mark.parametrize("line", [line for line in shell_lines() if line.startswith("make ")])
def test_every_make_target_exists(line: str) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in line.split()[1:]:
        assert "=" in target or re.search(rf"^{target}:.*## ", makefile, flags=re.M), target


@pytest.mark.parametrize("line", [line for line in shell_lines() if not line.startswith("make ")])
def test_every_verb_and_option_exists(line: str) -> None:
    program = next(name for name in APPS if line.startswith(f"{name} "))
    verb, *words = shlex.split(line.removeprefix(program))
    command = typer.main.get_command(APPS[program]).commands[verb]
    while words and hasattr(command, "commands"):  # verbs of a verb, such as `rollout start`
        command = command.commands[words.pop(0)]
    words = words[: words.index("--")] if "--" in words else words  # behind it stands what another program is told
    options = {"--help", *(name for parameter in command.params for name in parameter.opts)}
    assert {word for word in words if word.startswith("--")} <= options


def test_the_readme_is_read_in_one_sitting() -> None:
    assert len(README.split()) <= MOST_README_WORDS


def test_the_index_names_every_page() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    assert {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"} <= set(
        re.findall(r"\]\((\S+?)\)", index)
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def test_the_python_example_fits_the_client() -> None:
    (example,) = code_blocks("python")
    calls = [node for node in ast.walk(ast.parse(example)) if isinstance(node, ast.Call)]
    named = {ast.unparse(call.func): {keyword.arg for keyword in call.keywords} for call in calls}
    assert named["RankClient"] <= set(inspect.signature(RankClient).parameters)
    assert named["client.rank"] <= set(inspect.signature(RankClient.rank).parameters)


def test_the_recipe_example_is_a_recipe(tmp_path: Path) -> None:
    (example,) = code_blocks("yaml")
    (tmp_path / "mine.yaml").write_text(example, encoding="utf-8")
    assert load_recipe(tmp_path / "mine.yaml").name == yaml.safe_load(example)["name"]


def test_the_tensor_table_is_the_ensembles(tmp_path: Path) -> None:
    config = (ROOT / "model_repository" / "rank" / "config.pbtxt").read_text(encoding="utf-8")
    tensors = re.findall(r'^(?:input|output) \{\n\s+name: "(\w+)"', config, flags=re.M)
    page = (ROOT / "docs" / "client.md").read_text(encoding="utf-8")
    table = "\n".join(line for line in page.splitlines() if line.startswith("|"))
    assert tensors
    assert all(f"`{name}`" in table for name in tensors)


def test_the_quality_table_is_the_measured_one() -> None:
    """Every NDCG@10 in the MovieLens table is the one in the saved summary."""
    summary = json.loads((ROOT / "docs" / "measurements" / "movielens-cpu.json").read_text(encoding="utf-8"))
    for row in summary["summary"]["rows"]:
        value = row["ndcg@10"]
        shown = f"{value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"
        assert re.search(rf"^\| {re.escape(row['name'])} \| {re.escape(shown)}", MEASUREMENTS, flags=re.M), row["name"]
