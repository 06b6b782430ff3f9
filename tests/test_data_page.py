"""The page about data says what the code does: its recipes load, and it names every kind of file, URL and data set."""

import re
from pathlib import Path

import pytest
import yaml
from tritonrank.data.adapters import ADAPTERS
from tritonrank.data.formats.files import KINDS, PACKED
from tritonrank.recipe import PublicData, load_recipe
from tritonrank.recipe.data import PUBLIC_SOURCES
from tritonrank.system.database_url import SCHEMES, DatabaseUrl

PAGE = (Path(__file__).parents[1] / "docs" / "data.md").read_text(encoding="utf-8")
RECIPES = re.findall(r"^```yaml\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("text", RECIPES)
def test_its_recipes_load(tmp_path: Path, text: str) -> None:
    path = tmp_path / "shown.yaml"
    path.write_text("name: shown\n" + text, encoding="utf-8")
    data = load_recipe(path).data
    if isinstance(data, PublicData):
        template = yaml.safe_load(text)["text"]["item_template"]
        if data.source != "recbole":  # whose fields are those of its files
            assert template == ADAPTERS[data.source].template([])


def test_it_has_a_recipe_for_every_public_data_set() -> None:
    sources = [yaml.safe_load(text)["data"]["source"] for text in RECIPES][3:]
    assert [source for source in sources if source != "events"] == list(PUBLIC_SOURCES)
    for source, adapter in ADAPTERS.items():
        (row,) = [line for line in PAGE.splitlines() if line.startswith(f"| `{source}` |")]
        for name in re.findall(r"[\w-]+\.(?:csv|dat|tsv|parquet|item|data|inter)\b", adapter.expected):
            assert name.removeprefix("shopping_queries_dataset_") in row


def test_it_names_every_ending_and_every_url() -> None:
    for ending in (*KINDS, *PACKED):
        assert f"`{ending}`" in PAGE
    urls = [url.rstrip('"').replace("?query=SELECT ...", "") for url in re.findall(r"\w+://[^`\s]+#[\w.]+", PAGE)]
    assert {DatabaseUrl.parse(url.replace(":port", ":5432")).scheme for url in urls} == set(SCHEMES) - {"postgres"}
