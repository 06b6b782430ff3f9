"""What the models of Triton's Python backend share: reading tensors, metrics, and an answer to every request.

Whatever goes wrong in one request is answered to that request alone. Triton would put a traceback with file paths into
the answers of a whole batch; here the caller gets the kind of the error, and the server's log the rest.
"""

import gc
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import Any

LONGEST_LOGGED = 300
"""Characters of an error's own words that are logged, escaped: they may quote what a client sent."""
EVERY_SECONDS = 0.1
"""Between two times that the server is told of counts. Each costs it and us 40 us of CPU for every metric that changed.
At 0.5 s Triton 2.51 was lost when a version that had just been taken away was followed by one that could not be loaded
(docs/log.md)."""
_FAMILIES: list[Any] = []
"""Of this process's model."""


def array(request: Any, name: str) -> Any:
    """A tensor of a request as NumPy has it; None where the request does not have it."""
    tensor = _pb_utils().get_input_tensor_by_name(request, name)
    return None if tensor is None else tensor.as_numpy()


def invalid(message: str) -> Any:
    """The answer to a request that is wrong; the message begins with the tensor's name."""
    return failure(message, _pb_utils().TritonError.INVALID_ARG)


def unavailable(message: str) -> Any:
    """The answer to a request that cannot be done now, or not in time."""
    return failure(message, _pb_utils().TritonError.UNAVAILABLE)


def cancelled() -> Any:
    """The answer that nobody waits for."""
    return failure("the client cancelled the request", _pb_utils().TritonError.CANCELLED)


def unexpected(error: BaseException, what: str) -> Any:
    """The answer when something failed that should not: its kind; frames and words go to the server's log.

    Args:
        error: what was raised.
        what: failed, such as ``tokenize``.
    """
    frames = " <- ".join(
        f"{frame.filename}:{frame.lineno} {frame.name}" for frame in reversed(traceback.extract_tb(error.__traceback__))
    )
    kind = type(error).__name__
    _pb_utils().Logger.log_error(f"{what}: {kind} {str(error)[:LONGEST_LOGGED]!r} at {frames}")
    return failure(f"{what}: {kind}; the server's log has the details", _pb_utils().TritonError.INTERNAL)


def failure(message: str, code: int) -> Any:
    pb_utils = _pb_utils()
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))


def family(name: str, description: str, kind: str = "COUNTER") -> Any:
    """A family of metrics; it must outlive its metrics, so keep both."""
    families = _pb_utils().MetricFamily
    made = families(name=name, description=description, kind=getattr(families, kind))
    _FAMILIES.append(made)
    return made


def let_go(model: Any) -> None:
    """Let go of all that a model holds, as the last thing that it does: its metrics leave the server's page with that.

    Triton goes on to show those of a model that was unloaded as they were last, and a queue that was long then would be
    added to those of today. Metrics go before their families, which Triton wants so.
    """
    vars(model).clear()
    gc.collect()
    _FAMILIES.clear()
    gc.collect()


def raise_by(metric: Any, amount: float) -> None:
    """Count; nothing is told to the server, which takes a while, where nothing is to be counted."""
    if amount:
        metric.increment(amount)


class Tally:
    """Counts that reach the server's metrics page a moment later, from a thread of its own.

    Telling the server takes a while for each metric, which no request should wait for; so it is told ``EVERY_SECONDS``
    at most, and under load many counts become one.
    """

    def __init__(self) -> None:
        self._kept: list[Any] = []
        self._amounts: dict[int, tuple[Any, float]] = {}
        self._followed: list[tuple[Sequence[Any], Callable[[], Sequence[float]]]] = []
        self._changed = threading.Condition()
        self._is_steady = True
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._tell, name="tally", daemon=True)
        self._thread.start()

    def keep(self, one: Any) -> Any:
        """A family of metrics, which must outlive them."""
        self._kept.append(one)
        return one

    def follow(self, metrics: Sequence[Any], values: Callable[[], Sequence[float]]) -> None:
        """Tell the server of values now and when something was counted, and then until they change no more.

        Args:
            metrics: they begin at 0.
            values: asked for all of them at once, from the tally's thread.
        """
        with self._changed:
            self._followed.append((metrics, values))
            self._is_steady = False
            self._changed.notify()

    def add(self, metric: Any, amount: float) -> None:
        """Count."""
        if not amount:
            return
        with self._changed:
            _, before = self._amounts.get(id(metric), (metric, 0.0))
            self._amounts[id(metric)] = metric, before + amount
            self._changed.notify()

    def close(self) -> None:
        """Tell what is left, and end."""
        self._closed.set()
        with self._changed:
            self._changed.notify()
        self._thread.join()

    def _tell(self) -> None:
        told: dict[int, float] = {}
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._amounts or not self._is_steady or self._closed.is_set())
                if self._closed.is_set() and not self._amounts:
                    return
                self._is_steady = True
                amounts, self._amounts = self._amounts, {}
                followed = [*self._followed]
            for metric, amount in amounts.values():
                metric.increment(amount)
            for metrics, values in followed:
                for metric, value in zip(metrics, values(), strict=True):
                    if change := value - told.get(id(metric), 0.0):
                        metric.increment(change)
                        told[id(metric)], self._is_steady = value, False
            # Not on the condition: each count would wake this thread, which then wants Python's lock for nothing.
            self._closed.wait(EVERY_SECONDS)


def _pb_utils() -> Any:
    import triton_python_backend_utils  # only inside Triton

    return triton_python_backend_utils
