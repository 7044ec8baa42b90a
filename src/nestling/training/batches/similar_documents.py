"""Batches of documents that resemble each other, so that each is a hard negative for the others' queries."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from nestling.training.batches.batching import LengthBatches


class SimilarBatches(LengthBatches):
    """Batches whose documents lie near each other, other ones in every epoch.

    Random batches hold easy negatives: a drill is seldom beside another drill. Here the pairs are shuffled and cut into
    stretches of `MEGA` batches as in LengthBatches, and each stretch is halved again and again, along the line between
    two documents drawn from it, down to batches: a random-projection tree (Dasgupta and Freund 2008, "Random projection
    trees and low dimensional manifolds"), balanced. Batches of clustered texts: TAS-Balanced (Hofstätter et al. 2021,
    arXiv 2104.06967) and CDE (Morris and Rush 2024, arXiv 2410.02525).

    Args:
        vectors: (n_pairs, dim) float, of each pair's document, by the base model.
        batch_size, seed, drop_last, processes: as in LengthBatches.
    """

    def __init__(
        self,
        vectors: NDArray[np.float32],
        batch_size: int,
        *,
        seed: int,
        drop_last: bool = False,
        processes: int = 1,
    ) -> None:
        super().__init__(
            np.zeros(len(vectors), dtype=np.int64), batch_size, seed=seed, drop_last=drop_last, processes=processes
        )
        self.vectors = vectors

    def batches_of(self, stretch: NDArray[np.int64], rng: np.random.Generator) -> list[NDArray[np.int64]]:
        """Halve a stretch of pairs until batches are left; all are full but one."""
        size = self.batch_size
        if len(stretch) <= size:
            return [stretch]
        vectors = self.vectors[stretch]
        first, second = vectors[rng.choice(len(stretch), 2, replace=False)]
        # Equal documents give a line of no direction: the halves are then those of the shuffled order.
        order = stretch[np.argsort(vectors @ (first - second), kind="stable")]
        middle = max(1, len(stretch) // size // 2) * size
        return self.batches_of(order[:middle], rng) + self.batches_of(order[middle:], rng)


def sampler_for(
    lengths: NDArray[np.int64], vectors: NDArray[np.float32] | None
) -> Callable[[int, int, int], LengthBatches]:
    """Return what makes batches of (batch size, seed, processes): of documents alike, or without vectors by length.

    Args:
        lengths: (n_pairs,) int64, tokens of each pair's document.
        vectors: (n_pairs, dim) float of each pair's document, or None.
    """

    def batches(size: int, seed: int, processes: int) -> LengthBatches:
        if vectors is None:
            return LengthBatches(lengths, size, seed=seed, processes=processes)
        return SimilarBatches(vectors, size, seed=seed, processes=processes)

    return batches
