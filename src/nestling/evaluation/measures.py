"""Measures of a ranking, `name@k` as a value: recall, MRR, nDCG, MAP, hit rate and precision."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nestling.errors import InputError
from nestling.evaluation.qrels import Qrels

Ranking = NDArray[np.int64]
PerQuery = NDArray[np.float64]
Hits = NDArray[np.bool_]


@dataclass(frozen=True, order=True)
class Measure:
    """A measure and its depth, as in `recall@10`; all are in 0..1, and ranks count from 1.

    - recall@k: relevant documents in the top k / all relevant documents.
    - precision@k: relevant documents in the top k / k, also where the corpus holds fewer than k documents.
    - hit@k: 1 when a relevant document is in the top k, else 0.
    - mrr@k: 1 / rank of the first relevant document, 0 when none is in the top k.
    - map@k: sum of the precisions at the ranks of relevant documents in the top k / min(k, relevant documents), as
      sentence-transformers has it; trec_eval's map_cut divides by all relevant documents.
    - ndcg@k: sum of gain / log2(rank + 1) over the top k, divided by that of the ideal order of all judged documents
      (Järvelin and Kekäläinen 2002, with linear gains: trec_eval's ndcg_cut). Gains come from the scores, so a
      document below the threshold has some.

    >>> Measure.parse("nDCG@10").k
    10
    """

    name: str
    k: int

    def __post_init__(self) -> None:
        if self.name not in MEASURES or self.k < 1:
            raise InputError(_grammar(f"{self.name}@{self.k}"))

    @classmethod
    def parse(cls, text: str) -> Measure:
        """Read `name@k`, in upper or lower case; InputError where it is none."""
        match = re.fullmatch(r"([a-z]+)@([0-9]{1,9})", text.strip().lower())
        if match is None:
            raise InputError(_grammar(text))
        return cls(match[1], int(match[2]))

    def __str__(self) -> str:
        return f"{self.name}@{self.k}"

    def per_query(self, ranking: Ranking, qrels: Qrels) -> PerQuery:
        """Return the measure for each query, (n_queries,) float64.

        The ranking is (n_queries, min(k, n_documents) or more) int64: document columns of `qrels`, best first, none
        twice in a row; -1 pads a row that has no more documents. ValueError: it does not fit, or is too shallow.
        """
        depth = min(self.k, qrels.n_documents)
        if ranking.ndim != 2 or len(ranking) != qrels.n_queries:
            raise ValueError(f"a ranking of shape {ranking.shape} does not fit {qrels.n_queries} queries")
        if ranking.shape[1] < depth:
            raise ValueError(f"{self} needs a ranking of {depth} documents a query; this one has {ranking.shape[1]}")
        ranking = ranking[:, :depth]
        if ranking.min() < -1 or ranking.max() >= qrels.n_documents:
            raise ValueError(f"the ranking names a document outside the {qrels.n_documents} of the corpus")
        if self.name == "ndcg":
            return _ndcg(ranking, qrels, self.k)
        _, hits = _find(ranking, qrels.relevant_indptr, qrels.relevant_columns, qrels.n_documents)
        return BINARY[self.name](hits, qrels.n_relevant, self.k)


def _ndcg(ranking: Ranking, qrels: Qrels, k: int) -> PerQuery:
    entry, judged = _find(ranking, qrels.judged_indptr, qrels.judged_columns, qrels.n_documents)
    gains = np.where(judged, qrels.gains[entry], 0.0)
    dcg = (gains / np.log2(np.arange(gains.shape[1]) + 2)).sum(axis=1)

    rows = np.repeat(np.arange(qrels.n_queries), np.diff(qrels.judged_indptr))
    best_first = np.lexsort((-qrels.gains, rows))
    rank = np.arange(len(rows)) - qrels.judged_indptr[rows]
    top = rank < k
    ideal = np.bincount(
        rows[top], weights=qrels.gains[best_first][top] / np.log2(rank[top] + 2), minlength=qrels.n_queries
    )
    return np.asarray(np.divide(dcg, ideal, out=np.zeros_like(dcg), where=ideal > 0), dtype=np.float64)


BINARY: dict[str, Callable[[Hits, NDArray[np.int64], int], PerQuery]] = {
    "recall": lambda hits, n_relevant, _: hits.sum(axis=1) / n_relevant,
    "mrr": lambda hits, *_: np.where(hits.any(axis=1), 1.0 / (hits.argmax(axis=1) + 1), 0.0),
    "map": lambda hits, n_relevant, k: (
        (hits.cumsum(axis=1) / np.arange(1, hits.shape[1] + 1) * hits).sum(axis=1) / np.minimum(k, n_relevant)
    ),
    "hit": lambda hits, *_: hits.any(axis=1).astype(np.float64),
    "precision": lambda hits, _, k: hits.sum(axis=1) / k,
}
"""Measures of hits (n_queries, k), the number of relevant documents of each query, and k."""
MEASURES = ("recall", "mrr", "ndcg", "map", "hit", "precision")


def _find(
    ranking: Ranking, indptr: NDArray[np.int64], columns: NDArray[np.int64], n_documents: int
) -> tuple[NDArray[np.int64], Hits]:
    """Return for each place of the ranking its entry in the sparse rows, and whether there is one."""
    n_rows = len(indptr) - 1
    # Rows and columns are sorted, so one number for (row, column) makes the whole table one sorted list.
    stored = np.repeat(np.arange(n_rows), np.diff(indptr)) * n_documents + columns
    keys = np.arange(n_rows)[:, None] * n_documents + ranking
    entry = np.searchsorted(stored, keys).clip(max=len(stored) - 1)
    return entry, (stored[entry] == keys) & (ranking >= 0)


def _grammar(text: str) -> str:
    names = ", ".join(MEASURES)
    return f"unknown measure {text!r}; write name@k with a name of {names} and k of 1 or more, for example recall@10"
