"""The weight of a fusion, fitted on judged queries."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nestling.evaluation.measures import Measure
from nestling.evaluation.qrels import Qrels
from nestling.retrieval.bm25 import PairScores
from nestling.retrieval.fusion import Candidates, Fusion, Top

NDCG = Measure("ndcg", 10)
WEIGHTS = (0.0, *(float(f"{weight:.3g}") for weight in np.geomspace(0.002, 5.0, 36)))
TRUST = 50
"""Judged queries that count as much as the scores' spread does; measured in docs/experiments.md, 2026-11-28."""


def fit_fusion(
    dense: Top, lexical: Top, qrels: Qrels, *, dense_scores: PairScores, lexical_scores: PairScores
) -> Fusion:
    r"""Return the fusion whose weight suits judged queries (those of dev, never those that it is tested on).

    The weight of n queries, :math:`w`, is the middle of the plateau around the highest mean of nDCG@10: of all
    neighbouring weights whose mean is within one paired standard error of it. Few queries say little, so it is drawn
    towards the weight :math:`p` at which both sides' scores spread equally (`Candidates.balance`) by
    :math:`\log w_n = (n \log w + T \log p) / (n + T)` with T of `TRUST`. Weight 0 stands on this scale one step below
    the lowest other one. What a cosine is worth falls with the size, so fit one for each size and precision.

    The lists and scores are as `Fusion.fuse` takes them; the deeper list gives the fusion's depth.
    """
    depth = max(dense[0].shape[1], lexical[0].shape[1])
    candidates = Candidates.of(dense, lexical, dense_scores=dense_scores, lexical_scores=lexical_scores)
    balance = candidates.balance()
    if balance is None:
        return Fusion(0.0, depth)
    values = [NDCG.per_query(candidates.best(weight, NDCG.k)[0], qrels) for weight in WEIGHTS]
    first, last = _plateau(np.array(values))
    scale = np.log(np.array(WEIGHTS[1:]))
    scale = np.concatenate([[2 * scale[0] - scale[1]], scale])
    prior = float(np.clip(np.log(max(balance, WEIGHTS[1])), scale[1], scale[-1]))
    n = qrels.n_queries
    weight = float(np.exp((n * (scale[first] + scale[last]) / 2 + TRUST * prior) / (n + TRUST)))
    return Fusion(float(f"{weight:.3g}") if weight >= WEIGHTS[1] else 0.0, depth)


def _plateau(values: NDArray[np.float64]) -> tuple[int, int]:
    """Return the first and last neighbour of the best weight that may be as good; values (n_weights, n_queries)."""
    best = int(values.mean(axis=1).argmax())
    behind = values[best] - values
    error = behind.std(axis=1) / np.sqrt(max(1, values.shape[1] - 1))
    worse = np.flatnonzero(behind.mean(axis=1) > error + 1e-12)
    return int(worse[worse < best].max(initial=-1)) + 1, int(worse[worse > best].min(initial=len(values))) - 1
