"""Sums over processes of one machine, through shared memory, without a library for it.

Each rank writes its addend where all can read it, tells the others over a socket, waits until all have told it, and
adds up the addends in the order of the ranks: so all ranks hold the same bits. Nobody spins: a rank that waits sleeps
in the kernel, and a rank that dies wakes the others by the end of its sockets. A rank has two places to write to, used
in turn: before it can use the first again, all ranks have finished reading it, or they would not have told it of the
second.
"""

import mmap
import os
import socket
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

PLACES = 2
_MESSAGE = struct.Struct("<q?")
"""Number of the run; whether the rank goes on (False: it failed and leaves the run)."""


class PeerError(RuntimeError):
    """Another rank failed or died in this run."""


class SharedBuffer:
    """Memory that several processes map; whoever writes may make it larger.

    Args:
        file: descriptor from ``memory_file``.
    """

    def __init__(self, file: int) -> None:
        self._file = file
        self._map: mmap.mmap | None = None

    def write(self, tensor: NDArray[Any], offset: int = 0) -> None:
        """Copy a tensor to an offset in bytes."""
        end = offset + tensor.nbytes
        if end > os.fstat(self._file).st_size:
            os.ftruncate(self._file, -(-end // mmap.PAGESIZE) * mmap.PAGESIZE)
        np.copyto(self.read(tensor.dtype, tensor.shape, offset), tensor)

    def read(self, dtype: np.dtype[Any], shape: Sequence[int], offset: int = 0) -> NDArray[Any]:
        """What lies at an offset, not copied: valid until the next write there."""
        count = int(np.prod(shape, dtype=np.int64))
        if not count:
            return np.empty(shape, dtype=dtype)
        if self._map is None or len(self._map) < offset + count * dtype.itemsize:
            self._map = mmap.mmap(self._file, 0)  # an older one lives as long as arrays that look into it
        return np.frombuffer(self._map, dtype, count, offset).reshape(shape)


def memory_file(name: str) -> int:
    """A file descriptor of memory that goes away with the last process that has it."""
    return os.memfd_create(f"tritonrank-{name}")


class AllReduce:
    """One rank's part in the sums.

    Args:
        rank: of this process.
        peers: a socket (SOCK_SEQPACKET) to each other rank.
        places: ``PLACES`` buffers of each rank, in the order of the ranks.
    """

    def __init__(self, rank: int, peers: Mapping[int, socket.socket], places: Sequence[Sequence[SharedBuffer]]) -> None:
        self._rank, self._peers, self._places = rank, peers, places
        self._run = self._step = 0

    def begin(self, run: int) -> None:
        """Start a run; all ranks have finished the one before, whatever became of it."""
        self._run, self._step = run, 0

    def __call__(self, addend: NDArray[Any]) -> NDArray[Any]:
        """The sum over all ranks.

        Raises:
            PeerError: another rank failed or died.
        """
        place = self._step % PLACES
        self._step += 1
        self._places[self._rank][place].write(addend)
        self._tell(is_well=True)
        for rank, peer in self._peers.items():
            self._hear(rank, peer)
        addends = (own[place].read(addend.dtype, addend.shape) for own in self._places)
        exact = np.result_type(addend.dtype, np.float32)
        total = next(addends).astype(exact)
        for one in addends:
            total += one
        return total.astype(addend.dtype, copy=False)

    def leave(self) -> None:
        """Tell the others that this rank failed, so that they do not wait for it."""
        self._tell(is_well=False)

    def _tell(self, *, is_well: bool) -> None:
        for rank, peer in self._peers.items():
            try:
                peer.send(_MESSAGE.pack(self._run, is_well))
            except OSError as error:
                raise PeerError(f"rank {rank} is gone: {error}") from None

    def _hear(self, rank: int, peer: socket.socket) -> None:
        while True:
            try:
                message = peer.recv(_MESSAGE.size)
            except OSError as error:
                raise PeerError(f"rank {rank} is gone: {error}") from None
            if not message:
                raise PeerError(f"rank {rank} is gone")
            run, is_well = _MESSAGE.unpack(message)
            if run != self._run:  # of an earlier run that was left
                continue
            if not is_well:
                raise PeerError(f"rank {rank} failed")
            return
