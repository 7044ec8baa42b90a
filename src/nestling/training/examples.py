"""Judgments become training examples: (anchor, positive) or (anchor, document, score)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nestling.errors import InputError
from nestling.judgments.table import Judgments

if TYPE_CHECKING:
    from datasets import Dataset


def positive_pairs(judgments: Judgments, threshold: float) -> Dataset:
    """Return the pairs scored above the threshold, columns `anchor` (the query) and `positive` (the document).

    Raises:
        InputError: no pair is scored above the threshold.
    """
    from datasets import Dataset

    frame = judgments.above(threshold).frame
    if frame.is_empty():
        raise InputError(f"{judgments.source}: no training pair is scored above {threshold:g}; lower the threshold")
    return Dataset.from_dict({"anchor": frame["query"].to_list(), "positive": frame["document"].to_list()})


def scored_pairs(judgments: Judgments, threshold: float) -> Dataset:
    """Return every pair, columns `anchor`, `document` and `score`, the score scaled to 0..1. The threshold is unused.

    Raises:
        InputError: all scores are equal, so that there is nothing to learn from them.
    """
    from datasets import Dataset

    frame = judgments.frame
    low, high = judgments.scale
    if frame["score"].n_unique() < 2 or high <= low:
        raise InputError(
            f"{judgments.source}: all training pairs have the same score; use a recipe that needs no scores"
        )
    return Dataset.from_dict(
        {
            "anchor": frame["query"].to_list(),
            "document": frame["document"].to_list(),
            "score": ((frame["score"] - low) / (high - low)).to_list(),
        }
    )
