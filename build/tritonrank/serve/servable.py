"""What was named to ``tritonrank serve``: the repository in it, or what it is instead and what to type."""

import json
import re
import shlex
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from tritonrank.artifacts import MANIFEST, Manifest
from tritonrank.artifacts.builds import SERVED, find_build, recorded_builds, served_build
from tritonrank.artifacts.record_builds import current_build
from tritonrank.errors import ArtifactError
from tritonrank.serve.run_folder import BYTE_CODE_FOLDER

REPOSITORY = "repository"
ASSEMBLE = "assemble"
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
RECIPE_ENDINGS = (".yaml", ".yml")
WEIGHT_ENDINGS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".gguf")
PACK_ENDINGS = (".tar.gz", ".tgz", ".tar", ".zip")
CHECKPOINT_FILES = ("config.json", "tokenizer.json", "model.safetensors.index.json")


def repository_of(artifacts: Path, build: str | None = None) -> Path:
    """The repository folder, given it or the recipe's artifact folder: of this the one of the build that is served, or
    that of the last build where none was promoted yet.

    Args:
        artifacts: either of them.
        build: the build of the recipe to take instead, by its id; ``newest`` is the last one.

    Raises:
        ArtifactError: it is neither; says what it is, and the command that leads to something that can be served.
    """
    root = _root_of(artifacts)
    if build is not None:
        return find_build(root, build).repository
    if (served := served_build(root)) is not None:
        return served.repository
    if (artifacts / REPOSITORY / MANIFEST).is_file():
        return artifacts / REPOSITORY
    if not artifacts.is_dir():
        raise ArtifactError(f"{artifacts}: {_about_file(artifacts)}")
    stage = _stage_of(artifacts)
    if stage == ASSEMBLE or (stage is None and (artifacts / MANIFEST).exists()):
        return artifacts  # also with a manifest that cannot be read: whoever reads it tells why
    raise ArtifactError(f"{artifacts}: {_about_folder(artifacts, stage)}")


def followed_root(artifacts: Path, build: str | None = None) -> Path | None:
    """The recipe's artifact folder, whose link says what to serve; None where a certain repository was named."""
    root = _root_of(artifacts)
    has_stages = (root / REPOSITORY / MANIFEST).is_file() or (root / SERVED).is_symlink()
    is_record = (root / MANIFEST).is_file()  # one build, named by its folder
    return root if build is None and has_stages and not is_record else None


def notes_on_served(artifacts: Path, build: str | None = None) -> list[str]:
    """Which build of a recipe is about to be served, and what stands beside it; each in one line."""
    root = _root_of(artifacts)
    if build is not None:
        return [f"build {find_build(root, build).name}, as it was asked for: no promotion is followed"]
    builds = recorded_builds(root)
    if followed_root(artifacts) is None or not builds:
        return []
    served, newest, promote = served_build(root), builds[-1], f"tritonrank promote {_quoted(root)}"
    if served is None:
        return [f"no build was promoted yet: this is what was built last. To keep to one build: {promote} ID"]
    notes = [f"build {served.name}"]
    if newest.name != served.name:
        notes.append(f"a newer build stands beside it, {newest.name}: {promote} {newest.name}")
    elif current_build(root) is None and (root / REPOSITORY / MANIFEST).is_file():
        notes.append(f"{root / REPOSITORY} is another one and no recorded build: tritonrank build RECIPE records it")
    return notes


def _root_of(artifacts: Path) -> Path:
    """Whoever names the link means what it will lead to, too."""
    return artifacts.parent if artifacts.name == SERVED and artifacts.is_symlink() else artifacts


def check_contents(repository: Path, manifest: Manifest) -> None:
    """Look for what hashes of files do not show: links, special files, folders that nobody made.

    Raises:
        ArtifactError: there is something that Triton or an engine would stumble over; names it.
    """
    folders = {parent for name in manifest.files for parent in Path(name).parents}
    with_python = {Path(name).parent for name in manifest.files if name.endswith(".py")}
    faults = []
    for path in sorted(repository.rglob("*")):
        name, mode = path.relative_to(repository), path.lstat().st_mode
        if stat.S_ISLNK(mode):
            faults.append(f"  {name}: a link; expected a plain file or folder")
        elif stat.S_ISDIR(mode):
            is_byte_code = name.name == BYTE_CODE_FOLDER and name.parent in with_python
            if name not in folders and not is_byte_code and name.parent.name != BYTE_CODE_FOLDER:
                faults.append(f"  {name}: a folder that is not part of the artifact")
        elif not stat.S_ISREG(mode):
            faults.append(f"  {name}: neither a file nor a folder")
    if faults:
        raise ArtifactError(
            f"{repository} cannot be served:\n" + "\n".join(faults) + "\nRemove what is not part of it; replace "
            f"links by what they point to: cp -rL {_quoted(repository)} NEW_FOLDER"
        )


def _stage_of(folder: Path) -> str | None:
    """The stage that its manifest names; None where it cannot be read."""
    with suppress(OSError, ValueError, AttributeError):
        stage = json.loads((folder / MANIFEST).read_text(encoding="utf-8")).get("stage")
        return stage if isinstance(stage, str) else None
    return None


def _about_file(path: Path) -> str:
    name = path.name.lower()
    if not path.exists():
        return _about_nothing(path)
    if name.endswith(RECIPE_ENDINGS):
        recipe = _recipe_name(path)
        if recipe is None:
            return "a YAML file, but no recipe: it has no name. Serve a build: tritonrank serve artifacts/NAME"
        build = f"tritonrank build {_quoted(path)} && tritonrank serve {_quoted(Path('artifacts', recipe))}"
        return f"a recipe; what is built from it can be served: {build}"
    if name == MANIFEST:
        return f"a manifest; name its folder: {_serve(path.parent)}"
    if name.endswith(".onnx"):
        return f"an ONNX graph; served is a repository with tokenizer, texts and golden requests. {_build_around(path)}"
    if name.endswith(".plan"):
        return f"a TensorRT plan; served is a repository around it. {_build_around(path)}"
    if name.endswith(WEIGHT_ENDINGS):
        return f"weights of a model. {_from_checkpoint(path.parent)}"
    if name.endswith(PACK_ENDINGS):
        return (
            f"an archive. If it is a pack, check a GPU with it: tritonrank gpu-check {_quoted(path)}. To serve, name "
            "the build that it was made of: tritonrank serve artifacts/NAME"
        )
    return "a file; expected artifacts/NAME. Build one: tritonrank build RECIPE && tritonrank serve artifacts/NAME"


def _about_nothing(path: Path) -> str:
    if path.is_symlink():
        return f"a link to {path.readlink()}, which does not exist. Name the build: tritonrank serve artifacts/NAME"
    if (Path("artifacts") / path / REPOSITORY).is_dir():
        return f"no such file or folder. Perhaps: {_serve(Path('artifacts') / path)}"
    for recipe in (path.with_name(path.name + ending) for ending in RECIPE_ENDINGS):
        if recipe.is_file():
            return f"no such file or folder. Perhaps: tritonrank build {_quoted(recipe)}"
    return "no such file or folder. Build first: tritonrank build RECIPE && tritonrank serve artifacts/NAME"


def _about_folder(folder: Path, stage: str | None) -> str:
    build = folder.parent
    if stage is not None:
        if (build / REPOSITORY / MANIFEST).is_file():
            return f"what the stage {stage} made; its build can be served: {_serve(build)}"
        return f"what the stage {stage} made; its build has no repository yet. {_unfinished(build)}"
    if others := sorted(folder.glob(f"{REPOSITORY}-*/{MANIFEST}")):
        found = " or ".join(_serve(other.parent) for other in others)
        return f"a build with a repository for another target. Serve it: {found}"
    if any((folder / name / MANIFEST).is_file() for name in STAGES):
        return f"a build that is not finished. {_unfinished(folder)}"
    if builds := sorted(folder.glob(f"*/{REPOSITORY}/{MANIFEST}")):
        return "a folder of builds. Serve one: " + " or ".join(_serve(one.parents[1]) for one in builds[:5])
    if any((folder / name).is_file() for name in CHECKPOINT_FILES) or any(_with_endings(folder, WEIGHT_ENDINGS)):
        return f"a checkpoint. {_from_checkpoint(folder)}"
    if any(folder.glob("*/config.pbtxt")) or any((folder / REPOSITORY).glob("*/config.pbtxt")):
        return (
            f"a Triton repository, but no artifact ({MANIFEST} is missing), so nothing tells how it should rank. "
            "Assemble it: tritonrank assemble RECIPE"
        )
    if any(_with_endings(folder, (".onnx",))):
        return (
            f"ONNX graphs, but no artifact ({MANIFEST} is missing). Served is the repository of a build: "
            "tritonrank build RECIPE && tritonrank serve artifacts/NAME"
        )
    if recipes := [path for path in sorted(_with_endings(folder, RECIPE_ENDINGS)) if _recipe_name(path)]:
        return f"a folder of recipes. Build one: tritonrank build {_quoted(recipes[0])}"
    what = "no artifact here" if any(folder.iterdir()) else "an empty folder"
    return f"{what} ({MANIFEST} is missing). Build one: tritonrank build RECIPE && tritonrank serve artifacts/NAME"


def _unfinished(build: Path) -> str:
    missing = [
        f"{name} ({stage})"
        for name, stage in STAGES.items()
        if name not in OPTIONAL_STAGES and not (build / name / MANIFEST).is_file()
    ]
    return (
        f"Missing: {', '.join(missing)}. Finish it: tritonrank build RECIPE. If the gate closed on int8, the "
        "unquantized model can be served: tritonrank assemble RECIPE --set quantize.method=none"
    )


def _build_around(path: Path) -> str:
    for folder in path.parents[:4]:
        if (folder / REPOSITORY / MANIFEST).is_file():
            return f"Its build can be served: {_serve(folder)}"
    return "Serve a build: tritonrank build RECIPE && tritonrank serve artifacts/NAME"


def _from_checkpoint(folder: Path) -> str:
    checkpoint = json.dumps(str(folder.absolute()), ensure_ascii=False)
    return (
        f"To serve it, name its folder in a recipe (model: {{checkpoint: {checkpoint}}}; README, Bring your own), "
        "then: tritonrank build RECIPE && tritonrank serve artifacts/NAME"
    )


def _recipe_name(path: Path) -> str | None:
    """The name in a recipe, without a YAML parser, which a machine that serves does not have."""
    with suppress(OSError, ValueError):
        found = re.search(r"^name:[ \t]*[\"']?([a-z0-9][a-z0-9_-]*)", path.read_text(encoding="utf-8"), flags=re.M)
        return found.group(1) if found else None
    return None


def _with_endings(folder: Path, endings: tuple[str, ...]) -> Iterator[Path]:
    return (path for path in folder.iterdir() if path.name.lower().endswith(endings))


def _serve(folder: Path) -> str:
    return f"tritonrank serve {_quoted(folder)}"


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
