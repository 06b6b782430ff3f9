"""Imports go down only: a room may import those below it, the modules of level 0 and what Triton loads."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

BUILD = Path(__file__).parents[1] / "build"
LEVELS = (
    ("errors", "recipe", "artifacts", "system"),
    ("rankers",),
    ("data",),
    ("graphs",),
    ("judge",),
    ("train", "quantize"),
    ("shrink", "tensorrt", "retrieval"),
    ("report",),
    ("serve",),
    ("gpu_check",),
    ("pipeline",),
    ("search", "learn"),
    ("cli",),
    ("__main__",),
)
MOST_ENTRIES = 22
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}


def imported_modules(source: str) -> Iterator[str]:
    """Dotted names of all imports, those inside functions too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            yield node.module or ""
            yield from (f"{node.module}.{name.name}" for name in node.names)


def room_of(module: str) -> str | None:
    """The part of ``tritonrank`` that a module is in."""
    package, _, rest = module.partition(".")
    return rest.partition(".")[0] if package == "tritonrank" and rest else None


def climbing(path: str, source: str) -> list[str]:
    """The imports of a source file that do not go down.

    Args:
        path: below ``build/``.
        source: its text.
    """
    own = room_of(path.removesuffix(".py").replace("/", "."))
    rooms = {room for module in imported_modules(source) if (room := room_of(module)) in LEVEL}
    if own is None:  # what Triton loads stands alone
        return sorted(module for module in imported_modules(source) if module.split(".")[0] == "tritonrank")
    return sorted(room for room in rooms - {own} if LEVEL[room] >= LEVEL[own] and (LEVEL[own] or LEVEL[room]))


SOURCES = {
    path.relative_to(BUILD).as_posix(): path
    for package in ("tritonrank", "tritonrank_runtime")
    for path in sorted((BUILD / package).rglob("*.py"))
}


@pytest.mark.parametrize("path", SOURCES)
def test_imports_go_down(path: str) -> None:
    assert climbing(path, SOURCES[path].read_text(encoding="utf-8")) == []


def test_every_room_has_a_level() -> None:
    rooms = {room_of(path.removesuffix(".py").replace("/", ".")) for path in SOURCES} - {None, "__init__"}
    assert rooms == set(LEVEL)
    assert len([path for path in (BUILD / "tritonrank").iterdir() if path.name != "__pycache__"]) <= MOST_ENTRIES


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("tritonrank/data/prepare.py", "from tritonrank.judge.gate import verdict"),
        ("tritonrank/data/prepare.py", "def lazily():\n    import tritonrank.serve.serving"),
        ("tritonrank/serve/serving.py", "from tritonrank import pipeline"),
        ("tritonrank/train/finetune.py", "from tritonrank.quantize.int8 import quantize"),
        ("tritonrank_runtime/engine.py", "from tritonrank.errors import ArtifactError"),
    ],
)
def test_an_import_that_climbs_is_found(path: str, source: str) -> None:
    assert climbing(path, source)
