"""Statistics of per-query values: intervals of means, paired comparisons of systems, p corrected for their number.

Queries are the sample, so every interval and every p speaks of other queries of the same kind, not of other training
seeds or other raters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray

from nestling.errors import InputError

RESAMPLES = 10_000
BLOCK = 2_000_000
"""Numbers in one block of counts or signs: working memory is about 24 bytes for each."""
SERIES_AT_ONCE = 256

Floats = NDArray[np.float64]

MEANS = {"measure": pl.String, **dict.fromkeys(("value", "low", "high"), pl.Float64), "queries": pl.Int64}
SCHEMA = {
    **dict.fromkeys(("a", "b", "measure"), pl.String),
    **dict.fromkeys(("difference", "low", "high", "p", "p_holm"), pl.Float64),
    **dict.fromkeys(("wins", "ties", "losses"), pl.Int64),
}


def interval(values: ArrayLike, *, resamples: int = RESAMPLES) -> tuple[Floats, Floats]:
    """Return the bootstrap interval of 95 % of the mean over queries: low and high, () or (n_series,) float64.

    BCa (Efron 1987) and not plain percentiles, since values pile up at 0 or 1 and a slice has few of them. The result
    depends neither on the order of the queries nor, but for the last bits, on the other series. Where all values of a
    series are equal, as of a single query, both are that value. Values are (n_queries,) or (n_series, n_queries),
    finite, in 0..1.
    """
    array = np.asarray(values, dtype=np.float64)
    low, high = _bootstrap(_checked(array), resamples, "BCa")
    return low.reshape(array.shape[:-1]), high.reshape(array.shape[:-1])


def means_by(per_query: pl.DataFrame, by: Sequence[str]) -> pl.DataFrame:
    """Return the mean of every measure over queries, with its interval, for each system: columns `by` and `MEANS`.

    `per_query` has a row for each system and query, as many queries in all; floating-point columns are measures.
    """
    measures = per_query.select(pl.selectors.float()).columns
    tables = per_query.partition_by(by, maintain_order=True, as_dict=True)
    # By columns, so that means are summed in one order, whatever the number of systems.
    values = np.asfortranarray(np.concatenate([table.select(measures).to_numpy().T for table in tables.values()]))
    names = [(*name, measure) for name in tables for measure in measures]
    figures = zip(names, values.mean(axis=1).tolist(), *(bound.tolist() for bound in interval(values)), strict=True)
    rows = [(*name, *numbers, values.shape[1]) for name, *numbers in figures]
    return pl.DataFrame(rows, schema={**per_query.select(by).schema, **MEANS}, orient="row")


def compare_all(
    series: Mapping[str, ArrayLike],
    *,
    measures: Sequence[str] = ("value",),
    reference: str | None = None,
    resamples: int = RESAMPLES,
) -> pl.DataFrame:
    """Compare every pair of systems, or each with a reference, on every measure, by queries.

    p is of Fisher's paired randomisation test, as Smucker, Allan and Carterette (2007) recommend for retrieval: exact
    where there are no more assignments of signs than `resamples`; else of as many random ones and the one observed, so
    never 0 (Phipson and Smyth 2010). Values that differ by rounding alone are ties. The interval of a difference is of
    a paired bootstrap's percentiles, which here hold the true one more often than BCa, since most differences are 0.
    With fewer than 50 queries it promises too much.

    Args:
        series: system -> (n_queries,) or (n_measures, n_queries), finite, the queries in the same order in all.
        reference: the system that all others are compared with; by default every pair is compared.

    Returns a row for each pair, in the order of `series`, and measure, columns as `SCHEMA`: `difference` is the mean of
    b - a, and a is the reference or the earlier one; `p_holm` is corrected for the number of rows, so call once for
    each measure where they are separate questions; wins, ties and losses are queries on which b is better than, equal
    to, worse than a.
    """
    if reference is not None and reference not in series:
        raise InputError(f"cannot compare with {reference!r}: no such system; choose one of {', '.join(series)}")
    if len(series) < 2:
        raise InputError(f"a comparison takes two systems or more; got {', '.join(series) or 'none'}")
    arrays = {name: _checked(np.asarray(values, dtype=np.float64)) for name, values in series.items()}
    shapes = {array.shape for array in arrays.values()}
    if len(shapes) > 1 or next(iter(shapes))[0] != len(measures):
        raise ValueError(f"values of shapes {sorted(shapes)} do not fit {len(measures)} measures of the same queries")
    pairs = list(combinations(arrays, 2))
    if reference is not None:
        pairs = [(reference, name) for name in arrays if name != reference]
    names = [(*pair, measure) for pair in pairs for measure in measures]

    ones, others = (np.concatenate([arrays[pair[side]] for pair in pairs]) for side in (0, 1))
    differences = np.where(np.isclose(ones, others, rtol=1e-12, atol=0), 0.0, others - ones)
    wins, losses = (differences > 0).sum(axis=1), (differences < 0).sum(axis=1)
    ties = differences.shape[1] - wins - losses
    p = _sign_flips(differences, resamples)
    low, high = _bootstrap(differences, resamples, "percentile")
    columns = (differences.mean(axis=1), low, high, p, holm(p), wins, ties, losses)
    return pl.DataFrame([*zip(*names, strict=True), *columns], schema=SCHEMA)


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


def _bootstrap(series: Floats, resamples: int, method: str) -> tuple[Floats, Floats]:
    """Return the bounds of each series' mean by scipy.stats.bootstrap, of a series of equal values that value."""
    from scipy import stats

    # Sorted, so that the same draws mean the same whatever the order of the queries.
    series = np.sort(series, axis=1)
    low, high, n = series[:, 0].copy(), series[:, 0].copy(), series.shape[1]
    # Values that differ by rounding alone count as equal: BCa has no bounds for them.
    varied = np.flatnonzero(series[:, -1] - series[:, 0] > 1e-9 * n)
    for start in range(0, len(varied), SERIES_AT_ONCE):
        rows = varied[start : start + SERIES_AT_ONCE]

        def means(drawn: NDArray[np.int64], axis: int, rows: NDArray[np.int64] = rows) -> Floats:
            """Means of all series over the same drawn queries: how often each is drawn, in one matrix product."""
            places = drawn.reshape(-1, drawn.shape[axis])
            counts = np.bincount((places + n * np.arange(len(places))[:, None]).ravel(), minlength=n * len(places))
            sums = series[rows] @ counts.reshape(-1, n).T.astype(np.float64)
            # Sums of the same values in another order differ in their last bits, and are ties all the same.
            return (sums / places.shape[1]).round(12).reshape(-1, *drawn.shape[:-1])

        low[rows], high[rows] = stats.bootstrap(
            (np.arange(n),), means, n_resamples=max(2, resamples), batch=max(1, BLOCK // n), method=method, rng=0
        ).confidence_interval
    return low, high


def _sign_flips(differences: Floats, resamples: int) -> Floats:
    """Return the two-sided p of each row, (n_rows,)."""
    n = differences.shape[1]
    # Sorted, largest first: p then does not depend on the order of the queries, and what is 0 can be cut off.
    sizes = -np.sort(-np.abs(differences), axis=1)
    totals = sizes.sum(axis=1)
    bar = np.abs(differences.sum(axis=1)) - 1e-10 * totals
    moved = (sizes > 0).sum(axis=1)
    exact = moved <= np.log2(resamples)
    p = np.empty(len(sizes))
    for row in np.flatnonzero(exact):
        signs = (np.arange(2 ** moved[row])[:, None] >> np.arange(moved[row])) & 1
        p[row] = np.mean(np.abs(2 * (signs @ sizes[row, : moved[row]]) - totals[row]) >= bar[row])
    many = np.flatnonzero(~exact)
    if not len(many):
        return p

    rng = np.random.default_rng([0, 1])
    width, n_bytes = int(moved[many].max()), -(-n // 8)
    extreme = np.zeros(len(many), dtype=np.int64)
    rows = max(1, BLOCK // max(n, len(many)))
    for start in range(0, resamples, rows):
        size = min(rows, resamples - start)
        drawn = np.frombuffer(rng.bytes(size * n_bytes), dtype=np.uint8).reshape(size, n_bytes)
        bits = np.unpackbits(drawn, axis=1, count=width).astype(np.float64)
        sums = np.abs(2 * (bits @ sizes[many, :width].T) - totals[many])
        extreme += (sums >= bar[many]).sum(axis=0)
    p[many] = (extreme + 1) / (resamples + 1)
    return p


def _checked(values: Floats) -> Floats:
    """Return values as (n_series, n_queries)."""
    if values.ndim not in (1, 2):
        raise ValueError(f"values of shape {values.shape} are neither (n_queries,) nor (n_series, n_queries)")
    if not values.shape[-1]:
        raise ValueError("values of no query have no mean and no interval")
    if not np.isfinite(values).all():
        raise ValueError("a value is NaN or infinite; every query takes a number")
    return np.atleast_2d(values)
