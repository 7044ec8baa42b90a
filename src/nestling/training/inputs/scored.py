"""Recipes that learn from every score: the examples (anchor, document, score 0..1) with a loss of the library."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nestling.config.training import TrainingSettings
from nestling.errors import InputError
from nestling.judgments.table import Judgments
from nestling.training.spec import TrainingInputs, TrainingSpec

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from torch import nn


def scored(judgments: Judgments, spec: TrainingSpec, model: SentenceTransformer) -> TrainingInputs:
    """Prepare every pair, its score scaled to 0..1, with one of two losses of the library.

    `cosine`: CosineSimilarityLoss, the squared error between a pair's cosine and its score. `cosent`: CoSENTLoss, a
    pair with the higher score gets the higher cosine (Huang et al. 2024).
    """
    from datasets import Dataset
    from sentence_transformers.sentence_transformer.losses import CoSENTLoss, CosineSimilarityLoss

    check_scores(judgments, spec.settings)
    frame, (low, high) = judgments.frame, judgments.scale
    columns = {"anchor": frame["query"], "document": frame["document"], "score": (frame["score"] - low) / (high - low)}
    examples = Dataset.from_dict({name: column.to_list() for name, column in columns.items()})
    loss = CoSENTLoss if spec.settings.finetune.loss == "cosent" else CosineSimilarityLoss
    return TrainingInputs(examples, with_matryoshka(model, loss(model), spec))


def with_matryoshka(model: SentenceTransformer, loss: nn.Module, spec: TrainingSpec) -> nn.Module:
    """Sum `loss` over the spec's prefixes (Kusupati et al. 2022, arXiv 2205.13147); as it is where it has none."""
    from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss

    if not spec.matryoshka:
        return loss
    wrapped: nn.Module = MatryoshkaLoss(model, loss, matryoshka_dims=spec.matryoshka, matryoshka_weights=spec.weights)
    return wrapped


def check_scores(judgments: Judgments, settings: TrainingSettings) -> None:
    """Raise InputError if a training with these settings has nothing to learn, as all scores are equal."""
    if settings.finetune.loss in ("cosine", "cosent") and judgments.one_score:
        score = judgments.frame["score"][0]
        raise InputError(
            f"{judgments.source}: cosine and cosent learn from scores that differ, and here every pair has {score:g}; "
            "take mnrl, graded, distilled, static or adapter"
        )
