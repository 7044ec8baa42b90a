"""The score histogram, where its dip lies, and what each candidate threshold keeps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nestling.errors import InputError
from nestling.judgments.table import Judgments

MOST_VALUES = 25
"""Up to this many distinct scores each gets its own bar; beyond, the scale is cut into equal bins."""
STUDY_THRESHOLD = 2.5
STUDY_SCALE = (1.0, 3.0)


@dataclass(frozen=True)
class Bar:
    """One bar of the histogram: scores from `low` to `high` (equal for a single value), and how many records."""

    low: float
    high: float
    count: int


@dataclass(frozen=True)
class Candidate:
    """The outcome of the rule `score > threshold`: `kept` pairs, `share` of all (0..1)."""

    threshold: float
    kept: int
    share: float


def histogram(scores: np.ndarray) -> list[Bar]:
    """Count (n_records,) scores: a bar for each value if there are few, else twenty bins of equal width."""
    values, counts = np.unique(scores, return_counts=True)
    low, high = values, values
    if len(values) > MOST_VALUES:
        counts, edges = np.histogram(scores, bins=20)
        low, high = edges[:-1], edges[1:]
    return [Bar(float(a), float(b), int(c)) for a, b, c in zip(low, high, counts, strict=True)]


def dip(scores: np.ndarray, scale: tuple[float, float]) -> float | None:
    """Return where the density of (n_records,) scores is lowest between its two highest humps; None without two humps.

    A Gaussian kernel estimate with a bandwidth of a twelfth of the scale: wide enough that values which few raters'
    averages can take (2.25 where most pairs have three raters) are no dip, narrow enough to keep two humps apart.
    """
    low, high = scale
    if high <= low:
        return None
    values, counts = np.unique(scores, return_counts=True)
    grid = np.linspace(low, high, 401)
    bandwidth = (high - low) / 12
    # Mass is mirrored at the ends, so that a hump at the end of the scale is not cut in half.
    mirrored = np.concatenate([values, 2 * low - values, 2 * high - values])
    density = np.exp(-0.5 * ((grid[:, None] - mirrored[None, :]) / bandwidth) ** 2) @ np.tile(counts, 3)
    padded = np.concatenate([[-np.inf], density, [-np.inf]])
    humps = np.flatnonzero((padded[1:-1] > padded[:-2]) & (padded[1:-1] >= padded[2:]))
    if len(humps) < 2:
        return None
    first, second = np.sort(humps[np.argsort(-density[humps], kind="stable")[:2]])
    return float(grid[first + int(np.argmin(density[first : second + 1]))])


def candidates(scores: np.ndarray, *, most: int = 12) -> list[Candidate]:
    """Return about `most` thresholds, rising, with what each keeps: distinct scores but the highest, or quantiles."""
    values = np.unique(scores)[:-1]
    if len(values) > most:
        values = np.unique(np.quantile(scores, np.linspace(0.1, 0.9, most), method="lower"))
    kept = len(scores) - np.searchsorted(np.sort(scores), values, side="right")
    return [Candidate(float(v), int(k), int(k) / len(scores)) for v, k in zip(values, kept, strict=True) if k]


def settle_threshold(judgments: Judgments, threshold: float | None) -> float:
    """Return the threshold to use: the given one, 2.5 on a scale of 1 to 3, the middle where all scores are equal."""
    scores, (low, high) = judgments.frame["score"].to_numpy(), judgments.scale
    if threshold is None:
        if judgments.scale == STUDY_SCALE:
            threshold = STUDY_THRESHOLD
        elif judgments.one_score and high > 0:
            threshold = (low + high) / 2
        else:
            lowest = dip(scores, judgments.scale)
            hint = f"; the scores dip near {lowest:.2f}" if lowest is not None else ""
            raise InputError(
                f"{judgments.source}: on a scale of {low:g} to {high:g} give the threshold above which a document is "
                f"relevant (--threshold, or data.threshold){hint}"
            )
    kept = int(judgments.relevant(threshold).sum())
    mistaken = kept == len(scores) and threshold < low and not judgments.one_score
    if mistaken or not kept:
        unless = f"; where all are relevant, give --scale {threshold:g} {high:g}" if mistaken else ""
        raise InputError(
            f"{judgments.source}: threshold {threshold:g} keeps {'every' if mistaken else 'no'} pair of {len(scores)} "
            f"(scores run from {scores.min():g} to {scores.max():g}); see nestling inspect for what others keep{unless}"
        )
    return threshold
