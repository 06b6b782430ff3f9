"""Many texts -> vectors, with the graph that serves: every core a thread, texts of one length together.

Texts of equal length need no padding, so nothing is computed in vain, and INT8 graphs have fixed scales: which texts
happen to lie together changes a vector by no more than the last bits.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tritonrank_recommend.catalogue.encoder import MODEL_FILE, TextTokenizer, Towers, open_session
from tritonrank_runtime.cores import available_cores

from tritonrank.system.progress import step

TEXTS_AT_ONCE = 50_000
"""Tokenized together, so that the ids of a million texts never lie in memory at once."""
TOKENS_PER_RUN = 512
"""Of the texts in one run of the graph: more do not make it faster, and need more memory."""


def embed_items(folder: Path, texts: Sequence[str], title: str = "embedding items") -> NDArray[np.float32]:
    """Unit vectors of texts by an encoder that stage ``retriever`` wrote.

    Args:
        folder: of the retriever (or a copy of its ``ENCODER_FILES``).
        texts: any number; equal ones are encoded once. An empty text gets zeros, which are like nothing.
        title: what the progress bar says.

    Returns:
        [texts, dimension].

    Raises:
        EncoderError: the folder is no encoder.
    """
    towers = Towers.load(folder)
    tokenizer, session = TextTokenizer.from_folder(folder, towers.tokens), open_session(folder / MODEL_FILE)
    places: dict[str, list[int]] = {}
    for place, text in enumerate(texts):
        if text := tokenizer.cut(text).strip():
            places.setdefault(text, []).append(place)
    distinct = list(places)
    vectors = np.zeros((len(texts), towers.dimension), dtype=np.float32)

    def run(group: tuple[NDArray[np.int32], list[str]]) -> int:
        ids, members = group
        found = session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})[0]
        for vector, text in zip(found, members, strict=True):
            vectors[places[text]] = vector
        return len(members)

    with step(title, total=len(distinct)) as bar, ThreadPoolExecutor(available_cores()) as threads:
        for start in range(0, len(distinct), TEXTS_AT_ONCE):
            for count in threads.map(run, _groups(tokenizer, distinct[start : start + TEXTS_AT_ONCE])):
                bar.advance(count)
    return vectors


def _groups(tokenizer: TextTokenizer, texts: Sequence[str]) -> Iterator[tuple[NDArray[np.int32], list[str]]]:
    """Token ids of equal length, with the texts that they are of; the longest first, so that no thread waits long."""
    tokenized = sorted(zip(tokenizer.ids(texts), texts, strict=True), key=lambda pair: -len(pair[0]))
    for length, same in groupby(tokenized, key=lambda pair: len(pair[0])):
        members = list(same)
        count = max(1, TOKENS_PER_RUN // length)
        for start in range(0, len(members), count):
            chosen = members[start : start + count]
            yield np.array([ids for ids, _ in chosen], dtype=np.int32), [text for _, text in chosen]
