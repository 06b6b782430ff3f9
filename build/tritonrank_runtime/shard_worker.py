"""The process of one rank: runs its share when it is told to, and ends when nobody can tell it any more.

``shard_workers.py`` starts this module as a program, with one argument: JSON that names the folder, the rank and the
file descriptors that it inherits. Whatever ends the program that started it (a stop, a crash, ``kill -9``) closes the
control socket, and that ends this process.
"""

import json
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tritonrank_runtime.all_reduce import AllReduce, PeerError, SharedBuffer
from tritonrank_runtime.shard_runner import ShardRunner, read_shards

if TYPE_CHECKING:
    from tritonrank_runtime.torch_ranks import TorchRank

LARGEST_MESSAGE = 65_536
LONGEST_ERROR = 4_000
OFFSET_MULTIPLE = 64


def main(settings: dict[str, Any]) -> None:
    """Load, say so, and serve runs until the control socket ends.

    Args:
        settings: folder, rank; torch: device, meeting and state_bytes of a ``TorchRank``; descriptors: control, inputs,
            outputs, peers (by rank), places (of each rank).
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; who started this one decides
    control = socket.socket(fileno=settings["control"])
    inputs, outputs = SharedBuffer(settings["inputs"]), SharedBuffer(settings["outputs"])
    peers = {int(rank): socket.socket(fileno=file) for rank, file in settings["peers"].items()}
    places = [[SharedBuffer(file) for file in files] for files in settings["places"]]
    all_reduce = AllReduce(settings["rank"], peers, places)
    runner = _open_runner(settings, all_reduce)
    _send(control, {"ready": True})
    while message := control.recv(LARGEST_MESSAGE):
        order = json.loads(message)
        all_reduce.begin(order["run"])
        feed = {name: inputs.read(np.dtype(dtype), shape, at) for name, dtype, shape, at in order["inputs"]}
        try:
            found = runner.run(order["graph"], feed)
        except PeerError as error:
            _leave(all_reduce)
            answer = {"error": str(error), "is_peers": True}
        except Exception as error:  # noqa: BLE001 - the other ranks wait: whatever fails here has to be told
            _leave(all_reduce)
            answer = {"error": str(error)[:LONGEST_ERROR], "is_peers": False}
        else:
            answer = {"outputs": _write(outputs, found)}
        _send(control, {"run": order["run"]} | answer)


def _open_runner(settings: dict[str, Any], all_reduce: AllReduce) -> "ShardRunner | TorchRank":
    """The segments of the rank, or its network: ``shards.json`` says which."""
    folder, rank = Path(settings["folder"]), settings["rank"]
    shards = read_shards(folder)
    if shards.get("executor") != "torch":
        from tritonrank_runtime.sessions import open_session

        return ShardRunner(folder, rank, open_session, all_reduce)
    from tritonrank_runtime.torch_ranks import TorchRank

    return TorchRank(folder, rank, shards["ranks"], **settings["torch"])


def _leave(all_reduce: AllReduce) -> None:
    with suppress(PeerError):  # who is gone need not be told
        all_reduce.leave()


def _write(buffer: SharedBuffer, tensors: dict[str, Any]) -> list[Any]:
    described, offset = [], 0
    for name, tensor in tensors.items():
        buffer.write(tensor, offset)
        described.append([name, tensor.dtype.str, tensor.shape, offset])
        offset += -(-tensor.nbytes // OFFSET_MULTIPLE) * OFFSET_MULTIPLE
    return described


def _send(control: socket.socket, answer: dict[str, Any]) -> None:
    try:
        control.send(json.dumps(answer).encode())
    except OSError:
        sys.exit(0)  # nobody is there to hear it


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
