"""Figures as people read them: measures, changes, p, shares, bytes, and how a cell of the grid stores embeddings."""

from __future__ import annotations

LABELS = {"mrr": "MRR", "ndcg": "nDCG", "map": "MAP"}
SIGNIFICANT = 0.05
FINEST = 1e-4
UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def label(measure: str) -> str:
    """Return a measure as the field writes it: `MRR@10`, `nDCG@10`, `recall@10`."""
    name, _, k = measure.partition("@")
    return f"{LABELS.get(name, name)}@{k}"


def percent(change: float | None) -> str:
    """Return a signed percentage with one decimal, or nothing for None."""
    return "" if change is None else f"{change:+.1f}%"


def points(difference: float) -> str:
    """Return a difference of values in 0..1 as signed points of 100, with two decimals."""
    return f"{100 * difference:+.2f}"


def bounds(low: float | None, high: float | None) -> str:
    """Return an interval in few characters, as in `.8012-.8345`; nothing where there is none."""
    return "" if low is None or high is None else "-".join(f"{end:.4f}".removeprefix("0") for end in (low, high))


def p_value(p: float) -> str:
    """Return a p as the field prints it: `.012`, `.0004`, `<.0001`; never rounded across the level of .05."""
    if p < FINEST:
        return "<.0001"
    decimals = 3 if p >= 10 * FINEST else 4
    while decimals < 8 and (round(p, decimals) < SIGNIFICANT) != (p < SIGNIFICANT):
        decimals += 1
    return f"{p:.{decimals}f}".removeprefix("0")


def p_equation(p: float) -> str:
    """Return a p with its sign of relation: `p = .012`, `p < .0001`."""
    text = p_value(p)
    return f"p < {text[1:]}" if text.startswith("<") else f"p = {text}"


def size(n_bytes: float) -> str:
    """Return a number of bytes in decimal units with three digits: `50 B`, `1.54 kB`, `30.7 MB`, `154 GB`."""
    if n_bytes < 1000:
        return f"{n_bytes:.0f} B"
    value, unit = float(n_bytes), 0
    # 999,950 is 1.00 MB, as 1000 kB is no figure of three digits.
    while value >= 999.5 and unit < len(UNITS) - 1:
        value, unit = value / 1000, unit + 1
    decimals = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{decimals}f} {UNITS[unit]}"


def stored_as(precision: str, rotation: str, oversampling: int, *, long: bool = False) -> str:
    """Return in words how a cell stores embeddings: `int8, PCA, rescored x4`; `long` says `PCA-rotated`."""
    rotated = {"none": "", "pca": "PCA-rotated" if long else "PCA", "trained": "rotated"}.get(rotation, rotation)
    return ", ".join(filter(None, (precision, rotated, f"rescored x{oversampling}" if oversampling else "")))
