"""Requests of each architecture -> rows and tables of their own, counted from their first row; see ``packing.py``."""

import numpy as np

from tritonrank_runtime.architecture import RowLimits
from tritonrank_runtime.engine import RowsError, Tensors
from tritonrank_runtime.packed.packing import (
    CHUNK_FIELDS,
    CHUNK_KEYS,
    NOT_KEPT,
    SCORED_TILE_ROWS,
    TILE_FIELDS,
    TILE_ROWS,
    Ids,
    PackedRequest,
)
from tritonrank_runtime.padding import PADDING

_NO_CHUNKS: Ids = np.zeros((0, CHUNK_FIELDS), dtype=np.int32)


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
    return _tree(request["context_ids"], request["candidate_ids"], context_positions, kept_at, keep_at, is_causal=False)


def decoder_request(
    request: Tensors, limits: RowLimits, *, kept_at: int = NOT_KEPT, keep_at: int = NOT_KEPT
) -> PackedRequest:
    """A request of a decoder: scores are read at branches' last tokens.

    Args:
        request: prefix_ids (tokens,), branch_ids (candidates, tokens) padded on the right with -1; a row of padding
            alone is a parting.
        limits, kept_at, keep_at: as above, for the prefix.

    Raises:
        RowsError: ids or lengths beyond the limits; names the tensor.
    """
    limits.check(request)
    prefix_ids = request["prefix_ids"]
    return _tree(prefix_ids, request["branch_ids"], len(prefix_ids), kept_at, keep_at, is_causal=True)


def _tree(
    context_ids: Ids, candidate_ids: Ids, first_position: int, kept_at: int, keep_at: int, *, is_causal: bool
) -> PackedRequest:
    """A context and its candidates.

    Args:
        context_ids: (tokens,).
        candidate_ids: (candidates, tokens), padded on the right.
        first_position: of every candidate.
        kept_at, keep_at: as ``shared_context_request`` has them.
        is_causal: whether a row sees nothing behind it, and scores are read at the last tokens.
    """
    is_token = candidate_ids > PADDING
    all_lengths = is_token.sum(axis=1, dtype=np.int32)
    if all_lengths.all():
        places, lengths = np.arange(len(all_lengths)), all_lengths
    else:
        places = np.flatnonzero(all_lengths)
        lengths = all_lengths[places]
    is_kept = kept_at != NOT_KEPT
    context = 0 if is_kept else len(context_ids)
    ends = context + np.cumsum(lengths, dtype=np.int32)
    starts = ends - lengths
    rows = int(ends[-1]) if len(ends) else context
    token_ids = np.empty(rows, dtype=np.int32)
    token_ids[:context] = context_ids[:context]
    token_ids[context:] = candidate_ids[is_token]
    positions = np.arange(rows, dtype=np.int32)
    positions[context:] -= np.repeat(starts - np.int32(first_position), lengths)
    types = np.ones(rows, dtype=np.int32)
    types[:context] = 0
    span = (kept_at, kept_at + len(context_ids)) if is_kept else (0, context)
    chunks, chunk_ends = _chunks(starts, lengths)
    scored_chunks = chunks.copy()
    scored_chunks[:, 2] = np.repeat(np.arange(len(lengths), dtype=np.int32), np.diff(chunk_ends, prepend=0))
    scored_chunks[:, 3] = scored_chunks[:, 2] + 1
    tiles = _causal_tiles(context, rows, span, is_kept) if is_causal else _tiles(0, rows, TILE_ROWS, span, is_kept)
    # Candidates with rows in a tile: from the first that ends behind its first row to the last that begins before it
    # ends.
    from_first = np.searchsorted(ends, tiles[:, 0], side="right")
    to_last = np.searchsorted(starts, tiles[:, 1], side="left")
    _name_chunks(tiles, from_first, np.maximum(to_last, from_first), chunk_ends)
    scored_tiles = _tiles(0, len(lengths), SCORED_TILE_ROWS, span, is_kept)
    _name_chunks(scored_tiles, scored_tiles[:, 0], scored_tiles[:, 1], chunk_ends)
    return PackedRequest(
        token_ids,
        positions,
        types,
        ends - 1 if is_causal else starts,
        tiles,
        chunks,
        scored_tiles,
        scored_chunks,
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
    scored_tiles = np.zeros((len(lengths), TILE_FIELDS), dtype=np.int32)
    scored_tiles[:, 0] = np.arange(len(lengths))
    scored_tiles[:, 1] = scored_tiles[:, 0] + 1
    scored_tiles[:, 2], scored_tiles[:, 3] = starts, ends
    return PackedRequest(
        token_ids,
        positions,
        np.zeros_like(token_ids) if types is None else types[is_token].astype(np.int32, copy=False),
        starts,
        tiles,
        _NO_CHUNKS,
        scored_tiles,
        _NO_CHUNKS,
        0,
        np.arange(len(lengths)),
        len(lengths),
    )


def _tiles(first: int, end: int, most: int, span: tuple[int, int], is_kept: bool) -> Ids:
    """Queries ``first`` to ``end`` in tiles of ``most``, all of which see one span; without chunks as yet."""
    tiles = np.zeros((-(-(end - first) // most), TILE_FIELDS), dtype=np.int32)
    tiles[:, 0] = np.arange(first, end, most)
    tiles[:, 1] = np.minimum(tiles[:, 0] + most, end)
    tiles[:, 2], tiles[:, 3], tiles[:, 4] = span[0], span[1], is_kept
    return tiles


def _causal_tiles(context: int, rows: int, span: tuple[int, int], is_kept: bool) -> Ids:
    """Those of the context, which see nothing behind their last row, apart from those of the candidates."""
    own = _tiles(0, context, TILE_ROWS, (0, context), False)
    own[:, 3] = own[:, 1]
    return np.concatenate([own, _tiles(context, rows, TILE_ROWS, span, is_kept)])


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
