"""What somebody named to a command that wants a build: what it is instead, and what to type.

Natural mistakes are a recipe, a checkpoint, one stage of a build, the folder of all builds, a file out of it. Nothing
here imports what builds: a machine that serves, and an error that should come at once, do without.
"""

import json
import re
import shlex
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tritonrank.artifacts import MANIFEST
from tritonrank.errors import ArtifactError

REPOSITORY = "repository"
ASSEMBLE = "assemble"
SUMMARY = "summary"
CATALOGUE = "catalogue"
BLEND = "blend"
STAGES = {
    "dataset": "prepare",
    "teacher": "finetune",
    "pruned": "prune",
    "student": "distill",
    "onnx": "export",
    "int8": "quantize",
    REPOSITORY: ASSEMBLE,
}
"""Folder of a build -> the stage that writes it, in order."""
OPTIONAL_STAGES = frozenset({"pruned", "student"})
WANTED = {"serve": REPOSITORY, "pack": REPOSITORY, "report": SUMMARY}
"""Verb -> the folder of a build that it cannot do without."""
DONE = {"serve": "can be served", "pack": "can be packed", "report": "has a report"}
RECIPE_ENDINGS = (".yaml", ".yml")
WEIGHT_ENDINGS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".gguf")
PACK_ENDINGS = (".tar.gz", ".tgz", ".tar", ".zip")
CHECKPOINT_FILES = ("config.json", "tokenizer.json", "model.safetensors.index.json")
BUILDS_SHOWN = 5


def require_build(artifacts: Path, verb: str) -> None:
    """That it is a build with what a verb needs of it.

    Args:
        artifacts: what was named.
        verb: of WANTED.

    Raises:
        ArtifactError: it is none; says what it is, and the command that leads on.
    """
    if not (artifacts / WANTED[verb] / MANIFEST).is_file():
        raise ArtifactError(f"{artifacts}: {what_it_is(artifacts, verb)}")


def what_it_is(path: Path, verb: str) -> str:
    """Of something that a verb cannot use: what it is, and what to type instead.

    Args:
        path: what was named.
        verb: of WANTED.
    """
    named = _Named(path, verb)
    return named.folder() if path.is_dir() else named.file()


def stage_of(folder: Path) -> str | None:
    """The stage that the manifest of a folder names; None where it cannot be read."""
    with suppress(OSError, ValueError, AttributeError):
        stage = json.loads((folder / MANIFEST).read_text(encoding="utf-8")).get("stage")
        return stage if isinstance(stage, str) else None
    return None


@dataclass(frozen=True)
class _Named:
    path: Path
    verb: str

    def file(self) -> str:
        path, name = self.path, self.path.name.lower()
        if not path.exists():
            return self._nothing()
        if name.endswith(RECIPE_ENDINGS):
            recipe = _recipe_name(path)
            if recipe is None:
                return f"a YAML file, but no recipe: it has no name. {self._any_build()}"
            then = f"tritonrank build {_quoted(path)} && {self._command(Path('artifacts', recipe))}"
            return f"a recipe; what is built from it {DONE[self.verb]}: {then}"
        if name == MANIFEST:
            return f"a manifest; name its folder: {self._command(path.parent)}"
        if name.endswith(".onnx"):
            return f"an ONNX graph, one part of a build. {self._build_around()}"
        if name.endswith(".plan"):
            return f"a TensorRT plan, one part of a build. {self._build_around()}"
        if name.endswith(WEIGHT_ENDINGS):
            return f"weights of a model. {self._from_checkpoint(path.parent)}"
        if name.endswith(PACK_ENDINGS):
            return (
                f"an archive. If it is a pack, check a GPU with it: tritonrank gpu-check {_quoted(path)}. Or name the "
                f"build that it was made of: tritonrank {self.verb} artifacts/NAME"
            )
        return f"a file; expected artifacts/NAME. {self._build_first()}"

    def folder(self) -> str:
        folder, build, wanted = self.path, self.path.parent, WANTED[self.verb]
        if (stage := stage_of(folder)) is not None:
            if (build / wanted / MANIFEST).is_file():
                return f"what the stage {stage} made; its build {DONE[self.verb]}: {self._command(build)}"
            return f"what the stage {stage} made; its build has no {wanted} yet. {self._unfinished(build)}"
        if self.verb == "serve" and (others := sorted(folder.glob(f"{REPOSITORY}-*/{MANIFEST}"))):
            found = " or ".join(self._command(other.parent) for other in others)
            return f"a build with a repository for another target. Serve it: {found}"
        if any((folder / name / MANIFEST).is_file() for name in STAGES):
            return f"a build that is not finished. {self._unfinished(folder)}"
        if builds := sorted(folder.glob(f"*/{wanted}/{MANIFEST}")):
            named = " or ".join(self._command(one.parents[1]) for one in builds[:BUILDS_SHOWN])
            return f"a folder of builds. Name one: {named}"
        if any((folder / name).is_file() for name in CHECKPOINT_FILES) or any(_with_endings(folder, WEIGHT_ENDINGS)):
            return f"a checkpoint. {self._from_checkpoint(folder)}"
        if any(folder.glob("*/config.pbtxt")) or any((folder / REPOSITORY).glob("*/config.pbtxt")):
            return (
                f"a Triton repository, but no artifact ({MANIFEST} is missing), so nothing tells how it should rank. "
                "Assemble it: tritonrank assemble RECIPE"
            )
        if any(_with_endings(folder, (".onnx",))):
            return f"ONNX graphs, but no artifact ({MANIFEST} is missing). {self._build_first()}"
        if recipes := [path for path in sorted(_with_endings(folder, RECIPE_ENDINGS)) if _recipe_name(path)]:
            return f"a folder of recipes. Build one: tritonrank build {_quoted(recipes[0])}"
        what = "no artifact here" if any(folder.iterdir()) else "an empty folder"
        return f"{what} ({MANIFEST} is missing). {self._build_first()}"

    def _nothing(self) -> str:
        path, wanted = self.path, WANTED[self.verb]
        if path.is_symlink():
            return f"a link to {path.readlink()}, which does not exist. Name the build: {self._any_build()}"
        nothing = "no such file or folder."
        if (Path("artifacts") / path / wanted).is_dir():
            return f"{nothing} Perhaps: {self._command(Path('artifacts') / path)}"
        for recipe in (path.with_name(path.name + ending) for ending in RECIPE_ENDINGS):
            if recipe.is_file():
                return f"{nothing} Perhaps: tritonrank build {_quoted(recipe)}"
        if str(path) in _shipped():
            then = self._command(Path("artifacts") / path)
            return f"{nothing} A recipe of that name comes with tritonrank: tritonrank build {path} && {then}"
        return f"{nothing} {self._build_first()}"

    def _unfinished(self, build: Path) -> str:
        stages = STAGES | ({SUMMARY: "summarize"} if self.verb == "report" else {})
        missing = [
            f"{name} ({stage})"
            for name, stage in stages.items()
            if name not in OPTIONAL_STAGES and not (build / name / MANIFEST).is_file()
        ]
        finish = f"Missing: {', '.join(missing)}. Finish it: tritonrank build RECIPE"
        if self.verb != "serve":
            return finish
        return (
            f"{finish}. If the gate (the check of the ranking) closed on int8, the unquantized model can be served: "
            "tritonrank assemble RECIPE --set quantize.method=none"
        )

    def _build_around(self) -> str:
        for folder in self.path.parents[:4]:
            if (folder / WANTED[self.verb] / MANIFEST).is_file():
                return f"Its build {DONE[self.verb]}: {self._command(folder)}"
        return self._build_first()

    def _from_checkpoint(self, folder: Path) -> str:
        checkpoint = json.dumps(str(folder.absolute()), ensure_ascii=False)
        return (
            f"To serve it as it is: tritonrank up {_quoted(folder)}. To judge it on your data, name it in a recipe "
            f"(model: {{checkpoint: {checkpoint}}}), then: tritonrank build RECIPE && {self._any_build()}"
        )

    def _build_first(self) -> str:
        return f"Build first: tritonrank build RECIPE && {self._any_build()}"

    def _any_build(self) -> str:
        return f"tritonrank {self.verb} artifacts/NAME"

    def _command(self, folder: Path) -> str:
        return f"tritonrank {self.verb} {_quoted(folder)}"


def _shipped() -> list[str]:
    try:
        from tritonrank.recipe.shipped import shipped_recipes
    except ModuleNotFoundError:  # this machine only serves
        return []
    return list(shipped_recipes())


def _recipe_name(path: Path) -> str | None:
    """The name in a recipe, without a YAML parser, which a machine that serves does not have."""
    with suppress(OSError, ValueError):
        found = re.search(r"^name:[ \t]*[\"']?([a-z0-9][a-z0-9_-]*)", path.read_text(encoding="utf-8"), flags=re.M)
        return found.group(1) if found else None
    return None


def _with_endings(folder: Path, endings: tuple[str, ...]) -> Iterator[Path]:
    return (path for path in folder.iterdir() if path.name.lower().endswith(endings))


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
