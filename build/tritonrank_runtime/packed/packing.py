"""Requests as one flat sequence of tokens, and the tables that tell attention who sees whom. NumPy alone.

A *segment* is what is scored: a candidate of a shared-context ranker, a pair of a joint one. The rows of a request are
its context's tokens, then those of its candidates, one after the other, without padding; pairs follow each other. So
the linear layers see tokens and nothing else, and attention asks three tables who sees whom:

- a *tile* is at most ``TILE_ROWS`` rows of one request that one program of the kernel works on. All its rows see one
  span: the context of the request, or for a joint ranker the whole pair that the rows belong to;
- a *chunk* is at most ``CHUNK_KEYS`` tokens of one candidate, which the rows of that candidate alone see. The tile
  names the chunks of all candidates that have rows in it;
- the last layer works on first tokens alone, so it has tiles and chunks of its own, whose queries are segments.

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

from tritonrank_runtime.architecture import RowLimits
from tritonrank_runtime.engine import Logits, RowsError, Tensors
from tritonrank_runtime.padding import PADDING

TILE_ROWS = 64
"""Rows of a tile: four matrix instructions of 16 rows, and enough tiles for all multiprocessors from 100 candidates."""
FIRST_TILE_ROWS = 16
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
_NO_TILES: Ids = np.zeros((0, TILE_FIELDS), dtype=np.int32)
_NO_CHUNKS: Ids = np.zeros((0, CHUNK_FIELDS), dtype=np.int32)


@dataclass(frozen=True)
class Sizes:
    """How much a launch holds at the most, or how much there is to launch.

    Args:
        rows: tokens, those of kept contexts left out.
        segments: that are scored.
        tiles, chunks: of attention in all layers but the last.
        first_tiles, first_chunks: of attention in the last.
        kept_rows: rows of contexts whose keys and values are to be kept.
    """

    rows: int
    segments: int
    tiles: int
    chunks: int
    first_tiles: int
    first_chunks: int
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
        first_tiles = segments // (FIRST_TILE_ROWS // 2) + 16
        return cls(rows, segments, rows // (TILE_ROWS // 2) + 16, chunks, first_tiles, chunks, rows)

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
            self.first_tiles,
            self.first_chunks,
            self.kept_rows,
        )

    @cached_property
    def layout(self) -> dict[str, tuple[int, tuple[int, ...]]]:
        """Where each table begins in the buffer, and its shape."""
        shapes: dict[str, tuple[int, ...]] = {
            "tiles": (self.tiles, TILE_FIELDS),  # first, so that every tile lies in one sector
            "first_tiles": (self.first_tiles, TILE_FIELDS),
            "chunks": (self.chunks, CHUNK_FIELDS),
            "first_chunks": (self.first_chunks, CHUNK_FIELDS),
            "token_ids": (self.rows,),
            "positions": (self.rows,),
            "types": (self.rows,),
            "first_rows": (self.segments,),
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
        """By name: tiles, first_tiles, chunks, first_chunks, token_ids, positions, types, first_rows, keep_from,
        keep_to."""
        return {
            name: self.buffer[start : start + int(np.prod(shape))].reshape(shape)
            for name, (start, shape) in self.sizes.layout.items()
        }


@dataclass(frozen=True)
class PackedRequest:
    """One request without padding, with tables that count from its own first row; see ``shared_context_request`` and
    ``joint_request``."""

    token_ids: Ids
    positions: Ids
    types: Ids
    first_rows: Ids
    """of its segments, in their order"""
    tiles: Ids
    chunks: Ids
    first_tiles: Ids
    first_chunks: Ids
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
            len(self.first_rows),
            len(self.tiles),
            len(self.chunks),
            len(self.first_tiles),
            len(self.first_chunks),
            kept,
        )

    def logits(self, segment_logits: Logits) -> Logits:
        """One per candidate, of one per segment; 0 for a parting."""
        if len(self.places) == self.candidates:
            return segment_logits
        logits = np.zeros(self.candidates, dtype=np.float32)
        logits[self.places] = segment_logits
        return logits


def shared_context_request(
    request: Tensors,
    limits: RowLimits,
    context_positions: int,
    *,
    kept_at: int = NOT_KEPT,
    keep_at: int = NOT_KEPT,
) -> PackedRequest:
    """A request of a shared-context ranker.

    Args:
        request: context_ids (tokens,), candidate_ids (candidates, tokens) padded on the right with -1; a row of padding
            alone is a parting.
        limits: what the ranker has embeddings for.
        context_positions: where the positions of candidates begin.
        kept_at: row of the pool from which on the context's keys and values lie; its tokens are not computed then.
        keep_at: row of the pool where they shall be kept after this launch.

    Raises:
        RowsError: ids or lengths beyond the limits; names the tensor.
    """
    limits.check(request)
    context_ids, candidate_ids = request["context_ids"], request["candidate_ids"]
    is_token = candidate_ids > PADDING
    all_lengths = is_token.sum(axis=1, dtype=np.int32)
    if all_lengths.all():
        places, lengths = np.arange(len(all_lengths)), all_lengths
    else:
        places = np.flatnonzero(all_lengths)
        lengths = all_lengths[places]
    context = 0 if kept_at != NOT_KEPT else len(context_ids)
    ends = context + np.cumsum(lengths, dtype=np.int32)
    starts = ends - lengths
    rows = int(ends[-1]) if len(ends) else context
    token_ids = np.empty(rows, dtype=np.int32)
    token_ids[:context] = context_ids[:context]
    token_ids[context:] = candidate_ids[is_token]
    positions = np.arange(rows, dtype=np.int32)
    positions[context:] -= np.repeat(starts - np.int32(context_positions), lengths)
    types = np.ones(rows, dtype=np.int32)
    types[:context] = 0
    span = (kept_at, kept_at + len(context_ids)) if kept_at != NOT_KEPT else (0, context)
    chunks, chunk_ends = _chunks(starts, lengths)
    first_chunks = chunks.copy()
    first_chunks[:, 2] = np.repeat(np.arange(len(lengths), dtype=np.int32), np.diff(chunk_ends, prepend=0))
    first_chunks[:, 3] = first_chunks[:, 2] + 1
    tiles = _tiles(rows, TILE_ROWS, span, kept_at != NOT_KEPT)
    # Candidates with rows in a tile: from the first that ends behind its first row to the last that begins before it
    # ends.
    from_first = np.searchsorted(ends, tiles[:, 0], side="right")
    to_last = np.searchsorted(starts, tiles[:, 1], side="left")
    _name_chunks(tiles, from_first, np.maximum(to_last, from_first), chunk_ends)
    first_tiles = _tiles(len(lengths), FIRST_TILE_ROWS, span, kept_at != NOT_KEPT)
    _name_chunks(first_tiles, first_tiles[:, 0], first_tiles[:, 1], chunk_ends)
    return PackedRequest(
        token_ids,
        positions,
        types,
        starts,
        tiles,
        chunks,
        first_tiles,
        first_chunks,
        context,
        places,
        len(candidate_ids),
        keep_at,
    )


def joint_request(request: Tensors, limits: RowLimits) -> PackedRequest:
    """A request of a joint ranker: every pair a segment of its own, whose rows see all of it.

    Args:
        request: input_ids and attention_mask (pairs, tokens), and token_type_ids where the family has such.
        limits: what the ranker has embeddings for.

    Raises:
        RowsError: ids or lengths beyond the limits; names the tensor.
    """
    limits.check(request)
    is_token = request["attention_mask"] > 0
    lengths = is_token.sum(axis=1, dtype=np.int32)
    if not lengths.all():
        raise RowsError("attention_mask: expected at least one token in every row")
    token_ids = request["input_ids"][is_token].astype(np.int32, copy=False)
    types = request.get("token_type_ids")
    ends = np.cumsum(lengths, dtype=np.int32)
    starts = ends - lengths
    positions = np.arange(len(token_ids), dtype=np.int32) - np.repeat(starts, lengths)
    tiles_of_pair = -(-lengths // TILE_ROWS)
    tiles = np.zeros((int(tiles_of_pair.sum()), TILE_FIELDS), dtype=np.int32)
    tile_ends = np.cumsum(tiles_of_pair, dtype=np.int32)
    of_pair = np.arange(len(tiles), dtype=np.int32) - np.repeat(tile_ends - tiles_of_pair, tiles_of_pair)
    tiles[:, 2] = np.repeat(starts, tiles_of_pair)
    tiles[:, 3] = np.repeat(ends, tiles_of_pair)
    tiles[:, 0] = tiles[:, 2] + of_pair * TILE_ROWS
    tiles[:, 1] = np.minimum(tiles[:, 0] + TILE_ROWS, tiles[:, 3])
    first_tiles = np.zeros((len(lengths), TILE_FIELDS), dtype=np.int32)
    first_tiles[:, 0] = np.arange(len(lengths))
    first_tiles[:, 1] = first_tiles[:, 0] + 1
    first_tiles[:, 2], first_tiles[:, 3] = starts, ends
    return PackedRequest(
        token_ids,
        positions,
        np.zeros_like(token_ids) if types is None else types[is_token].astype(np.int32, copy=False),
        starts,
        tiles,
        _NO_CHUNKS,
        first_tiles,
        _NO_CHUNKS,
        0,
        np.arange(len(lengths)),
        len(lengths),
    )


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
        np.add(one.first_rows, row, out=tables["first_rows"][segment : segment + counts.segments])
        _move_tiles(one.tiles, tables["tiles"][tile : tile + counts.tiles], row, row, chunk)
        _move_tiles(
            one.first_tiles,
            tables["first_tiles"][first_tile : first_tile + counts.first_tiles],
            segment,
            row,
            first_chunk,
        )
        np.add(one.chunks, row, out=tables["chunks"][chunk : chunk + counts.chunks])
        moved = tables["first_chunks"][first_chunk : first_chunk + counts.first_chunks]
        np.add(one.first_chunks, np.array([row, row, segment, segment], dtype=np.int32), out=moved)
        if counts.kept_rows:
            keep = slice(kept, kept + counts.kept_rows)
            tables["keep_from"][keep] = np.arange(row, row + counts.kept_rows)
            tables["keep_to"][keep] = np.arange(one.keep_at, one.keep_at + counts.kept_rows)
        row, segment, tile, chunk = rows.stop, segment + counts.segments, tile + counts.tiles, chunk + counts.chunks
        first_tile, first_chunk = first_tile + counts.first_tiles, first_chunk + counts.first_chunks
        kept += counts.kept_rows
    # Padding: any id does for a row that nobody reads; a tile without rows is left at once; nothing is kept from -1.
    for name, used in (("token_ids", row), ("positions", row), ("types", row), ("first_rows", segment)):
        tables[name][used:] = 0
    tables["tiles"][tile:] = 0
    tables["first_tiles"][first_tile:] = 0
    tables["chunks"][chunk:] = 0
    tables["first_chunks"][first_chunk:] = 0
    tables["keep_from"][kept:] = NOT_KEPT


def _tiles(queries: int, most: int, span: tuple[int, int], is_kept: bool) -> Ids:
    """Queries 0 to ``queries`` in tiles of ``most``, all of which see one span; without chunks as yet."""
    tiles = np.zeros((-(-queries // most), TILE_FIELDS), dtype=np.int32)
    tiles[:, 0] = np.arange(0, queries, most)
    tiles[:, 1] = np.minimum(tiles[:, 0] + most, queries)
    tiles[:, 2], tiles[:, 3], tiles[:, 4] = span[0], span[1], is_kept
    return tiles


def _name_chunks(tiles: Ids, from_first: Ids, to_last: Ids, chunk_ends: Ids) -> None:
    """Give tiles the chunks of candidates ``from_first`` to ``to_last``, that one left out."""
    bounds = np.concatenate([np.zeros(1, dtype=np.int32), chunk_ends])
    tiles[:, 5], tiles[:, 6] = bounds[from_first], bounds[to_last]


def _chunks(starts: Ids, lengths: Ids) -> tuple[Ids, Ids]:
    """The chunks of candidates, whose queries are the candidates' own rows, and of each candidate where its chunks
    end."""
    chunks_of = -(-lengths // CHUNK_KEYS)
    chunk_ends = np.cumsum(chunks_of, dtype=np.int32)
    chunks = np.empty((int(chunks_of.sum()), CHUNK_FIELDS), dtype=np.int32)
    of_candidate = np.arange(len(chunks), dtype=np.int32) - np.repeat(chunk_ends - chunks_of, chunks_of)
    chunks[:, 2] = np.repeat(starts, chunks_of)
    chunks[:, 3] = chunks[:, 2] + np.repeat(lengths, chunks_of)
    chunks[:, 0] = chunks[:, 2] + of_candidate * CHUNK_KEYS
    chunks[:, 1] = np.minimum(chunks[:, 0] + CHUNK_KEYS, chunks[:, 3])
    return chunks, chunk_ends


def _move_tiles(tiles: Ids, moved: Ids, query: int, key: int, chunk: int) -> None:
    """Copy tiles, counting queries, keys and chunks from elsewhere; a kept context stays where it is in the pool."""
    np.add(tiles, np.array([query, query, key, key, 0, chunk, chunk, 0], dtype=np.int32), out=moved)
    if len(tiles) and tiles[0, 4]:
        moved[:, 2:4] -= key
