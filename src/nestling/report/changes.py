"""Changes from one system to another on the same queries, with their significance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from nestling.report.format import SIGNIFICANT, label, p_equation, percent, points

Outcome = Literal["gain", "loss", "mixed", "open"]
ALPHA = 1e-12
"""Means that differ by less are the same but for rounding."""


@dataclass(frozen=True)
class Change:
    """One measure of two systems on the same queries: means in 0..1, the difference's interval of 95 % and its p."""

    measure: str
    base: float
    value: float
    low: float
    high: float
    p: float

    @property
    def outcome(self) -> Outcome:
        """`gain` or `loss` where the difference is significant, else `open`."""
        if self.p >= SIGNIFICANT or abs(self.value - self.base) < ALPHA:
            return "open"
        return "gain" if self.value > self.base else "loss"

    def __str__(self) -> str:
        unproven = "" if self.p < SIGNIFICANT else ", not significant"
        if self.base > 0:
            gain, low, high = (percent(100 * x / self.base) for x in (self.value - self.base, self.low, self.high))
            change = f"{gain}, interval {low} to {high}"
        else:
            change = f"{points(self.value - self.base)} points, interval {points(self.low)} to {points(self.high)}"
        return f"{label(self.measure)} {self.base:.4f} → {self.value:.4f} ({change}; {p_equation(self.p)}{unproven})"


def outcome_of(changes: Sequence[Change]) -> Outcome:
    """Return the outcome of several measures: `mixed` where one gains and another loses significantly."""
    outcomes = {change.outcome for change in changes} - {"open"}
    return "mixed" if len(outcomes) > 1 else next(iter(outcomes), "open")


def unchanged(changes: Sequence[Change]) -> bool:
    """Return whether all means are the same."""
    return all(abs(change.value - change.base) < ALPHA for change in changes)


def sentence(changes: Sequence[Change]) -> str:
    """Return the changes with "and" between them."""
    return " and ".join(map(str, changes))


def changes_of(
    compared: pl.DataFrame, series: Mapping[str, NDArray[np.float64]], a: str, b: str, measures: Sequence[str]
) -> list[Change]:
    """Return the change of each measure from `a` to `b`, as far as they are in `compared` (`significance.SCHEMA`).

    Args:
        series: (n_measures, n_queries) of both.
    """
    return [
        Change(measure, float(series[a][n].mean()), float(series[b][n].mean()), row["low"], row["high"], row["p_holm"])
        for n, measure in enumerate(measures)
        for row in compared.filter(a=a, b=b, measure=measure).iter_rows(named=True)
    ]
