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

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def code_blocks(language: str) -> Iterator[str]:
    for found, body in re.findall(r"^```(\w*)\n(.*?)^```", README, flags=re.M | re.S):
        if found == language:
            yield body


def shell_lines() -> list[str]:
    """Commands in the README: lines of plain blocks, and `code` in the text."""
    lines = [line.split(" #")[0].strip() for block in code_blocks("") for line in block.splitlines()]
    lines += re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", README, flags=re.M | re.S))
    return [line for line in lines if re.match(r"(make|tritonrank|tritonrank-client) [a-z]", line)]


def test_the_readme_has_commands_to_check() -> None:
    commands = {line.split()[0] for line in shell_lines()}
    assert commands == {"make", "tritonrank", "tritonrank-client"}


@pytest.mark.parametrize("line", [line for line in shell_lines() if line.startswith("make ")])
def test_every_make_target_exists(line: str) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in line.split()[1:]:
        assert "=" in target or re.search(rf"^{target}:.*## ", makefile, flags=re.M), target


@pytest.mark.parametrize("line", [line for line in shell_lines() if line.startswith("tritonrank")])
def test_every_verb_and_option_exists(line: str) -> None:
    program, verb, *words = shlex.split(line)
    app = cli.app if program == "tritonrank" else client_cli.app
    command = typer.main.get_command(app).commands[verb]
    options = {name for parameter in command.params for name in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= options


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
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
    table = "\n".join(line for line in README.splitlines() if line.startswith("|"))
    assert tensors
    assert all(f"`{name}`" in table for name in tensors)


def test_the_quality_table_is_the_measured_one() -> None:
    """Every NDCG@10 in the README's MovieLens table is the one in the saved summary."""
    summary = json.loads((ROOT / "docs" / "measurements" / "movielens-cpu.json").read_text(encoding="utf-8"))
    for row in summary["summary"]["rows"]:
        value = row["ndcg@10"]
        shown = f"{value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"
        assert re.search(rf"^\| {re.escape(row['name'])} \| {re.escape(shown)}", README, flags=re.M), row["name"]
