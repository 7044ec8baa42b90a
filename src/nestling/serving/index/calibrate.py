"""How long a shortlist must be, and how much of an inverted file be read, to find what a whole search finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nestling.retrieval.code_search import rescore
from nestling.serving.index.shortlist import Exact, Inverted

TOP = 10
LENGTHS = (50, 100, 200, 400, 800, 1_600, 2_400, 3_200, 4_800, 6_400, 9_600, 12_800, 25_600)
SHARES = (1 / 64, 1 / 32, 1 / 16, 1 / 8, 3 / 16, 1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4, 1.0)
BLOCK = 65_536
SAME = 1e-6
"""Scores that differ by less are equal but for the order of their terms."""


@dataclass(frozen=True)
class Calibrated:
    """Length of the shortlist, lists to look into (0 without an inverted file), and the share of the top 10 found."""

    shortlist: int
    lists: int
    agreement: float


def calibrate(
    queries: NDArray[np.float32], vectors: Any, exact: Exact, inverted: Inverted | None, *, target: float, lists: int
) -> Calibrated:
    """Choose the cheapest search that finds `target` of the exact top 10 of these queries.

    First the length, with all codes scanned, so that half of what may be missed is missed there; then the lists.

    Args:
        queries: (n, full) float32.
        vectors: (n_documents, full) float16 or float32.
        lists: that the inverted file has.
    """
    rows, best = exact_top(queries, vectors, TOP)
    # By scores, as of equal documents at the tenth place one is as good as the other.
    least = best.min(axis=1, keepdims=True) - SAME

    def agreement(candidates: NDArray[np.int64]) -> float:
        _, scores = rescore(queries, candidates, vectors, best.shape[1])
        return float((scores >= least).sum() / best.size)

    n = len(vectors)
    wanted = target if inverted is None else (1 + target) / 2
    lengths = [min(n, length) for length in LENGTHS]
    ranks = exact.ranks(queries, rows)
    shortlist = next((length for length in lengths if (ranks < length).mean() >= wanted), lengths[-1])
    if inverted is None:
        return Calibrated(shortlist, 0, agreement(exact.candidates(queries, shortlist)))
    share = 0.0
    looked = lists
    for part in SHARES:
        looked = max(1, round(lists * part))
        share = agreement(inverted.candidates(queries, shortlist, None, looked))
        if share >= target:
            break
    return Calibrated(shortlist, looked, share)


def exact_top(queries: NDArray[np.float32], vectors: Any, k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return rows and values of the `k` highest inner products by whole vectors, (n_queries, min(k, n)), unordered."""
    n = len(vectors)
    k = min(k, n)
    best = np.full((len(queries), k), -np.inf, dtype=np.float32)
    rows = np.full((len(queries), k), -1, dtype=np.int64)
    for start in range(0, n, BLOCK):
        scores = queries @ np.asarray(vectors[start : start + BLOCK], dtype=np.float32).T
        numbers = np.broadcast_to(np.arange(start, start + scores.shape[1]), scores.shape)
        joined, every = np.concatenate([best, scores], axis=1), np.concatenate([rows, numbers], axis=1)
        order = np.argpartition(-joined, k - 1, axis=1)[:, :k]
        best, rows = np.take_along_axis(joined, order, axis=1), np.take_along_axis(every, order, axis=1)
    return rows, best
