"""Requests as one flat sequence of tokens, and the tables that tell attention who sees whom. NumPy alone.

A *segment* is what is scored: a candidate of a shared-context ranker or a decoder, a pair of a joint one. The rows of a
request are its context's tokens, then those of its candidates, one after the other, without padding; pairs follow each
other. So the linear layers see tokens and nothing else, and attention asks three tables who sees whom:

- a *tile* is at most ``TILE_ROWS`` rows of one request that one program of the kernel works on. All its rows see one
  span: the context of the request, or for a joint ranker the whole pair that the rows belong to;
- a *chunk* is at most ``CHUNK_KEYS`` tokens of one candidate, which the rows of that candidate alone see. The tile
  names the chunks of all candidates that have rows in it;
- the last layer works on the tokens alone at which scores are read (a candidate's first, a branch's last), so it has
  tiles and chunks of its own, whose queries are segments.

In a decoder a row sees of all this only what stands at its own row or before it. The tables need not say so: every row
of a launch that it may see stands there, and those of kept contexts are seen by all.

Chunks begin where their candidate begins, wherever that is, so a candidate's numbers are added in the same order
whoever its neighbours are: its attention is bitwise the same alone and among others.

All tables are bounded by a ``Sizes``, one of few, so that whoever captures a CUDA graph needs one per bucket; they lie
behind each other in one buffer of int32, so that one copy brings a launch to the card. Rows behind the last are
padding that no tile names: they compute something, and nobody reads it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tritonrank_runtime.engine import Logits, RowsError

TILE_ROWS = 64
"""Rows of a tile: four matrix instructions of 16 rows, and enough tiles for all multiprocessors from 100 candidates."""
SCORED_TILE_ROWS = 16
"""As ``TILE_ROWS``, in the last layer: the least that a matrix instruction takes, since every row has chunks of its
own."""
CHUNK_KEYS = 32
"""Keys of a chunk: a candidate has 12 to 20 tokens as a rule, so it is one."""
TILE_FIELDS = 8
"""query_start, query_end, context_start, context_end, is_kept, chunk_start, chunk_end, and one that is not used: 32
bytes are one sector of a card's memory. Ends are the first that does not belong."""
CHUNK_FIELDS = 4
"""key_start, key_end, query_start, query_end"""
NOT_KEPT = -1
"""The place of a context in the pool, where it has none."""

Ids = NDArray[np.int32]


@dataclass(frozen=True)
class Sizes:
    """How much a launch holds at the most, or how much there is to launch.

    Args:
        rows: tokens, those of kept contexts left out.
        segments: that are scored.
        tiles, chunks: of attention in all layers but the last.
        scored_tiles, scored_chunks: of attention in the last.
        kept_rows: rows of contexts whose keys and values are to be kept.
    """

    rows: int
    segments: int
    tiles: int
    chunks: int
    scored_tiles: int
    scored_chunks: int
    kept_rows: int

    @classmethod
    def bucket(cls, rows: int, *, pairs: bool = False) -> "Sizes":
        """A bucket of so many rows, with room for segments as short as 8 tokens and for many small requests.

        Args:
            rows: a multiple of ``TILE_ROWS``.
            pairs: of a joint ranker, where each pair has tiles of its own.
        """
        segments = max(rows // 8, 16)
        chunks = rows // CHUNK_KEYS + segments
        if pairs:
            return cls(rows, segments, rows // (TILE_ROWS // 2) + segments // 4, 0, segments, 0, 0)
        scored_tiles = segments // (SCORED_TILE_ROWS // 2) + 16
        return cls(rows, segments, rows // (TILE_ROWS // 2) + 16, chunks, scored_tiles, chunks, rows)

    def holds(self, other: "Sizes") -> bool:
        """Whether a launch of this size has room for what the other counts."""
        return all(mine >= theirs for mine, theirs in zip(self._counts, other._counts, strict=True))

    def __add__(self, other: "Sizes") -> "Sizes":
        return Sizes(*(mine + theirs for mine, theirs in zip(self._counts, other._counts, strict=True)))

    @property
    def _counts(self) -> tuple[int, ...]:
        return (
            self.rows,
            self.segments,
            self.tiles,
            self.chunks,
            self.scored_tiles,
            self.scored_chunks,
            self.kept_rows,
        )

    @cached_property
    def layout(self) -> dict[str, tuple[int, tuple[int, ...]]]:
        """Where each table begins in the buffer, and its shape."""
        shapes: dict[str, tuple[int, ...]] = {
            "tiles": (self.tiles, TILE_FIELDS),  # first, so that every tile lies in one sector
            "scored_tiles": (self.scored_tiles, TILE_FIELDS),
            "chunks": (self.chunks, CHUNK_FIELDS),
            "scored_chunks": (self.scored_chunks, CHUNK_FIELDS),
            "token_ids": (self.rows,),
            "positions": (self.rows,),
            "types": (self.rows,),
            "scored_rows": (self.segments,),
            "keep_from": (self.kept_rows,),
            "keep_to": (self.kept_rows,),
        }
        starts = np.cumsum([0, *(int(np.prod(shape)) for shape in shapes.values())])
        return {name: (int(start), shape) for (name, shape), start in zip(shapes.items(), starts, strict=False)}

    @property
    def numbers(self) -> int:
        """int32 of the whole buffer."""
        start, shape = self.layout["keep_to"]
        return start + shape[0]


@dataclass(frozen=True)
class PackedBatch:
    """The tables of one launch, as views of one buffer.

    Args:
        sizes: what there is room for.
        buffer: int32 (sizes.numbers,), a numpy array or a PyTorch tensor on any device.
    """

    sizes: Sizes
    buffer: Any

    @classmethod
    def empty(cls, sizes: Sizes) -> "PackedBatch":
        return cls(sizes, np.zeros(sizes.numbers, dtype=np.int32))

    @cached_property
    def tables(self) -> dict[str, Any]:
        """By name: tiles, scored_tiles, chunks, scored_chunks, token_ids, positions, types, scored_rows, keep_from,
        keep_to."""
        return {
            name: self.buffer[start : start + int(np.prod(shape))].reshape(shape)
            for name, (start, shape) in self.sizes.layout.items()
        }


@dataclass(frozen=True)
class PackedRequest:
    """One request without padding, with tables that count from its own first row; ``requests.py`` makes them."""

    token_ids: Ids
    positions: Ids
    types: Ids
    scored_rows: Ids
    """where the scores of its segments are read, in their order"""
    tiles: Ids
    chunks: Ids
    scored_tiles: Ids
    scored_chunks: Ids
    context_rows: int
    """at the beginning; 0 where keys and values are kept already, and for pairs"""
    places: NDArray[np.int64]
    """of the segments among the request's candidates: partings have no segment"""
    candidates: int
    """partings included"""
    keep_at: int = NOT_KEPT
    """row of the pool from which on the context's keys and values are to be kept"""

    @cached_property
    def counts(self) -> Sizes:
        kept = self.context_rows if self.keep_at != NOT_KEPT else 0
        return Sizes(
            len(self.token_ids),
            len(self.scored_rows),
            len(self.tiles),
            len(self.chunks),
            len(self.scored_tiles),
            len(self.scored_chunks),
            kept,
        )

    def logits(self, segment_logits: Logits) -> Logits:
        """One per candidate, of one per segment; 0 for a parting."""
        if len(self.places) == self.candidates:
            return segment_logits
        logits = np.zeros(self.candidates, dtype=np.float32)
        logits[self.places] = segment_logits
        return logits


def total(requests: Sequence[PackedRequest]) -> Sizes:
    """What a launch of these needs."""
    counts = Sizes(0, 0, 0, 0, 0, 0, 0)
    for request in requests:
        counts += request.counts
    return counts


def pack(requests: Sequence[PackedRequest], batch: PackedBatch) -> None:
    """Write requests into the tables of one launch, one behind the other.

    Args:
        requests: of one ranker.
        batch: of numpy; what it held before does not matter.

    Raises:
        RowsError: they do not fit; nothing was written.
    """
    if not batch.sizes.holds(total(requests)):
        raise RowsError(f"token_ids: {total(requests)} does not fit into a launch of {batch.sizes}")
    tables = batch.tables
    row = segment = tile = chunk = first_tile = first_chunk = kept = 0
    for one in requests:
        counts = one.counts
        rows = slice(row, row + counts.rows)
        tables["token_ids"][rows], tables["positions"][rows], tables["types"][rows] = (
            one.token_ids,
            one.positions,
            one.types,
        )
        np.add(one.scored_rows, row, out=tables["scored_rows"][segment : segment + counts.segments])
        _move_tiles(one.tiles, tables["tiles"][tile : tile + counts.tiles], row, row, chunk)
        _move_tiles(
            one.scored_tiles,
            tables["scored_tiles"][first_tile : first_tile + counts.scored_tiles],
            segment,
            row,
            first_chunk,
        )
        np.add(one.chunks, row, out=tables["chunks"][chunk : chunk + counts.chunks])
        moved = tables["scored_chunks"][first_chunk : first_chunk + counts.scored_chunks]
        np.add(one.scored_chunks, np.array([row, row, segment, segment], dtype=np.int32), out=moved)
        if counts.kept_rows:
            keep = slice(kept, kept + counts.kept_rows)
            tables["keep_from"][keep] = np.arange(row, row + counts.kept_rows)
            tables["keep_to"][keep] = np.arange(one.keep_at, one.keep_at + counts.kept_rows)
        row, segment, tile, chunk = rows.stop, segment + counts.segments, tile + counts.tiles, chunk + counts.chunks
        first_tile, first_chunk = first_tile + counts.scored_tiles, first_chunk + counts.scored_chunks
        kept += counts.kept_rows
    # Padding: any id does for a row that nobody reads; a tile without rows is left at once; nothing is kept from -1.
    for name, used in (("token_ids", row), ("positions", row), ("types", row), ("scored_rows", segment)):
        tables[name][used:] = 0
    tables["tiles"][tile:] = 0
    tables["scored_tiles"][first_tile:] = 0
    tables["chunks"][chunk:] = 0
    tables["scored_chunks"][first_chunk:] = 0
    tables["keep_from"][kept:] = NOT_KEPT


def _move_tiles(tiles: Ids, moved: Ids, query: int, key: int, chunk: int) -> None:
    """Copy tiles, counting queries, keys and chunks from elsewhere; a kept context stays where it is in the pool."""
    np.add(tiles, np.array([query, query, key, key, 0, chunk, chunk, 0], dtype=np.int32), out=moved)
    if len(tiles) and tiles[0, 4]:
        moved[:, 2:4] -= key
