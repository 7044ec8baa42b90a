"""An index's vectors: texts encoded chunk by chunk into files, and one file with a row for each document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    """Encode distinct texts chunk by chunk into files under `work`; what is there and whole is not encoded again."""
    chunks = []
    if texts:
        observer.stage("encode", f"{len(texts):,} texts")
    try:
        for start in range(0, len(texts), CHUNK):
            some = texts[start : start + CHUNK]
            path = work / f"{texts_fingerprint(some)}.npy"
            there = read_entry(path, len(some), np.float16)
            if there is None or there.shape[1] != encoder.dim:
                write_entry(path, encoder.encode(some, kind="document").astype(np.float16))
            chunks.append((some, path))
            observer.encoding("", min(start + CHUNK, len(texts)), len(texts))
    finally:
        observer.done()
    return chunks


def write_vectors(
    path: Path,
    texts: Sequence[str],
    *,
    dim: int,
    known: Mapping[str, int],
    before: Path | None,
    fresh: Sequence[Chunk],
) -> NDArray[np.float16]:
    """Write a vector for each document, (len(texts), dim) float16, and return the file mapped for reading.

    Args:
        known: texts of the earlier index and the rows of their vectors there.
        before: the earlier index's vectors.
        fresh: the other texts' vectors.

    Raises:
        OSError: there is not enough room.
    """
    vectors: Any = np.lib.format.open_memmap(path, "w+", np.float16, (len(texts), dim))
    atomic.reserve(path)
    if before is not None:
        earlier = np.load(before, mmap_mode="r")
        rows = np.array([known.get(text, -1) for text in texts], dtype=np.int64)
        for start in range(0, len(rows), ROWS):
            part = rows[start : start + ROWS]
            vectors[start : start + ROWS][part >= 0] = earlier[part[part >= 0]]
    wanted: dict[str, list[int]] = {text: [] for some, _ in fresh for text in some}
    for row, text in enumerate(texts):
        if text in wanted:
            wanted[text].append(row)
    for some, path_of_some in fresh:
        for text, vector in zip(some, np.load(path_of_some), strict=True):
            vectors[wanted[text]] = vector
    vectors.flush()
    del vectors
    mapped: NDArray[np.float16] = np.load(path, mmap_mode="r")
    return mapped
