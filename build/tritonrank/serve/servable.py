"""What was named to ``tritonrank serve``: the repository in it, or what it is instead (artifacts/named.py)."""

import shlex
import stat
from pathlib import Path

from tritonrank.artifacts import MANIFEST, Manifest
from tritonrank.artifacts.builds import SERVED, find_build, recorded_builds, served_build
from tritonrank.artifacts.named import ASSEMBLE, REPOSITORY, stage_of, what_it_is
from tritonrank.artifacts.record_builds import current_build
from tritonrank.errors import ArtifactError
from tritonrank.serve.run_folder import BYTE_CODE_FOLDER


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
    stage = stage_of(artifacts)
    if stage == ASSEMBLE or (stage is None and artifacts.is_dir() and (artifacts / MANIFEST).exists()):
        return artifacts  # also with a manifest that cannot be read: whoever reads it tells why
    raise ArtifactError(f"{artifacts}: {what_it_is(artifacts, 'serve')}")


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
    served, newest, promote = served_build(root), builds[-1], f"tritonrank promote {shlex.quote(str(root))}"
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
            f"links by what they point to: cp -rL {shlex.quote(str(repository))} NEW_FOLDER"
        )
