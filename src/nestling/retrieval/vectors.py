"""Embeddings as rows of length 1: cut to their first dimensions, and normalised again."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def truncate(embeddings: NDArray[np.float32], dim: int) -> NDArray[np.float32]:
    """Cut embeddings to their first `dim` components and bring each row back to length 1.

    `encode(truncate_dim=...)` of sentence-transformers cuts only, and leaves rows shorter than 1.

    Args:
        embeddings: (n, full) float32.
        dim: 1 to full.

    Returns:
        (n, dim) float32, a C-contiguous copy; a row whose first `dim` components are all zero stays zero.

    Raises:
        ValueError: `dim` is not in 1 to full.
    """
    full = embeddings.shape[1]
    if not 1 <= dim <= full:
        raise ValueError(f"cannot truncate embeddings of {full} dimensions to {dim}; give 1 to {full}")
    cut = np.array(embeddings[:, :dim], dtype=np.float32, order="C")
    normalise(cut)
    return cut


def normalise(rows: NDArray[np.float32]) -> None:
    # In float64, as the square of a small float32 is zero; in blocks, as a float64 copy of a corpus is large.
    for start in range(0, len(rows), 16384):
        block = rows[start : start + 16384]
        lengths = np.linalg.norm(block.astype(np.float64), axis=1)
        lengths[lengths == 0] = 1.0
        block /= lengths[:, None]
