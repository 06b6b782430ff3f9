"""No server: the engine of an artifact in this process, behind the interface of a protocol.

The folder's own runtime does the work (`_runtime_copy.py`). Here its errors become ours, its answers look like
tritonclient's, and a forked child opens the folder again, because the threads of an engine do not outlive a fork.
"""

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from ._artifact_folder import ArtifactFolder
from ._errors import DeadlineExceeded, InvalidRequest, Overloaded, ServerFault
from ._fork import keep_inherited, watch_forks
from ._options import Settings
from ._recommend import Question
from ._runtime_copy import open_with_copy, open_with_installed
from ._wire import RankRequest

NEWER_OUTPUTS = {"unscored": np.object_, "fields": np.object_, "unknown_tokens": np.int32}
"""What a runtime beside an older artifact does not have."""
OPTIONS = ("top_k", "max_item_tokens", "truncate_left", "strict")
MOST_WAITING_THREADS = 65
"""One request computes; as many as a recipe's queue holds wait for it, each in a thread of its own."""


class InProcessTransport:
    """See `Transport`. The folder is opened when this is made."""

    def __init__(self, settings: Settings) -> None:
        self._threads = settings.threads
        self._folder = ArtifactFolder.find(settings.folder)
        self._folder.check_files()
        self._lock = threading.Lock()
        self._entry, self._ranker = self._open()
        watch_forks(self)

    def encode(self, request: RankRequest) -> dict[str, list[bytes]]:
        return {tensor.name: tensor.values.tolist() for tensor in request.tensors}

    def infer(
        self,
        inputs: dict[str, list[Any]],
        outputs: Sequence[str],
        request_id: str,
        seconds: float,
        abandoned: threading.Event | None = None,
    ) -> "LocalAnswer":
        """The answer of `rank`. `abandoned` stops the work when it is set."""
        entry, ranker = self._opened()
        if unknown := (inputs.keys() - entry.Request.__dataclass_fields__) | (
            NEWER_OUTPUTS.keys() & set(outputs) - entry.Ranking.__dataclass_fields__.keys()
        ):
            raise InvalidRequest(
                f"{self._folder.path}: assembled by a release that knows no {min(unknown)!r}. Assemble it again: "
                "tritonrank build RECIPE"
            )
        request = entry.Request(
            query=inputs["query"][0],
            history=inputs["history"],
            items=inputs["items"],
            item_ids=inputs.get("item_ids"),
            **{name: inputs[name][0] for name in OPTIONS if name in inputs},
        )
        is_wanted = (lambda: not abandoned.is_set()) if abandoned is not None else (lambda: True)
        try:
            ranking = ranker.rank(request, seconds, is_wanted)
        except entry.INVALID_REQUEST as error:
            raise InvalidRequest(f"{self._folder.path}: {error}. Mend the request before sending it again.") from error
        except entry.BusyError as error:
            raise Overloaded(f"{self._folder.path}: {error}. Ask for fewer at once.", retryable=True) from error
        except entry.LateError as error:
            raise DeadlineExceeded(
                f"{self._folder.path}: {error}. Send fewer items, ask for fewer at once, or allow a longer timeout= "
                "and serve.deadline_ms."
            ) from error
        except Exception as error:
            raise ServerFault(f"{self._folder.path}: the engine failed ({type(error).__name__}: {error})") from error
        return LocalAnswer(ranking, ranker.artifact)

    def ask(self, question: Question, request_id: str, seconds: float) -> bytes:
        raise question.only_a_gateway(str(self._folder.path))

    def server_live(self, seconds: float) -> bool:
        return True

    def server_ready(self, seconds: float) -> bool:
        return True

    def model_ready(self, seconds: float) -> bool:
        self._opened()
        return True

    def metadata(self, seconds: float) -> Any:
        return self._folder.metadata()

    def config(self, seconds: float) -> Any:
        return self._folder.config()

    def is_triton(self, seconds: float) -> bool:
        return False

    def close(self) -> None:
        """Let go of the engine; a call that is still running keeps it to its end."""
        self._ranker = None

    def before_fork(self, deadline: float) -> None:
        """Nothing: the child does not use what a thread is in the middle of."""

    def after_fork_in_parent(self) -> None:
        """Nothing was changed."""

    def after_fork_in_child(self) -> None:
        keep_inherited(self._ranker, self._lock)
        self._ranker, self._lock = None, threading.Lock()

    def _opened(self) -> tuple[Any, Any]:
        with self._lock:
            if self._ranker is None:
                self._entry, self._ranker = self._open()
            return self._entry, self._ranker

    def _open(self) -> tuple[Any, Any]:
        folder, threads = self._folder, self._threads
        if not folder.is_repository:
            return open_with_installed(lambda entry: (entry, entry.open_model(folder.path, threads)))
        tokenize, score = folder.parameters(folder.reader), folder.parameters(folder.scorer)
        return open_with_copy(
            folder.path / folder.scorer / "1",
            lambda entry: (entry, entry.open_repository(folder.path, tokenize, score, threads)),
        )


class AsyncInProcessTransport:
    """See `AsyncTransport`: the blocking one in threads of its own, so that the loop goes on."""

    def __init__(self, settings: Settings) -> None:
        self._blocking = InProcessTransport(settings)
        self._threads = ThreadPoolExecutor(MOST_WAITING_THREADS, thread_name_prefix="tritonrank-in-process")

    def encode(self, request: RankRequest) -> dict[str, list[bytes]]:
        return self._blocking.encode(request)

    async def infer(
        self, inputs: dict[str, list[Any]], outputs: Sequence[str], request_id: str, seconds: float
    ) -> "LocalAnswer":
        abandoned = threading.Event()
        infer = partial(self._blocking.infer, inputs, outputs, request_id, seconds, abandoned)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, infer)
        except asyncio.CancelledError:
            abandoned.set()
            raise

    async def ask(self, question: Question, request_id: str, seconds: float) -> bytes:
        return self._blocking.ask(question, request_id, seconds)

    async def server_live(self, seconds: float) -> bool:
        return True

    async def server_ready(self, seconds: float) -> bool:
        return True

    async def model_ready(self, seconds: float) -> bool:
        return self._blocking.model_ready(seconds)

    async def metadata(self, seconds: float) -> Any:
        return self._blocking.metadata(seconds)

    async def config(self, seconds: float) -> Any:
        return self._blocking.config(seconds)

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._blocking.close()


class LocalAnswer:
    """A ranking as tritonclient's InferResult would hand it over."""

    def __init__(self, ranking: Any, artifact: str) -> None:
        self._outputs: dict[str, npt.NDArray[Any]] = {
            "indices": ranking.indices,
            "scores": ranking.scores,
            "artifact": np.array([artifact.encode()], dtype=np.object_),
            "item_tokens": ranking.item_tokens,
            "truncated": ranking.truncated,
            "context_tokens": np.array([ranking.context_tokens], dtype=np.int32),
        }
        for name in NEWER_OUTPUTS.keys() & ranking.__dataclass_fields__.keys():
            self._outputs[name] = np.atleast_1d(np.array(getattr(ranking, name), dtype=NEWER_OUTPUTS[name]))

    def as_numpy(self, name: str) -> npt.NDArray[Any] | None:
        return self._outputs.get(name)
