"""The models of a version beside those of others, under names of their own.

A repository has the models ``rank``, ``ranker`` and perhaps ``recommend``, or ``rank`` and a model for each step. A
server that shows several repositories calls them after their versions:

    rank              what is live: a copy of the ensemble of that version
    ranker            of the version that the server started with
    rank-a            the ensemble of version a, which it started with
    rank-b, ranker-b  version b
    recommend         what is live: the gateway recommends by itself, and asks rank-a or rank-b

All that is linked, not copied, but for the configs, which have the new names. An ensemble costs nothing by itself.

Triton 2.51 makes two things delicate. Whenever it loads an ensemble it looks at the models behind it, and loads those
anew beside which a file has changed: so nobody may write byte code there. And where two processes of one model and
version have metrics of their own (one that leaves, and one that comes), it frees the metrics of both with the first,
and crashes: so each loading has another version number in Triton than the one before, by which its metrics differ. The
numbers come again, as what Triton counts of a version stays on its page for ever.
"""

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from tritonrank.artifacts import MANIFEST
from tritonrank.errors import ArtifactError
from tritonrank.serve.model_names import ENSEMBLE
from tritonrank.serve.run_folder import BYTE_CODE_FOLDER
from tritonrank.serve.sources import RECOMMEND, serving_sources

CONFIG = "config.pbtxt"
STEWARD = "steward"
VERSION = "1"
"""The folder of a model's files in a repository."""
QUEUE = "queue"
"""Parameter of models of steps: the folder in which they tell each other how busy they are."""


def model_names(repository: Path) -> list[str]:
    """The models of a repository, ensembles last: what they need is there then."""
    names = [path.parent.name for path in repository.glob(f"*/{CONFIG}")]
    return sorted(names, key=lambda name: (name == ENSEMBLE, name))


def own_models(repository: Path) -> list[str]:
    """Those that each version has for itself, by their names in the repository."""
    return [name for name in model_names(repository) if name not in (ENSEMBLE, RECOMMEND)]


def names_of(repository: Path, version: str) -> dict[str, str]:
    """By the name in the repository: that beside others."""
    return {name: f"{name}-{version}" for name in (*own_models(repository), ENSEMBLE)}


def lay_out(repository: Path, names: Mapping[str, str], models: Path, number: int) -> None:
    """Link models under other names; what is half there from an earlier try is replaced.

    Args:
        repository: whose models.
        names: by the name in the repository, the new one. Other models of it keep their names wherever they are named.
        models: folder of the server's models.
        number: of their version in Triton; not that of the loading before.

    Raises:
        ArtifactError: a config cannot be read.
    """
    for name, new_name in names.items():
        target = models / new_name
        take_away(models, [new_name])
        target.mkdir()
        for entry in (repository / name).resolve().iterdir():
            if entry.name != CONFIG:
                _link(entry, target / (str(number) if entry.name == VERSION else entry.name))
        if (repository / MANIFEST).is_file():
            (target / MANIFEST).symlink_to(repository.resolve() / MANIFEST)  # says when it was assembled
        write_config(numbered(renamed(read_config(repository / name), names), number), target)


def lay_out_steward(models: Path) -> None:
    """Put the steward (``control.py``) among the models."""
    lay_out(serving_sources(), {STEWARD: STEWARD}, models, 1)


def point(ensemble: pb.ModelConfig, models: Path, name: str = ENSEMBLE) -> None:
    """Let a name mean what an ensemble is, from the next loading on.

    Args:
        ensemble: of a version.
        models: folder of the server's models.
        name: the ensemble's other name.
    """
    target = models / name
    if target.is_symlink():
        target.unlink()
    (target / "1").mkdir(parents=True, exist_ok=True)
    config = pb.ModelConfig()
    config.CopyFrom(ensemble)
    config.name = name
    write_config(config, target)


def lay_out_recommend(repository: Path, models: Path, number: int) -> None:
    """Let ``recommend`` be that of a repository from the next loading on. The one before stays until
    ``forget_recommend``: it imports and opens files when it first needs them."""
    target = models / RECOMMEND
    target.mkdir(exist_ok=True)
    shutil.rmtree(target / str(number), ignore_errors=True)
    _link((repository / RECOMMEND / VERSION).resolve(), target / str(number))
    write_config(numbered(read_config(repository / RECOMMEND), number), target)


def forget_recommend(models: Path, number: int) -> None:
    """Remove all versions of ``recommend`` but one."""
    for folder in (models / RECOMMEND).glob("[0-9]*"):
        if folder.name != str(number):
            shutil.rmtree(folder, ignore_errors=True)


def numbered(config: pb.ModelConfig, number: int) -> pb.ModelConfig:
    """Have this version loaded, and no other."""
    config.version_policy.specific.versions[:] = [number]
    return config


def keep_byte_code_out(folder: Path) -> None:
    """Let Python write none below a folder of links: an empty file has the place of each byte code folder."""
    if folder.is_symlink() or not folder.is_dir():
        return
    if any(folder.glob("*.py")):
        (folder / BYTE_CODE_FOLDER).touch()
    for entry in folder.iterdir():
        keep_byte_code_out(entry)


def renamed(config: pb.ModelConfig, names: Mapping[str, str]) -> pb.ModelConfig:
    """A config with the new names of its model and of those that it asks."""
    made = pb.ModelConfig()
    made.CopyFrom(config)
    made.name = names.get(config.name, config.name)
    for step in made.ensemble_scheduling.step:
        step.model_name = names.get(step.model_name, step.model_name)
    if QUEUE in made.parameters:
        queue = made.parameters[QUEUE].string_value
        made.parameters[QUEUE].string_value = names.get(queue, queue)
    return made


def read_config(model: Path) -> pb.ModelConfig:
    """The config of a model's folder.

    Raises:
        ArtifactError: it cannot be read.
    """
    path = model / CONFIG
    try:
        return text_format.Parse(path.read_text(encoding="utf-8"), pb.ModelConfig())
    except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
        raise ArtifactError(
            f"{path}: not a model's config ({error}). Build it again: tritonrank build RECIPE"
        ) from None


def write_config(config: pb.ModelConfig, target: Path) -> None:
    """At once: the server may read at any moment."""
    draft = target.parent / f".{target.name}.{CONFIG}"
    draft.write_text(text_format.MessageToString(config), encoding="utf-8")
    draft.replace(target / CONFIG)


def take_away(models: Path, names: Iterable[str]) -> None:
    """Remove models' folders of links; the files that they led to stay."""
    for name in names:
        path = models / name
        if path.is_symlink():
            path.unlink()
        else:
            shutil.rmtree(path, ignore_errors=True)


def _link(source: Path, target: Path) -> None:
    """A link; of a folder with Python code a folder of links, without byte code. Other folders are one link each:
    engines that read weights beside their graph see plain files."""
    if source.name == BYTE_CODE_FOLDER:
        return
    if not source.is_dir() or not any(source.rglob("*.py")):
        target.symlink_to(source)
        return
    target.mkdir()
    for entry in source.iterdir():
        _link(entry, target / entry.name)
    keep_byte_code_out(target)
