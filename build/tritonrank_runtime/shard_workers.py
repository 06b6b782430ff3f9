"""Starts one process per rank, hands them work, watches them, and stops them.

To an engine the group looks like sessions of the whole graphs (``graphs``). A run needs all ranks, so when one dies the
run fails, all are started again at once, and the next run waits until they have loaded. Processes and memory cannot
outlive this object: a worker ends when its control socket does, and the shared memory has no name.
"""

import json
import os
import selectors
import socket
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from tritonrank_runtime.all_reduce import PLACES, SharedBuffer, memory_file
from tritonrank_runtime.architecture import EngineOptions
from tritonrank_runtime.engine import Engine, EngineLostError
from tritonrank_runtime.engines import engine_of
from tritonrank_runtime.shard_runner import SHARDS_FILE, read_shards

PACKAGES = Path(__file__).parents[1]
WORKER = "tritonrank_runtime.shard_worker"
LARGEST_MESSAGE = 65_536
OFFSET_MULTIPLE = 64
START_SECONDS = 120.0
RUN_SECONDS = 60.0
"""A run that takes longer than this hangs: the longest that a request allows is a fraction of it."""
STOP_SECONDS = 5.0


def is_sharded(folder: Path) -> bool:
    """Whether a folder holds shards."""
    return (folder / SHARDS_FILE).is_file()


def sharded_engine(workers: "ShardWorkers", **options: Any) -> Engine:
    """The engine around the processes; options are those of ``EngineOptions``."""
    # One run at a time, and no more runs than lengths ask for: each would add sums between the processes.
    return engine_of(workers.graphs(), EngineOptions(threads=1, shares=1, is_gpu=workers.is_gpu, **options))


class _Input(NamedTuple):
    name: str


class ShardedGraph:
    """One whole graph, computed by all ranks; looks like an onnxruntime.InferenceSession."""

    def __init__(self, workers: "ShardWorkers", name: str, inputs: Sequence[str]) -> None:
        self._workers, self._name = workers, name
        self._inputs = [_Input(tensor) for tensor in inputs]

    def get_inputs(self) -> Sequence[_Input]:
        return self._inputs

    def run(self, output_names: Sequence[str], input_feed: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Whole inputs -> whole outputs; raises what ``ShardWorkers.run`` does."""
        found = self._workers.run(self._name, input_feed)
        return [found[name] for name in output_names]


class ShardWorkers:
    """The processes of all ranks of one folder of shards; use it as a context, or close it.

    Args:
        folder: holds shards.json, and the segments or the weights of the ranks.
        run_seconds: after this a run counts as hung.
        state_bytes: of keys and values that ranks of PyTorch keep on their device at the most.
        device: on which ranks of PyTorch compute; "" is what shards.json says.
    """

    def __init__(self, folder: Path, run_seconds: float = RUN_SECONDS, state_bytes: int = 0, device: str = "") -> None:
        self._folder = folder.resolve()
        shards = read_shards(folder)
        self.ranks = int(shards["ranks"])
        self._of_torch = {"state_bytes": state_bytes, "device": device or shards.get("device", "cpu")}
        self.is_gpu = self._of_torch["device"] != "cpu"
        """Whether every rank has a GPU of its own."""
        self.restarts = 0
        """How often the workers had to be started again."""
        self._graphs = shards["graphs"]
        self._run_seconds = run_seconds
        self._is_closed = False
        self._lock = threading.RLock()
        self._group: _Group | None = None
        self._run = 0
        with self._lock:
            self._start()
            self._wait_until_ready()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def processes(self) -> list[int]:
        """Process ids by rank; empty when they are stopped."""
        with self._lock:
            return [process.pid for process in self._group.processes] if self._group else []

    def graphs(self) -> dict[str, ShardedGraph]:
        """The whole graphs by file name."""
        return {name: ShardedGraph(self, name, graph["inputs"]) for name, graph in self._graphs.items()}

    def close(self) -> None:
        """Stop all workers and wait until they are gone."""
        with self._lock:
            self._is_closed = True
            if self._group is not None:
                self._group.stop(STOP_SECONDS)
                self._group = None

    def run(self, name: str, feed: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Compute one graph; one run at a time.

        Args:
            name: of the graph.
            feed: its inputs, whole.

        Returns:
            all outputs by name, whole.

        Raises:
            EngineLostError: a worker died, hung or cannot be started; the next run may go well.
            RuntimeError: the engines refused the inputs.
        """
        with self._lock:
            if self._is_closed:
                raise RuntimeError(f"{self._folder}: the workers were stopped")
            if self._group is None or self._group.fallen() is not None:
                self._restart()
            self._wait_until_ready()
            assert self._group is not None
            self._run += 1
            try:
                answers = self._group.exchange({"run": self._run, "graph": name}, feed, self._run_seconds)
            except EngineLostError:
                self._restart()
                raise
            errors = sorted((answer for answer in answers if "error" in answer), key=lambda one: bool(one["is_peers"]))
            if errors:
                raise RuntimeError(errors[0]["error"])
            return self._joined(name, self._group.outputs(answers))

    def _joined(self, name: str, by_rank: list[dict[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
        """Shares put together; what is whole on every rank is taken from the first."""
        axes = self._graphs[name]["split_outputs"]
        return {
            output: np.concatenate([found[output] for found in by_rank], axes[output])
            if output in axes
            else first.copy()
            for output, first in by_rank[0].items()
        }

    def _start(self) -> None:
        self._group = _Group(self._folder, self.ranks, self._of_torch)
        self._stop_group = weakref.finalize(self, self._group.stop, 0)  # also when nobody closes this
        for process in self._group.processes:
            threading.Thread(target=_mourn, args=(weakref.ref(self), process), daemon=True).start()

    def _restart(self) -> None:
        self._stop_group()
        self.restarts += 1
        self._start()

    def _wait_until_ready(self) -> None:
        assert self._group is not None
        if not self._group.is_ready:
            try:
                self._group.wait_until_ready(START_SECONDS)
            except EngineLostError:
                self._stop_group()
                self._group = None
                raise

    def _has_fallen(self, process: "subprocess.Popen[bytes]") -> None:
        """A worker ended: start all again, unless that was meant, was seen already, or they never became ready."""
        with self._lock:
            if self._group is not None and process in self._group.processes and self._group.is_ready:
                self._restart()


def _mourn(workers: "weakref.ref[ShardWorkers]", process: "subprocess.Popen[bytes]") -> None:
    process.wait()
    if (alive := workers()) is not None:
        alive._has_fallen(process)


class _Group:
    """One generation of workers with their sockets and memory."""

    def __init__(self, folder: Path, ranks: int, of_torch: Mapping[str, Any]) -> None:
        self.is_ready = False
        self._meeting = tempfile.TemporaryDirectory(prefix="tritonrank-ranks-")
        self._inputs = SharedBuffer(inputs := memory_file("inputs"))
        outputs = [memory_file(f"outputs-{rank}") for rank in range(ranks)]
        self._outputs = [SharedBuffer(file) for file in outputs]
        self._files = [inputs, *outputs]
        places = [[memory_file(f"sum-{rank}-{place}") for place in range(PLACES)] for rank in range(ranks)]
        flat = [file for files in places for file in files]
        pairs = {pair: _socket_pair() for pair in combinations(range(ranks), 2)}
        controls = [_socket_pair() for _ in range(ranks)]
        self._controls = [ours for ours, _ in controls]
        self.processes: list[subprocess.Popen[bytes]] = []
        for rank in range(ranks):
            peers = {other: _end(pairs, rank, other).fileno() for other in range(ranks) if other != rank}
            settings = {
                "folder": str(folder),
                "rank": rank,
                "torch": {**of_torch, "meeting": str(Path(self._meeting.name, "meeting"))},
                "control": controls[rank][1].fileno(),
                "inputs": inputs,
                "outputs": outputs[rank],
                "peers": peers,
                "places": places,
            }
            inherited = [controls[rank][1].fileno(), inputs, outputs[rank], *peers.values(), *flat]
            command = [_python(), "-s", "-m", WORKER, json.dumps(settings)]
            # This very package, whatever else of that name the environment has.
            paths = [str(PACKAGES), *filter(None, [os.environ.get("PYTHONPATH")])]
            environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
            self.processes.append(
                subprocess.Popen(command, pass_fds=inherited, stdin=subprocess.DEVNULL, env=environment)
            )
        # What only workers use is closed here, or a rank would not see another one end.
        for theirs in (*(end for pair in pairs.values() for end in pair), *(theirs for _, theirs in controls)):
            theirs.close()
        for file in flat:
            os.close(file)

    def wait_until_ready(self, seconds: float) -> None:
        self._answers(seconds, "did not load in")
        self.is_ready = True

    def exchange(self, order: dict[str, Any], feed: Mapping[str, NDArray[Any]], seconds: float) -> list[dict[str, Any]]:
        """Give all ranks the same order, and wait for what each answers."""
        described, offset = [], 0
        for name, tensor in feed.items():
            self._inputs.write(tensor, offset)
            described.append([name, tensor.dtype.str, tensor.shape, offset])
            offset += -(-tensor.nbytes // OFFSET_MULTIPLE) * OFFSET_MULTIPLE
        message = json.dumps(order | {"inputs": described}).encode()
        for rank, control in enumerate(self._controls):
            try:
                control.send(message)
            except OSError:
                raise self._lost(rank) from None
        return self._answers(seconds, "did not answer in")

    def outputs(self, answers: list[dict[str, Any]]) -> list[dict[str, NDArray[Any]]]:
        """What each rank wrote; valid until the next exchange."""
        return [
            {name: buffer.read(np.dtype(dtype), shape, at) for name, dtype, shape, at in answer["outputs"]}
            for buffer, answer in zip(self._outputs, answers, strict=True)
        ]

    def fallen(self) -> int | None:
        """The first rank whose process has ended."""
        return next((rank for rank, process in enumerate(self.processes) if process.poll() is not None), None)

    def stop(self, seconds: float) -> None:
        """Let the workers end by themselves for so long, then kill them."""
        self.is_ready = False
        for control in self._controls:
            control.close()
        deadline = time.monotonic() + seconds
        for process in self.processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
            process.kill()
        for process in self.processes:
            process.wait()
        for file in self._files:
            os.close(file)
        self._files = []
        self._meeting.cleanup()

    def _answers(self, seconds: float, what: str) -> list[dict[str, Any]]:
        answers: dict[int, dict[str, Any]] = {}
        deadline = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            for rank, control in enumerate(self._controls):
                selector.register(control, selectors.EVENT_READ, rank)
            while len(answers) < len(self._controls):
                events = selector.select(max(0.0, deadline - time.monotonic()))
                if not events:
                    silent = ", ".join(str(rank) for rank in range(len(self._controls)) if rank not in answers)
                    raise EngineLostError(f"the worker of rank {silent} {what} {seconds:.0f} s")
                for key, _ in events:
                    message = self._receive(key.data)
                    answers[key.data] = json.loads(message)
                    selector.unregister(key.fileobj)
        return [answers[rank] for rank in range(len(self._controls))]

    def _receive(self, rank: int) -> bytes:
        try:
            message = self._controls[rank].recv(LARGEST_MESSAGE)
        except OSError:
            raise self._lost(rank) from None
        if not message:
            raise self._lost(rank)
        return message

    def _lost(self, rank: int) -> EngineLostError:
        with suppress(subprocess.TimeoutExpired):
            self.processes[rank].wait(1)  # its sockets end a moment before it does
        process = self.processes[rank]
        code = process.returncode
        how = f"was ended by signal {-code}" if code is not None and code < 0 else f"ended with exit code {code}"
        return EngineLostError(f"the worker of rank {rank} of {len(self._controls)} (process {process.pid}) {how}")


def _socket_pair() -> tuple[socket.socket, socket.socket]:
    """Whole messages, and an end that shows when the other side is gone."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def _end(pairs: Mapping[tuple[int, int], tuple[socket.socket, socket.socket]], rank: int, other: int) -> socket.socket:
    """A rank's end of the pair that it has with another."""
    return pairs[rank, other][0] if rank < other else pairs[other, rank][1]


def _python() -> str:
    """The interpreter of this environment; inside Triton's stub ``sys.executable`` is not it."""
    return str(Path(sys.prefix, "bin", "python3"))
