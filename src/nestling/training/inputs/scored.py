"""Recipes that learn from every score: the examples (anchor, document, score 0..1) with a loss of the library."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nestling.config.training import TrainingSettings
from nestling.errors import InputError
from nestling.judgments.table import Judgments
from nestling.training.losses.matryoshka import with_matryoshka
from nestling.training.spec import TrainingInputs, TrainingSpec

if TYPE_CHECKING:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer


def cosine(judgments: Judgments, spec: TrainingSpec, model: SentenceTransformer) -> TrainingInputs:
    """Prepare CosineSimilarityLoss: the squared error between a pair's cosine and its score."""
    from sentence_transformers.sentence_transformer.losses import CosineSimilarityLoss

    return TrainingInputs(scored_pairs(judgments), with_matryoshka(model, CosineSimilarityLoss(model), spec))


def cosent(judgments: Judgments, spec: TrainingSpec, model: SentenceTransformer) -> TrainingInputs:
    """Prepare CoSENTLoss: a pair with the higher score gets the higher cosine (Huang et al. 2024)."""
    from sentence_transformers.sentence_transformer.losses import CoSENTLoss

    return TrainingInputs(scored_pairs(judgments), with_matryoshka(model, CoSENTLoss(model), spec))


def check_scores_differ(judgments: Judgments) -> None:
    """Raise InputError if all scores are equal, so that there is nothing to learn from them."""
    if judgments.one_score:
        score = judgments.frame["score"][0]
        raise InputError(
            f"{judgments.source}: cosine and cosent learn from scores that differ, and here every pair has {score:g}; "
            "take mnrl, graded, distilled, static or adapter"
        )


def check_scores(judgments: Judgments, settings: TrainingSettings) -> None:
    """Raise InputError if a training with these settings has nothing to learn from the judgments."""
    if settings.finetune.loss in ("cosine", "cosent"):
        check_scores_differ(judgments)


def scored_pairs(judgments: Judgments) -> Dataset:
    """Return every pair, columns `anchor`, `document` and `score`, the score scaled to 0..1.

    Raises:
        InputError: all scores are equal, so that there is nothing to learn from them.
    """
    from datasets import Dataset

    check_scores_differ(judgments)
    frame = judgments.frame
    low, high = judgments.scale
    return Dataset.from_dict(
        {
            "anchor": frame["query"].to_list(),
            "document": frame["document"].to_list(),
            "score": ((frame["score"] - low) / (high - low)).to_list(),
        }
    )
