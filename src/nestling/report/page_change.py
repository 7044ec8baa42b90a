"""A difference between two systems in words, with its interval and its p; and what several of them say together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from nestling.report.tables import SIGNIFICANT, label, p_value, percent, points

ALPHA = 1e-12
"""Means that differ by less are the same but for rounding."""

Outcome = Literal["gain", "loss", "mixed", "open"]


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
        p = p_value(self.p)
        proof = f"p {p[0]} {p[1:]}" if p.startswith("<") else f"p = {p}"
        unproven = "" if self.p < SIGNIFICANT else ", not significant"
        if self.base > 0:
            gain, low, high = (percent(100 * x / self.base) for x in (self.value - self.base, self.low, self.high))
            change = f"{gain}, interval {low} to {high}"
        else:
            change = f"{points(self.value - self.base)} points, interval {points(self.low)} to {points(self.high)}"
        return f"{label(self.measure)} {self.base:.4f} → {self.value:.4f} ({change}; {proof}{unproven})"


def outcome_of(changes: Sequence[Change]) -> Outcome:
    """Return what several measures say together: `mixed` where one gains and another loses significantly."""
    found = {change.outcome for change in changes}
    if {"gain", "loss"} <= found:
        return "mixed"
    return "gain" if "gain" in found else "loss" if "loss" in found else "open"


def sentence(text: str) -> str:
    """Return `text` with a capital at its start; names of variants keep their case."""
    first = text.split(" ", 1)[0]
    return text[0].upper() + text[1:] if first in {"the", "between", "what", "stemmed", "unstemmed"} else text
