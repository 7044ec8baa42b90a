"""The weight of a fusion, fitted on judged queries."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nestling.evaluation.baselines import PairScores
from nestling.evaluation.fusion import Candidates, Fusion, Normalisation, Top
from nestling.evaluation.measures import Measure
from nestling.evaluation.qrels import Qrels

RECALL, MRR = Measure("recall", 10), Measure("mrr", 10)
WEIGHTS = (0.0, *(float(f"{weight:.3g}") for weight in np.geomspace(0.002, 5.0, 36)))
NEAR = 0.003
"""Differences of a mean below this are noise on the few hundred queries that a dev split has."""


def fit_fusion(
    dense: Top,
    lexical: Top,
    qrels: Qrels,
    *,
    dense_scores: PairScores,
    lexical_scores: PairScores,
    measure: Measure = RECALL,
    tie_break: Measure = MRR,
    weights: Sequence[float] = WEIGHTS,
    normalisation: Normalisation = "none",
) -> Fusion:
    """Return the fusion whose weight does best on judged queries (those of dev, never those that it is tested on).

    Of the weights within `NEAR` of the highest mean of `measure`, that with the highest mean of `tie_break`, and of
    equal ones the lowest. Fit one for each size and precision: what a cosine is worth falls with the size.

    Args:
        dense, lexical: the best documents of each side, as `Fusion.fuse` takes them; the deeper of the two is the
            fusion's depth.
        qrels: what is relevant; its rows are the queries.
        dense_scores, lexical_scores: as `Fusion.fuse` takes them.
        measure: what is to be highest.
        tie_break: what decides where `measure` does not.
        weights: those to try.
        normalisation: of the lexical scores.

    Raises:
        ValueError: there is no weight, or the lists do not fit the qrels.
    """
    if not weights:
        raise ValueError("fit_fusion needs a weight to try")
    depth = max(dense[0].shape[1], lexical[0].shape[1])
    candidates = Candidates.of(dense, lexical, dense_scores=dense_scores, lexical_scores=lexical_scores)
    deepest = max(measure.k, tie_break.k)
    figures = []
    for weight in sorted(weights):
        ranking, _ = candidates.best(weight, normalisation, deepest)
        figures.append([float(each.per_query(ranking, qrels).mean()) for each in (measure, tie_break)])
    first, second = np.array(figures).T
    chosen = int(np.where(first >= first.max() - NEAR, second, -np.inf).argmax())
    return Fusion(float(sorted(weights)[chosen]), normalisation, depth)
