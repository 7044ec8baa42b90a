"""Fusion of a dense and a lexical ranking, as a weighted sum of scores."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nestling.errors import InputError
from nestling.retrieval.bm25 import PairScores
from nestling.retrieval.exact_search import highest

Ranking = NDArray[np.int64]
Top = tuple[Ranking, NDArray[np.float32]]
"""The best documents of each query: columns (n_queries, depth) int64, best first, -1 pads; scores, the same shape."""

DEPTH = 100
PAIRS_AT_ONCE = 32768


@dataclass(frozen=True)
class Fusion:
    """A weighted sum: dense score + `weight` * lexical score, over the best `depth` documents of either side.

    Both scores of each candidate are exact, also where only one side has it. (Bruch, Gai and Ingber 2023, "An analysis
    of fusion functions for hybrid retrieval", find such a convex combination better than reciprocal ranks.)
    """

    weight: float
    depth: int = DEPTH

    def __post_init__(self) -> None:
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise InputError(f"a fusion's weight must be a number of 0 or more, not {self.weight!r}")
        if self.depth < 1:
            raise InputError(f"a fusion's depth must be 1 or more, not {self.depth!r}")

    def fuse(self, dense: Top, lexical: Top, k: int, *, dense_scores: PairScores, lexical_scores: PairScores) -> Top:
        """Return the `k` best candidates of each query by the sum, best first; equal sums by lower column.

        `dense_scores` (`inner_products`) and `lexical_scores` (`Lexical.pair_scores`) score the pairs that the lists
        lack. Returns (n_queries, k) int64 indices, -1 where there are no more candidates, and float32 scores, -inf
        there.
        """
        (dense, lexical) = ((top[0][:, : self.depth], top[1][:, : self.depth]) for top in (dense, lexical))
        candidates = Candidates.of(dense, lexical, dense_scores=dense_scores, lexical_scores=lexical_scores)
        return candidates.best(self.weight, k)

    def as_dict(self) -> dict[str, Any]:
        """Return the fields, fit for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Fusion:
        """Read what `as_dict` gave; refuse what lacks a field, has another, or is not valid."""
        # Earlier versions wrote how lexical scores were normalised: not at all.
        values = {name: value for name, value in values.items() if (name, value) != ("normalisation", "none")}
        if values.keys() != {"weight", "depth"}:
            raise InputError(f"a fusion has the fields weight, depth; these are {', '.join(values) or 'none'}")
        for name, kinds in (("weight", (int, float)), ("depth", (int,))):
            if type(values[name]) not in kinds:
                raise InputError(f"a fusion's {name} cannot be {values[name]!r}")
        return cls(float(values["weight"]), values["depth"])


@dataclass(frozen=True, eq=False)
class Candidates:
    """The documents that either side brings, with both scores of each, (n_queries, n) all."""

    columns: NDArray[np.int64]
    """Ascending in each row, none twice; -1 pads a row at its end, where scores have no meaning."""
    dense: NDArray[np.float32]
    lexical: NDArray[np.float32]

    @classmethod
    def of(cls, dense: Top, lexical: Top, *, dense_scores: PairScores, lexical_scores: PairScores) -> Candidates:
        """Join two lists; see `Fusion.fuse`."""
        if len(dense[0]) != len(lexical[0]):
            raise ValueError(f"{len(dense[0])} queries of the dense side do not fit {len(lexical[0])} lexical ones")
        columns = _union(dense[0], lexical[0])
        return cls(columns, _scored(columns, dense, dense_scores), _scored(columns, lexical, lexical_scores))

    def best(self, weight: float, k: int) -> Top:
        """Return the `k` of each row with the highest sums; see `Fusion.fuse`."""
        if k < 1:
            raise ValueError(f"k must be 1 or more, got {k}")
        sums = self.dense + weight * self.lexical.astype(np.float64)
        # In single precision sums that differ by the order of their terms are equal again.
        columns, scores = highest(self.columns, np.where(self.columns >= 0, sums, -np.inf).astype(np.float32), k)
        padding = ((0, 0), (0, k - columns.shape[1]))
        return np.pad(columns, padding, constant_values=-1), np.pad(scores, padding, constant_values=-np.inf)

    def balance(self) -> float | None:
        """Return the weight at which both scores deviate equally, mean over queries; None if lexical ones do not."""
        dense_spread, lexical_spread = (
            float(np.mean([row[used].std() for row, used in zip(side, self.columns >= 0, strict=True) if used.any()]))
            for side in (self.dense.astype(np.float64), self.lexical.astype(np.float64))
        )
        return dense_spread / lexical_spread if lexical_spread > 0 else None


def inner_products(queries: NDArray[np.float32], documents: NDArray[np.floating]) -> PairScores:
    """Return what scores pairs of rows by their inner product, (n_queries, dim) with (n_documents, dim)."""

    def of_pairs(rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.float32]:
        scores = np.empty(len(rows), dtype=np.float32)
        for start in range(0, len(rows), PAIRS_AT_ONCE):
            part = slice(start, start + PAIRS_AT_ONCE)
            scores[part] = np.einsum("nd,nd->n", queries[rows[part]], documents[columns[part]].astype(np.float32))
        return scores

    return of_pairs


def _union(*rankings: Ranking) -> NDArray[np.int64]:
    """Return the documents of each row that any ranking names, ascending; -1 pads at the end."""
    columns = np.sort(np.concatenate(rankings, axis=1), axis=1)
    last = np.iinfo(np.int64).max
    columns[(np.diff(columns, axis=1, prepend=-1) == 0) | (columns < 0)] = last
    columns.sort(axis=1)
    columns[columns == last] = -1
    return columns[:, : int((columns >= 0).sum(axis=1).max(initial=0))]


def _scored(columns: NDArray[np.int64], top: Top, pair_scores: PairScores) -> NDArray[np.float32]:
    """Return the scores of columns: those that `top` has, and of the others what `pair_scores` says."""
    ranking, ranked = top
    scores, known = np.zeros(columns.shape, dtype=np.float32), np.zeros(columns.shape, dtype=bool)
    if ranking.shape[1]:
        # One number for (row, column) makes all rows one sorted list.
        span = max(int(columns.max(initial=0)), int(ranking.max(initial=0))) + 2
        offsets = np.arange(len(columns))[:, None] * span + 1
        keys = (ranking + offsets).ravel()
        order = np.argsort(keys, kind="stable")
        entry = order[np.searchsorted(keys, columns + offsets, sorter=order).clip(max=len(keys) - 1)]
        known = keys[entry] == columns + offsets
        scores = np.where(known, ranked.ravel()[entry], scores)
    rows, places = np.nonzero(~known & (columns >= 0))
    if len(rows):
        scores[rows, places] = pair_scores(rows, columns[rows, places])
    return scores
