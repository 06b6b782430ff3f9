"""The compiled library of the native engine: found beside its sources, in the user's cache, or compiled into it.

A library is named after a hash of the sources and the machine, so that one of other sources is never loaded. Compiling
takes some seconds, once per user and compiler; ``compile_library`` writes one that can be shipped beside the sources.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from tritonrank_runtime.engine import ExecutorError

SOURCES = Path(__file__).parent
FLAGS = (
    *("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-w"),
    # A row's scores must not depend on what the compiler makes of a sum at each place: products and sums are fused
    # where the sources say so, and nowhere else.
    *("-ffp-contract=off", "-fno-math-errno"),
)
AVX512_FLAGS = (
    *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni", "-mfma", "-mavx2"),
    "-mprefer-vector-width=512",
)
X86_FLAGS = {
    "kernels_avx2.cpp": ("-mavx2", "-mfma"),
    "kernels_avx512.cpp": AVX512_FLAGS,
    "kernels_avx512_bf16.cpp": (*AVX512_FLAGS, "-mavx512bf16"),
}
"""Kernels for instruction sets of x86 alone; the library asks the processor before it uses them."""
COMPILE_SECONDS = 300


class LinearStruct(ctypes.Structure):
    """TritonrankLinear of api.h."""

    _fields_ = (
        ("weight", ctypes.c_void_p),
        ("kind", ctypes.c_int32),
        ("inputs", ctypes.c_int32),
        ("outputs", ctypes.c_int32),
        ("rounds_residual", ctypes.c_int32),
        ("bias", ctypes.c_void_p),
        ("weight_scale", ctypes.c_void_p),
        ("input_scale", ctypes.c_void_p),
        ("input_zero_point", ctypes.c_void_p),
        ("input_factor", ctypes.c_void_p),
    )


class ModelStruct(ctypes.Structure):
    """TritonrankModel of api.h."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("layers", "hidden_size", "embedding_size", "heads", "head_size")),
        *((name, ctypes.c_int32) for name in ("intermediate_size", "vocabulary", "positions", "segments")),
        *((name, ctypes.c_int32) for name in ("first_position", "context_positions")),
        *((name, ctypes.c_int32) for name in ("activation", "pooler_activation")),
        ("epsilon", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in ("words", "position_table", "segment_table")),
        ("embedding_norm", ctypes.c_void_p * 2),
        ("norms", ctypes.c_void_p),
        ("linears", ctypes.c_void_p),
        *((name, LinearStruct) for name in ("project", "pooler", "head")),
    )


class RowsStruct(ctypes.Structure):
    """TritonrankRows of api.h."""

    _fields_ = (
        ("count", ctypes.c_int64),
        ("starts", ctypes.c_void_p),
        ("ids", ctypes.c_void_p),
        ("types", ctypes.c_void_p),
        ("type", ctypes.c_int32),
        ("position", ctypes.c_int32),
    )


@cache
def load_library() -> ctypes.CDLL:
    """The library, compiled first where there is none.

    Raises:
        ExecutorError: there is none and no compiler, or the compiler fails.
    """
    path = SOURCES / library_name()
    if not path.is_file():
        path = cached_library()
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise ExecutorError(f"{path}: not loaded ({error}); remove it, and it is compiled anew: rm {path}") from None
    pointer, text = ctypes.c_void_p, ctypes.c_char_p
    library.tritonrank_kernels.restype, library.tritonrank_kernels.argtypes = text, [text]
    library.tritonrank_open.restype, library.tritonrank_open.argtypes = pointer, [pointer, text]
    library.tritonrank_close.restype, library.tritonrank_close.argtypes = None, [pointer]
    library.tritonrank_context.argtypes = [pointer, pointer, pointer, pointer]
    library.tritonrank_score.argtypes = [pointer, pointer, pointer, pointer, ctypes.c_int64, pointer]
    return library


def kernels_here(name: str = "") -> str:
    """The kernels that this processor runs: those of a name, "" where it does not run them; by default the best."""
    found = load_library().tritonrank_kernels(name.encode() or None)
    return found.decode() if found else ""


def library_name() -> str:
    """Of the library that belongs to these sources, on this kind of machine."""
    return f"tritonrank_native-{_digest(*_source_bytes(), platform.machine().encode())}.so"


def cached_library() -> Path:
    """The library in the user's cache, compiled first where it is not there.

    Raises:
        ExecutorError: as ``load_library``.
    """
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tritonrank"
    version = subprocess.run([_compiler(), "--version"], capture_output=True, timeout=60, check=False).stdout
    path = root / f"{Path(library_name()).stem}-{_digest(version)}.so"
    if not path.is_file():
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ExecutorError(
                f"{root}: the compiled library cannot be kept there ({error.strerror}); name another folder: export "
                "XDG_CACHE_HOME=FOLDER"
            ) from None
        compile_library(path)
    return path


def compile_library(path: Path) -> None:
    """Compile the sources into a library, which appears whole or not at all.

    Raises:
        ExecutorError: there is no compiler, or it fails.
    """
    compiler = _compiler()
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    sources = [one for one in sorted(SOURCES.glob("*.cpp")) if is_x86 or one.name not in X86_FLAGS]
    flags = [*FLAGS, *(["-DTRITONRANK_X86"] if is_x86 else [])]
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch, ThreadPoolExecutor() as threads:
        objects = [f"{scratch}/{one.stem}.o" for one in sources]
        commands = [
            [compiler, *flags, *X86_FLAGS.get(one.name, ()), "-c", str(one), "-o", to]
            for one, to in zip(sources, objects, strict=True)
        ]
        list(threads.map(_compile, commands))
        made = f"{scratch}/library.so"
        _compile([compiler, "-shared", "-static-libstdc++", "-static-libgcc", "-o", made, *objects])
        Path(made).replace(path)


def _compile(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise ExecutorError(f"not compiled within {COMPILE_SECONDS} s; try it: {' '.join(command)}") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines()[:5]
        raise ExecutorError(f"not compiled ({'; '.join(lines)}); try it: {' '.join(command)}")


def _compiler() -> str:
    name = os.environ.get("CXX") or "c++"
    found = shutil.which(name)
    if found is None:
        raise ExecutorError(
            f"the native engine is compiled once, and {sys.prefix} finds no C++ compiler {name}: apt-get install g++"
        )
    return found


def _source_bytes() -> list[bytes]:
    paths = sorted(path for path in SOURCES.iterdir() if path.suffix in (".cpp", ".h", ".inc"))
    return [part for path in paths for part in (path.name.encode(), path.read_bytes())]


def _digest(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()[:16]
