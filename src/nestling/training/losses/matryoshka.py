"""The library's Matryoshka loss around one of its losses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nestling.training.spec import TrainingSpec

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from torch import nn


def with_matryoshka(model: SentenceTransformer, loss: nn.Module, spec: TrainingSpec) -> nn.Module:
    """Sum `loss` over the spec's prefixes (Kusupati et al. 2022, arXiv 2205.13147); as it is where it has none."""
    from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss

    if not spec.matryoshka:
        return loss
    wrapped: nn.Module = MatryoshkaLoss(model, loss, matryoshka_dims=spec.matryoshka, matryoshka_weights=spec.weights)
    return wrapped
