"""A virtual environment for each peer below .tools/peers/, so that no peer decides another's versions.

An environment is made once and again when its requirement file changes. The requirement files pin everything down to
the last dependency, as installed when the published figures were measured.
"""

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

REQUIREMENTS = Path(__file__).parent / "requirements"
STAMP = ".requirements.sha256"
INSTALL_SECONDS = 1800.0
QUERY_SECONDS = 60.0

_VERSIONS = """
import importlib.metadata, json, platform, sys
found = {"python": platform.python_version()}
for name in sys.argv[1:]:
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
print(json.dumps(found))
"""


class EnvironmentFaultError(RuntimeError):
    """An environment could not be made."""


@dataclass(frozen=True)
class Environment:
    """A Python with a peer's packages."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    def command(self, name: str) -> Path:
        """A program that a package installed."""
        return self.folder / "bin" / name

    def versions(self, packages: Sequence[str]) -> dict[str, str]:
        """Versions of Python and of those packages that are installed."""
        command = [str(self.python), "-c", _VERSIONS, *packages]
        output = subprocess.run(command, check=True, capture_output=True, text=True, timeout=QUERY_SECONDS).stdout
        versions: dict[str, str] = json.loads(output)
        return versions

    def megabytes(self) -> float:
        """Size on disk."""
        return sum(path.lstat().st_size for path in self.folder.rglob("*") if not path.is_symlink()) / 1e6


def own_environment() -> Environment:
    """The environment this program runs in, where our own packages and Triton are."""
    return Environment(Path(sys.prefix))


def ensure_environment(name: str, root: Path) -> Environment:
    """The environment ``root/name`` with requirements/``name``.txt, made if it is missing or outdated.

    Raises:
        EnvironmentFaultError: something cannot be installed; with pip's last lines.
    """
    requirements = REQUIREMENTS / f"{name}.txt"
    wanted = hashlib.sha256(requirements.read_bytes()).hexdigest()
    environment = Environment(root / name)
    stamp = environment.folder / STAMP
    if stamp.is_file() and stamp.read_text() == wanted:
        return environment
    shutil.rmtree(environment.folder, ignore_errors=True)
    run_to_end([sys.executable, "-m", "venv", str(environment.folder)], INSTALL_SECONDS)
    pip = [str(environment.python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    run_to_end([*pip, "--requirement", str(requirements)], INSTALL_SECONDS)
    stamp.write_text(wanted)
    return environment


def run_to_end(command: Sequence[str], seconds: float, variables: Mapping[str, str] | None = None) -> str:
    """Run a program that installs, converts or measures something; gives what it printed.

    Raises:
        EnvironmentFaultError: it failed or took too long; with its last lines.
    """
    what = " ".join(command[1:4])
    try:
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=seconds, env=variables and dict(variables)
        )
    except subprocess.TimeoutExpired:
        raise EnvironmentFaultError(f"{what} took more than {seconds:g} s") from None
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()[-5:]
        raise EnvironmentFaultError("\n".join([f"{what} failed:", *lines]))
    return done.stdout
