"""What per-query values prove: intervals of means, paired comparisons of systems, p corrected for their number.

Queries are the sample, so every interval and every p speaks of other queries of the same kind, not of other training
seeds or other raters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, ndtri

from nestling.errors import InputError

RESAMPLES = 10_000
CONFIDENCE = 0.95
BLOCK = 2_000_000
"""Numbers in one block of counts or signs: working memory is about 24 bytes for each."""
SERIES_AT_ONCE = 256

Floats = NDArray[np.float64]

SCHEMA = {
    "a": pl.String,
    "b": pl.String,
    "measure": pl.String,
    "difference": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "p": pl.Float64,
    "p_holm": pl.Float64,
    "wins": pl.Int64,
    "ties": pl.Int64,
    "losses": pl.Int64,
}


def interval(
    values: ArrayLike, *, resamples: int = RESAMPLES, confidence: float = CONFIDENCE, seed: int = 0
) -> tuple[Floats, Floats]:
    """Return the bootstrap interval of the mean over queries, bias-corrected and accelerated.

    BCa (Efron 1987, as scipy.stats.bootstrap has it) and not plain percentiles, since values pile up at 0 or 1 and a
    slice has few of them. All series share the resamples, so a hundred cost little more than one. The result depends
    neither on the order of the queries nor, but for the last bits, on which other series are asked for.

    Args:
        values: (n_queries,) or (n_series, n_queries), finite.
        resamples: how often queries are drawn with replacement.
        confidence: share of such intervals that hold the true mean, in (0, 1).

    Returns:
        low and high: float64 arrays of shape () or (n_series,). Both are the mean itself where all values of a series
        are equal, as for a single query.

    Raises:
        ValueError: there is no query, a value is not finite, or an option is out of its range.
    """
    array = np.asarray(values, dtype=np.float64)
    series = _checked(np.atleast_2d(array), resamples, confidence)
    if array.ndim not in (1, 2):
        raise ValueError(f"values of shape {array.shape} are neither (n_queries,) nor (n_series, n_queries)")
    parts = [
        _bootstrap(series[start : start + SERIES_AT_ONCE], resamples, confidence, seed, accelerated=True)
        for start in range(0, len(series), SERIES_AT_ONCE)
    ]
    low, high = np.concatenate(parts, axis=1)
    return low.reshape(array.shape[:-1]), high.reshape(array.shape[:-1])


def compare_all(
    series: Mapping[str, ArrayLike],
    *,
    measures: Sequence[str] = ("value",),
    reference: str | None = None,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> pl.DataFrame:
    """Compare every pair of systems, or each with a reference, on every measure, by queries.

    p is of Fisher's paired randomisation test, which Smucker, Allan and Carterette (2007) recommend for retrieval: were
    the systems alike, each query's difference would be as likely to have the other sign. All assignments of signs are
    tried where there are no more of them than `resamples`, which makes p exact; else as many random ones, and the one
    observed counts as one more, so p is never 0 (Phipson and Smyth 2010). Values that differ by rounding alone are
    ties.

    The interval of a difference is of a paired bootstrap's percentiles, which here hold the true one more often than
    BCa, since most differences are 0. With fewer than 50 queries it promises too much.

    Args:
        series: system -> (n_queries,) or (n_measures, n_queries), finite, the queries in the same order in all.
        measures: the names of the measures.
        reference: the system that all others are compared with; by default every pair is compared.
        resamples, seed: of the draws, which all comparisons share.
        confidence: of the interval, in (0, 1).

    Returns:
        A row for each pair and measure, columns as `SCHEMA`: `difference` is the mean of b - a, and a is the reference
        or the one that comes first in `series`; `p_holm` is corrected for the number of rows, so call once for each
        measure where they are questions apart; wins, ties and losses are queries on which b is better than, equal to,
        worse than a. Pairs in the order of `series`, measures within.

    Raises:
        InputError: there is no such reference, or no second system.
        ValueError: shapes do not fit, there is no query, a value is not finite, or an option is out of its range.
    """
    if reference is not None and reference not in series:
        raise InputError(f"cannot compare with {reference!r}: no such system; choose one of {', '.join(series)}")
    if len(series) < 2:
        raise InputError(f"a comparison takes two systems or more; got {', '.join(series) or 'none'}")
    arrays = {
        name: _checked(np.atleast_2d(np.asarray(values, dtype=np.float64)), resamples, confidence)
        for name, values in series.items()
    }
    shapes = {array.shape for array in arrays.values()}
    if len(shapes) > 1 or next(iter(shapes))[0] != len(measures):
        raise ValueError(f"values of shapes {sorted(shapes)} do not fit {len(measures)} measures of the same queries")
    pairs = [(a, b) for a, b in combinations(arrays, 2) if reference is None]
    pairs += [(reference, name) for name in arrays if reference not in (None, name)]

    found: list[tuple[float | int, ...]] = []
    step = max(1, SERIES_AT_ONCE // len(measures))
    for start in range(0, len(pairs), step):
        differences = np.concatenate([_differences(arrays[a], arrays[b]) for a, b in pairs[start : start + step]])
        low, high = _bootstrap(differences, resamples, confidence, seed, accelerated=False)
        wins, losses = (differences > 0).sum(axis=1), (differences < 0).sum(axis=1)
        ties = differences.shape[1] - wins - losses
        p = _sign_flips(differences, resamples, seed)
        columns = (differences.mean(axis=1), low, high, p, p, wins, ties, losses)
        found += zip(*(column.tolist() for column in columns), strict=True)
    names = [(a, b, measure) for a, b in pairs for measure in measures]
    rows = [(*name, *row) for name, row in zip(names, found, strict=True)]
    table = pl.DataFrame(rows, schema=SCHEMA, orient="row")
    return table.with_columns(pl.Series("p_holm", holm(table["p"].to_numpy())))


def holm(p: ArrayLike) -> Floats:
    """Return p corrected for their number (Holm 1979), in the order given: (n,) float64 in 0..1.

    >>> holm([0.01, 0.04, 0.03, 0.005]).round(3).tolist()
    [0.03, 0.06, 0.06, 0.02]
    """
    given = np.asarray(p, dtype=np.float64)
    order = np.argsort(given, kind="stable")
    corrected = np.empty_like(given)
    corrected[order] = np.maximum.accumulate(given[order] * np.arange(len(given), 0, -1)).clip(max=1.0)
    return corrected


def _bootstrap(
    series: Floats, resamples: int, confidence: float, seed: int, *, accelerated: bool
) -> tuple[Floats, Floats]:
    # Sorted, so that the same draws mean the same whatever the order of the queries.
    series = np.sort(series, axis=1)
    means = _resampled_means(series, resamples, seed)
    tails = np.array([(1 - confidence) / 2, (1 + confidence) / 2])
    levels = _bca_levels(series, means, tails) if accelerated else np.broadcast_to(tails, (len(series), 2))
    bounds = np.array([np.quantile(column, level) for column, level in zip(means.T, levels, strict=True)])
    equal = series[:, 0] == series[:, -1]
    bounds[equal] = series[equal, :1]
    return bounds[:, 0], bounds[:, 1]


def _bca_levels(series: Floats, means: Floats, tails: Floats) -> Floats:
    """Return which quantiles of the resampled means bound each interval, (n_series, 2)."""
    centre = series.mean(axis=1)
    # Sums of the same values in another order differ in their last bits, and are ties all the same.
    slack = 1e-12 * np.abs(series).max(axis=1)
    below = (means < centre - slack).mean(axis=0)
    tied = (np.abs(means - centre) <= slack).mean(axis=0)
    bias = ndtri((below + tied / 2).clip(0.5 / len(means), 1 - 0.5 / len(means)))

    deviations = series - centre[:, None]
    skew = (deviations**3).sum(axis=1)
    spread = 6 * (deviations**2).sum(axis=1) ** 1.5
    acceleration = np.divide(skew, spread, out=np.zeros_like(skew), where=spread > 0)
    shifted = bias[:, None] + ndtri(tails)
    # Past 1 the formula turns round; its limit there is the end of the distribution.
    room = np.maximum(1 - acceleration[:, None] * shifted, 1e-9)
    levels: Floats = ndtr(bias[:, None] + shifted / room)
    return levels


def _resampled_means(series: Floats, resamples: int, seed: int) -> Floats:
    """Return the means of resampled series, (resamples, n_series)."""
    n = series.shape[1]
    rng = np.random.default_rng(seed)
    means = np.empty((resamples, len(series)))
    rows = max(1, BLOCK // n)
    for start in range(0, resamples, rows):
        size = min(rows, resamples - start)
        drawn = rng.integers(0, n, size=(size, n)) + n * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n)
        means[start : start + size] = counts.astype(np.float64) @ series.T / n
    return means


def _sign_flips(differences: Floats, resamples: int, seed: int) -> Floats:
    """Return the two-sided p of each row, (n_rows,)."""
    n = differences.shape[1]
    observed = np.abs(differences.sum(axis=1))
    # Sorted, largest first: p then does not depend on the order of the queries, and what is 0 can be cut off.
    sizes = -np.sort(-np.abs(differences), axis=1)
    totals = sizes.sum(axis=1)
    bar = observed - 1e-10 * totals
    moved = (sizes > 0).sum(axis=1)
    p = np.empty(len(sizes))

    exact = moved <= np.log2(resamples)
    for row in np.flatnonzero(exact):
        width = int(moved[row])
        signs = (np.arange(2**width)[:, None] >> np.arange(width)) & 1
        sums = np.abs(2 * (signs @ sizes[row, :width]) - totals[row])
        p[row] = np.mean(sums >= bar[row])
    many = np.flatnonzero(~exact)
    if not len(many):
        return p

    # A stream apart from that of the interval.
    rng = np.random.default_rng([seed, 1])
    width, n_bytes = int(moved[many].max()), -(-n // 8)
    extreme = np.zeros(len(many), dtype=np.int64)
    rows = max(1, BLOCK // n)
    for start in range(0, resamples, rows):
        size = min(rows, resamples - start)
        dealt = np.frombuffer(rng.bytes(size * n_bytes), dtype=np.uint8).reshape(size, n_bytes)
        bits = np.unpackbits(dealt, axis=1, count=width).astype(np.float64)
        sums = np.abs(2 * (bits @ sizes[many, :width].T) - totals[many])
        extreme += (sums >= bar[many]).sum(axis=0)
    p[many] = (extreme + 1) / (resamples + 1)
    return p


def _differences(a: Floats, b: Floats) -> Floats:
    differences = b - a
    rounding = 1e-12 * np.maximum(np.abs(a), np.abs(b))
    return np.where(np.abs(differences) <= rounding, 0.0, differences)


def _checked(series: Floats, resamples: int, confidence: float) -> Floats:
    if not series.shape[-1]:
        raise ValueError("values of no query have no mean and no interval")
    if not np.isfinite(series).all():
        raise ValueError("a value is NaN or infinite; every query takes a number")
    if resamples < 1 or not 0 < confidence < 1:
        raise ValueError(f"resamples must be 1 or more and confidence in (0, 1), got {resamples!r} and {confidence!r}")
    return series
