"""An index's vectors: texts encoded chunk by chunk into files, and one file with a row for each document."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nestling import atomic
from nestling.models.cached_encoder import read_entry, texts_fingerprint, write_entry
from nestling.models.encoder import Encoder
from nestling.progress import Observer

CHUNK = 4_096
"""Texts encoded between two saves: what an interruption can cost."""
ROWS = 65_536

Chunk = tuple[Sequence[str], Path]
"""Texts and the file of their vectors, (n, dim) float16."""


def encode_chunks(encoder: Encoder, texts: Sequence[str], work: Path, observer: Observer) -> list[Chunk]:
    """Encode distinct texts chunk by chunk into files under `work`; whole ones of an earlier call are kept."""
    chunks = []
    if texts:
        observer.stage("encode", f"{len(texts):,} texts")
    try:
        for start in range(0, len(texts), CHUNK):
            chunk = texts[start : start + CHUNK]
            path = work / f"{texts_fingerprint(chunk)}.npy"
            if read_entry(path, len(chunk), np.float16) is None:
                write_entry(path, encoder.encode(chunk, kind="document").astype(np.float16))
            chunks.append((chunk, path))
            observer.encoding("", start + len(chunk), len(texts))
    finally:
        observer.done()
    return chunks


def write_vectors(path: Path, texts: Sequence[str], dim: int, chunks: Sequence[Chunk]) -> NDArray[np.float16]:
    """Write a vector for each document, (len(texts), dim) float16, and return the file mapped for reading.

    Every text is in one of the chunks. Raises OSError where the disk has no room.
    """
    vectors: Any = np.lib.format.open_memmap(path, "w+", np.float16, (len(texts), dim))
    atomic.reserve(path)
    place = {text: n for n, text in enumerate(chain.from_iterable(chunk for chunk, _ in chunks))}
    places = np.array([place[text] for text in texts], dtype=np.int64)
    order = np.argsort(places, kind="stable")
    start = 0
    for chunk, file in chunks:
        first, last = np.searchsorted(places, [start, start + len(chunk)], sorter=order)
        source = np.load(file, mmap_mode="r")
        for block in range(first, last, ROWS):
            rows = order[block : min(block + ROWS, last)]
            vectors[rows] = source[places[rows] - start]
        start += len(chunk)
    vectors.flush()
    del vectors
    mapped: NDArray[np.float16] = np.load(path, mmap_mode="r")
    return mapped
