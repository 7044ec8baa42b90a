"""The rule by which a step after a training is kept: where dev is not lower for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

FEW = 100
"""Dev queries below which an option is judged on queries that did not choose it."""
NOISE = 2.0
"""Standard errors of a difference by query that a prefix may be lower."""

Figures = NDArray[np.float64]
"""(n_sizes, n_measures, n_queries): recall@10 and MRR@10 on dev at each size, the largest first."""


def choose(options: Sequence[Figures], without: Figures) -> int | None:
    """Return the place of the option, the preferred first, that is best on dev, or None where dev is lower with it.

    Recall@10 decides, MRR@10 where that is equal, each a mean over queries and sizes; of equal options the first is
    taken. None of the sizes may be lower by itself: the full size not at all, a prefix by no more than `NOISE` standard
    errors of the paired difference. Where dev has few queries, each of them is measured with the option that the others
    choose (leave-one-out), so that several options have no better chance than one.
    """
    places = [place for place, option in enumerate(options) if not _is_lower(option, without)]
    if not places:
        return None
    chosen = _best(options, places)
    n_queries = without.shape[2]
    if 1 < n_queries < FEW and len(options) > 1:
        held_out = options[chosen].copy()
        for query in range(n_queries):
            others = [np.delete(option, query, axis=2) for option in options]
            held_out[..., query] = options[_best(others, range(len(options)))][..., query]
        if _means(held_out) < _means(without):
            return None
    return chosen


def _best(options: Sequence[Figures], places: Sequence[int]) -> int:
    return max(places, key=lambda place: (*_means(options[place]), -place))


def _means(figures: Figures) -> tuple[float, ...]:
    # Rounded, as sums of the same values in another order differ in the last bit.
    return tuple(np.round(figures.mean(axis=(0, 2)), 9))


def _is_lower(figures: Figures, without: Figures) -> bool:
    change = figures[:, 0] - without[:, 0]
    lost = -change.mean(axis=1)
    noise = NOISE * change.std(axis=1) / max(change.shape[1], 1) ** 0.5
    noise[0] = 0.0
    return _means(figures) < _means(without) or bool((lost > noise + 1e-9).any())


@dataclass(frozen=True)
class Guard:
    """Keeps a step after a training only where dev is not lower for it, and collects in lines what was left out."""

    say: Callable[[str], None] = lambda _: None
    left_out: list[str] = field(default_factory=list)

    def keep(self, step: str, options: Sequence[Figures], without: Figures) -> int | None:
        """Return what `choose` does; a step that is not kept is named in a line with its figures."""
        place = choose(options, without)
        if place is None:
            passing = [place for place, option in enumerate(options) if not _is_lower(option, without)]
            best = options[_best(options, passing or range(len(options)))]
            held_out = ", and lower with it on queries held out" if passing else ""
            self.leave_out(f"{step}: dev recall@10 {recalls(best)} with it, {recalls(without)} without{held_out}")
        return place

    def leave_out(self, line: str) -> None:
        """Record a step that was not kept."""
        self.left_out.append(line)
        self.say(f"left out: {line}")


def recalls(figures: Figures) -> str:
    """Return recall@10 at each size, as text."""
    return " ".join(f"{value:.4f}" for value in figures[:, 0].mean(axis=1))
