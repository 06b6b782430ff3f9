"""What users install: the wheel is complete, the thin client is thin, and the text in git is what the code writes."""

import email.message
import email.parser
import importlib.metadata
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterable
from pathlib import Path

import pytest
from google.protobuf import text_format
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from tritonclient.grpc import model_config_pb2
from tritonrank.rankers.pretrained import load_tokenizer
from tritonrank.rankers.score_meaning import ScoreMeaning
from tritonrank.recipe import load_recipe
from tritonrank.serve.models import known_ids, longest_rows, told_parameters
from tritonrank.serve.recommend_model import recommend_config
from tritonrank.serve.triton_config import as_text, model_configs
from tritonrank.train.finetune import text_rules
from tritonrank_runtime.shared_context import INPUT_NAMES, SHARED_CONTEXT
from tritonrank_runtime.text import RequestTokenizer

ROOT = Path(__file__).parents[1]
MODELS = ("rank", "ranker", "recommend")
"""Of the demo."""
STEPS = ("tokenize", "score", "select")
"""Of rankers whose steps are apart."""
CORES = 2
HEAVY = ("torch", "transformers", "onnx", "onnxruntime", "optimum", "tokenizers", "polars", "pyarrow", "pydantic")


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    return set(zipfile.ZipFile(wheel).namelist())


@pytest.fixture(scope="module")
def metadata(wheel: Path, names: set[str]) -> email.message.Message:
    (path,) = [name for name in names if name.endswith(".dist-info/METADATA")]
    return email.parser.Parser().parsestr(zipfile.ZipFile(wheel).read(path).decode())


def sources_below(folder: Path, pattern: str = "*.py") -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob(pattern) if "__pycache__" not in path.parts}


def test_the_wheel_holds_every_source_of_its_packages(names: set[str]) -> None:
    for package, folder in (
        ("tritonrank", ROOT / "build"),
        ("tritonrank_runtime", ROOT / "build"),
        ("tritonrank_client", ROOT / "clients"),
        ("tritonrank_gateway", ROOT / "gateway"),
        ("tritonrank_recommend", ROOT / "gateway"),
    ):
        patterns = ("*.py", "*.cpp", "*.h", "*.inc")  # the native engine is compiled where it is used
        sources = {f"{package}/{name}" for pattern in patterns for name in sources_below(folder / package, pattern)}
        assert len(sources) > 8
        assert sources <= names
    assert "tritonrank_client/py.typed" in names
    page = {f"tritonrank_gateway/{name}" for name in sources_below(ROOT / "gateway" / "tritonrank_gateway", "page/*.*")}
    assert len(page) == 12  # the playground, the storefront, and the style of both
    assert page <= names


def test_the_wheel_holds_the_serving_sources_as_text(names: set[str], wheel: Path) -> None:
    shipped = {name for name in names if name.startswith("tritonrank/model_repository/")}
    for model in ("ranker", *STEPS, "recommend"):
        assert f"tritonrank/model_repository/{model}/1/model.py" in shipped
    for model in MODELS:
        assert f"tritonrank/model_repository/{model}/config.pbtxt" in shipped
    recipes = {path.name for path in (ROOT / "build" / "recipes").glob("*.yaml")}
    assert {f"tritonrank/recipes/{name}" for name in recipes} <= names
    for name in shipped:
        zipfile.ZipFile(wheel).read(name).decode("utf-8")  # text only: weights and engines are no part of a release


def test_the_wheel_holds_nothing_else(names: set[str]) -> None:
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {
        "tritonrank",
        "tritonrank_runtime",
        "tritonrank_client",
        "tritonrank_gateway",
        "tritonrank_recommend",
    }
    strangers = [n for n in names if re.search(r"(^|/)(tests?|conftest|test_\w+|__pycache__)(/|\.|$)", n)]
    assert strangers == []


def test_the_installed_client_needs_neither_torch_nor_the_pipeline(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target)]
    subprocess.run([*install, str(wheel)], capture_output=True, text=True, timeout=120, check=True)
    blocked = {*HEAVY, "tritonrank", "rich", "typer", "cuda"}
    # -S leaves out this environment's site-packages with its editable install; what the client may need is put back
    # behind the fresh install.
    code = f"""
import sys
sys.path[:0] = [{str(target)!r}]
sys.path += {[p for p in sys.path if p.endswith("site-packages")]!r}

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"the client must not import {{name}}", name=name)

sys.meta_path.insert(0, Blocker())
import tritonrank_client, tritonrank_client.__main__
print(tritonrank_client.__file__)
print(tritonrank_client.RankClient, tritonrank_client.AsyncRankClient)
assert not {blocked!r} & set(sys.modules)
tritonrank_client.RankClient("grpc://127.0.0.1:1").close()
tritonrank_client.RankClient("http://127.0.0.1:1").close()
tritonrank_client.__main__.run()
"""
    command = [sys.executable, "-S", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path, check=False)
    assert "pip install 'tritonrank[cli]'" in done.stderr, done.stderr[-2_000:]
    assert "Traceback" not in done.stderr
    assert done.returncode == 1
    assert Path(done.stdout.splitlines()[0]).is_relative_to(target)  # the wheel's, not this checkout's


@pytest.mark.slow
def test_the_installed_pipeline_finds_its_serving_sources(wheel: Path, tmp_path: Path) -> None:
    """Outside a checkout ``assemble`` takes model.py from inside the package."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = """
from tritonrank.pipeline.assemble import assemble_settings
from tritonrank.serve.sources import serving_sources
from tritonrank.recipe import Recipe, load_recipe, shipped_recipes
print(serving_sources())
print(load_recipe("demo").name, shipped_recipes()["demo"])
print(sorted(assemble_settings(Recipe(name="x", data={"source": "sample"}))["sources"]))
"""
    environment = {"PYTHONPATH": str(tmp_path / "site"), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2_000:]
    found, recipe, sources = done.stdout.splitlines()
    assert recipe.split() == ["demo", str(tmp_path / "site" / "tritonrank" / "recipes" / "demo.yaml")]
    assert Path(found) == tmp_path / "site" / "tritonrank" / "model_repository"
    for model in ("ranker", *STEPS):
        assert f"{model}/1/model.py" in sources
        assert f"{model}/1/tritonrank_runtime/interpreter.py" in sources


def closure(requirements: Iterable[str], extras: Iterable[str] = ()) -> set[str]:
    """Canonical names of all distributions that requirements bring, extras of extras honoured.

    As pip resolves them, from the metadata of what is installed here; what is not installed is there as a name.
    """
    found: set[str] = set()
    waiting = [(one, frozenset(extras)) for one in requirements]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        text, asked = waiting.pop()
        requirement = Requirement(text)
        if requirement.marker and not any(requirement.marker.evaluate({"extra": extra}) for extra in ("", *asked)):
            continue
        name, wanted = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if (name, wanted) in seen:
            continue
        seen.add((name, wanted))
        found.add(name)
        try:
            waiting += [(one, wanted) for one in importlib.metadata.requires(name) or []]
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def test_the_base_install_is_thin(metadata: email.message.Message) -> None:
    base = closure(metadata.get_all("Requires-Dist", []))
    assert {"numpy", "tritonclient", "grpcio", "geventhttpclient"} <= base, "the walk goes through extras"
    assert not {one for one in base if one.startswith(("cuda", "nvidia", "perf"))}
    assert not {*map(canonicalize_name, HEAVY), "rich", "typer", "fastapi", "pyyaml"} & base
    assert len(base) < 30


def test_what_the_walk_would_find(metadata: email.message.Message) -> None:
    """``tritonclient[all]`` is what the client once asked for."""
    requirements = metadata.get_all("Requires-Dist", [])
    assert "cuda-python" in closure(["tritonclient[all]"])
    assert "cuda-python" in closure(requirements, ["cuda-shared-memory"])
    assert {"rich", "typer"} <= closure(requirements, ["cli"])


def test_what_serves_has_nothing_that_builds(metadata: email.message.Message) -> None:
    serving = closure(metadata.get_all("Requires-Dist", []), ["serving"])
    assert {"tokenizers", "rich", "typer"} <= serving
    assert not {"polars", "scipy", "torch", "onnx", "onnxruntime", "optimum", "transformers"} & serving


def test_extras_bring_the_rest(metadata: email.message.Message) -> None:
    extras = set(metadata.get_all("Provides-Extra", []))
    assert extras >= {"build", "server", "dev"}
    requirements = metadata.get_all("Requires-Dist", [])

    def of(extra: str) -> set[str]:
        return {canonicalize_name(Requirement(r).name) for r in requirements if f"extra == '{extra}'" in r}

    assert {"torch", "transformers", "onnx", "onnxruntime", "tokenizers", "polars"} <= of("build")
    assert "nvidia-pytriton" in of("server")
    assert {"pytest", "ruff", "mypy"} <= of("dev")


def test_scripts_and_version_are_those_of_the_sources(wheel: Path, names: set[str]) -> None:
    (path,) = [name for name in names if name.endswith("entry_points.txt")]
    scripts = zipfile.ZipFile(wheel).read(path).decode()
    assert "tritonrank = tritonrank.__main__:run" in scripts
    assert "tritonrank-client = tritonrank_client.__main__:run" in scripts
    version = re.search(r'__version__ = "(.+)"', (ROOT / "build/tritonrank/__init__.py").read_text())
    assert version
    assert wheel.name.startswith(f"tritonrank-{version[1]}-")


def test_every_named_distribution_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = {*project["dependencies"], *(r for extra in project["optional-dependencies"].values() for r in extra)}
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    assert all("==" in line for line in lines)
    pinned = [canonicalize_name(line.partition("==")[0]) for line in lines]
    assert len(pinned) == len(set(pinned))
    assert {canonicalize_name(Requirement(one).name) for one in named} - set(pinned) == set()


def test_pins_are_within_what_pyproject_allows() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = [*project["dependencies"], *(r for extra in project["optional-dependencies"].values() for r in extra)]
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    versions = {canonicalize_name(name): version for name, version in pins.items()}
    for requirement in map(Requirement, named):
        version = versions[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement} is pinned to {version}"


def write_committed_configs() -> None:
    """Write model_repository/*/config.pbtxt anew, after a change of the demo recipe or of triton_config.py:

    .venv/bin/python tests/test_packaging.py
    """
    for name, text in generated_configs().items():
        (ROOT / "model_repository" / name / "config.pbtxt").write_text(text, encoding="utf-8")


def generated_configs() -> dict[str, str]:
    """What the demo recipe gives on a machine with two cores."""
    recipe = load_recipe(ROOT / "build" / "recipes" / "demo.yaml")
    assert recipe.model.architecture == SHARED_CONTEXT
    tokenizer = RequestTokenizer(load_tokenizer(recipe.model.base).backend_tokenizer, text_rules(recipe))
    longest = longest_rows(INPUT_NAMES, tokenizer)
    ids = known_ids(INPUT_NAMES, tokenizer)
    told = told_parameters(ScoreMeaning(), tokenizer.rules)
    configs = model_configs(recipe.serve, INPUT_NAMES, CORES, longest_rows=longest, ids=ids, told=told)
    assert recipe.retrieval is not None
    configs |= {"recommend": recommend_config(recipe.serve, tokenizer.rules.history_items)}
    return {name: as_text(config) for name, config in configs.items()}


@pytest.mark.parametrize("model", MODELS)
def test_committed_config_is_what_the_demo_recipe_gives(model: str) -> None:
    committed = (ROOT / "model_repository" / model / "config.pbtxt").read_text(encoding="utf-8")
    expected = generated_configs()[model]
    parse = model_config_pb2.ModelConfig
    # Compared as protobufs first: that says which field differs, and holds for any release's text format.
    assert text_format.Parse(committed, parse()) == text_format.Parse(expected, parse()), (
        write_committed_configs.__doc__
    )
    assert committed == expected, write_committed_configs.__doc__


if __name__ == "__main__":
    write_committed_configs()
