"""The dashboards of deploy/grafana: the files are what the code makes, and Grafana and Prometheus understand them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest

from deploy.grafana.__main__ import BOARDS, FOLDER, main, written

FILES = sorted(FOLDER.glob("*.json"))


def panels_of(path: Path) -> Iterator[dict[str, Any]]:
    yield from (panel for panel in json.loads(path.read_text("utf-8"))["panels"] if panel["type"] != "row")


def test_the_files_are_what_the_code_makes() -> None:
    assert {path.name: path.read_text("utf-8") for path in FILES} == {
        f"{one.name}.json": written(one) for one in BOARDS
    }
    assert main(["--check"]) == ""


def test_a_file_that_was_changed_by_hand_is_named_with_what_to_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deploy.grafana.__main__.FOLDER", tmp_path)
    assert main([]) == ""
    (tmp_path / "ranker.json").write_text("{}")
    (tmp_path / "old.json").write_text("{}")
    problem = main(["--check"])
    assert "old.json, ranker.json" in problem
    assert "service.json" not in problem
    assert "python -m deploy.grafana" in problem
    assert main([]) == ""
    assert main(["--check"]) == ""
    assert not (tmp_path / "old.json").exists()


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_every_panel_says_what_it_answers_and_fits_the_grid(path: Path) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in panels_of(path):
        assert panel["description"].rstrip("."), panel["title"]
        assert "?" in panel["description"], panel["title"]
        assert panel["targets"], panel["title"]
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24, panel["title"]
        assert not cells & taken, panel["title"]
        taken |= cells
    board = json.loads(path.read_text("utf-8"))
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    assert board["uid"] == f"tritonrank-{path.stem}"


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_every_query_is_promql_over_variables_that_the_page_has(path: Path) -> None:
    variables = {one["name"] for one in json.loads(path.read_text("utf-8"))["templating"]["list"]}
    for panel in panels_of(path):
        for target in panel["targets"]:
            query = target["expr"].replace("$__rate_interval", "1m")
            for name in variables:
                query = query.replace(f"${name}", ".*")
            assert "$" not in query, (panel["title"], query)
            promql_parser.parse(query)
            assert target["datasource"]["uid"] == "${datasource}"
