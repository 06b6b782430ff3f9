"""The runtime of an artifact, loaded from the copy beside its model.

An artifact brings the code that it was judged with, `tritonrank_runtime`, and two artifacts may bring two releases of
it. So a copy is loaded under its own name while a lock is held, and put aside afterwards: what the process imports
under that name, before or later, is what it would be without us. Nothing else in the folder can be imported, and byte
code that lies there is not run. The copy's code runs with the rights of this process, as it would in Triton: open
artifacts whose origin you trust.
"""

import importlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, TypeVar

Opened = TypeVar("Opened")

RUNTIME = "tritonrank_runtime"
ENTRY = f"{RUNTIME}.in_process"
INSTALL = "pip install 'tritonrank[onnxruntime]' tokenizers"

_lock = threading.Lock()


def open_with_copy(beside: Path, open_: Callable[[Any], Opened]) -> Opened:
    """What `open_` makes of the entry module of the copy in `beside`; its own imports come from that copy, too.

    Raises:
        ValueError: there is no copy that can be used without a server.
        ModuleNotFoundError: a package that the copy needs is not installed; the message has the command.
    """
    if not (beside / RUNTIME / "in_process.py").is_file():
        raise ValueError(
            f"{beside}: its {RUNTIME} is of a release that ranks in a server only; assemble the artifact again "
            "(tritonrank assemble RECIPE), or serve it (tritonrank serve) and open grpc://127.0.0.1:8001"
        )
    with _lock, _alone(beside), _naming_what_is_missing():
        return open_(importlib.import_module(ENTRY))


def open_with_installed(open_: Callable[[Any], Opened]) -> Opened:
    """What `open_` makes of the entry module that is installed.

    Raises:
        ModuleNotFoundError: the runtime, or a package that it needs, is not installed.
    """
    with _naming_what_is_missing():
        return open_(importlib.import_module(ENTRY))


@contextmanager
def _naming_what_is_missing() -> Iterator[None]:
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # onnxruntime 1.29 and later would call its maker
    try:
        yield
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"to rank in this process, {error.name} is needed and not installed in {sys.prefix}: {INSTALL}",
            name=error.name,
        ) from error


@contextmanager
def _alone(beside: Path) -> Iterator[None]:
    """While it lasts, the runtime's name means the copy; afterwards what it meant before."""
    aside = _take_modules()
    byte_code = sys.dont_write_bytecode, sys.pycache_prefix
    # An artifact is not to be changed, and the hash check knows nothing of byte code: none is written, none is found.
    sys.dont_write_bytecode, sys.pycache_prefix = True, os.devnull
    try:
        package = beside / RUNTIME
        spec = spec_from_file_location(RUNTIME, package / "__init__.py", submodule_search_locations=[str(package)])
        assert spec is not None
        assert spec.loader is not None
        sys.modules[RUNTIME] = module_from_spec(spec)
        spec.loader.exec_module(sys.modules[RUNTIME])
        yield
    finally:
        sys.dont_write_bytecode, sys.pycache_prefix = byte_code
        _take_modules()
        sys.modules.update(aside)


def _take_modules() -> dict[str, Any]:
    names = [name for name in sys.modules if name == RUNTIME or name.startswith(f"{RUNTIME}.")]
    return {name: sys.modules.pop(name) for name in names}
