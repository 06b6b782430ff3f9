"""Every distribution of an image by version and SHA-256: pip then refuses whatever else an index gives it.

The versions are those of constraints.txt, the set is what the extras of pyproject.toml need under the images' Python.
PyTorch is not in the builder's lock, nor are the CUDA libraries that it brings: where it comes from is an argument of
the build (a CPU's index or PyPI), so its files differ.
"""

import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "locks"
PYTHON = "3.12"
PLATFORM = "x86_64-manylinux_2_28"
FROM_THE_ARGUMENT = ("torch", "triton")
"""Of the builder: with these come the distributions of NVIDIA_PREFIXES."""
NVIDIA_PREFIXES = ("nvidia-cu", "nvidia-nc", "nvidia-nv", "cuda-")
ENTRY = re.compile(r"^([A-Za-z0-9._-]+)==(\S+)((?: --hash=sha256:[0-9a-f]{64})+)$")


@dataclass(frozen=True)
class Image:
    """One image and what is installed into it.

    Attributes:
        name: of the Dockerfile's stage, and of the files made for it.
        extras: of tritonrank.
        leaves_out_torch: the Dockerfile installs it by itself.
    """

    name: str
    extras: tuple[str, ...]
    leaves_out_torch: bool = False


IMAGES = (
    Image("client", ()),
    Image("server-cpu", ("serving", "onnxruntime", "gateway", "store")),
    Image("server-gpu", ("serving", "gateway", "store")),
    Image("gateway", ("serving", "gateway", "recommend", "redis", "tracing", "store")),
    Image("builder", ("build", "serving", "onnxruntime", "gateway", "store"), leaves_out_torch=True),
)


@dataclass(frozen=True)
class Locked:
    """One distribution of a lock."""

    name: str
    version: str
    sha256: tuple[str, ...]
    """of all its files: pip takes the one that fits and compares"""


def path_of(image: Image) -> Path:
    """The lock's file."""
    return FOLDER / f"{image.name}.txt"


def resolve(image: Image) -> str:
    """The lock as it should be; asks the package index that uv is configured for.

    Raises:
        SystemExit: uv found no answer; its words are shown.
    """
    extras = [word for extra in image.extras for word in ("--extra", extra)]
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "pyproject.toml", *extras]
    command += ["--constraint", "constraints.txt", "--python-version", PYTHON, "--python-platform", PLATFORM]
    command += ["--generate-hashes", "--no-header", "--no-annotate", "--no-emit-index-url", "--no-emit-find-links"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{path_of(image).name}: {done.stderr.strip()[-2_000:]}")
    kept = [line for line in _entries(done.stdout) if not (image.leaves_out_torch and _comes_with_torch(line))]
    said = f"# Written by: python -m deploy.supply lock. For the image {image.name}, Python {PYTHON}, {PLATFORM}.\n"
    return said + "".join(line.replace(" --hash=", " \\\n    --hash=") + "\n" for line in kept)


def read(image: Image) -> list[Locked]:
    """The lock as it is.

    Raises:
        ValueError: a line has no version or no hash; it is named.
    """
    path, found = path_of(image), []
    for line in _entries(path.read_text(encoding="utf-8")):
        entry = ENTRY.match(line)
        if entry is None:
            raise ValueError(
                f"{path}: {line[:60]!r}: expected NAME==VERSION and hashes; type: python -m deploy.supply lock"
            )
        found.append(Locked(entry[1], entry[2], tuple(re.findall(r"sha256:([0-9a-f]{64})", entry[3]))))
    return found


def _entries(text: str) -> Sequence[str]:
    """One line per distribution."""
    joined = re.sub(r" ?\\\n\s*", " ", text)
    return [line.strip() for line in joined.splitlines() if line.strip() and not line.startswith("#")]


def _comes_with_torch(line: str) -> bool:
    name = line.partition("==")[0].lower().replace("_", "-")
    return name in FROM_THE_ARGUMENT or name.startswith(NVIDIA_PREFIXES)
