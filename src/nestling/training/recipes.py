"""The recipes: a name -> the examples that a variant trains on and its loss. The one place where they are listed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nestling.errors import InputError
from nestling.judgments.table import Judgments
from nestling.training import examples

if TYPE_CHECKING:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer
    from torch import nn

PRETRAINED = "pretrained"
"""Not a recipe but the lack of one: the base model as it is."""


@dataclass(frozen=True)
class Recipe:
    """How a variant is trained.

    Attributes:
        examples: (judgments, threshold) -> a data set whose columns the loss takes in order.
        loss: the loss over a model.
        in_batch_negatives: whether other documents of a batch count as wrong, so that a batch should not hold the
            same text twice.
        summary: one line for a person.
    """

    examples: Callable[[Judgments, float], Dataset]
    loss: Callable[[SentenceTransformer], nn.Module]
    in_batch_negatives: bool
    summary: str


def _mnrl(model: SentenceTransformer) -> nn.Module:
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    loss: nn.Module = MultipleNegativesRankingLoss(model)
    return loss


def _cosine(model: SentenceTransformer) -> nn.Module:
    from sentence_transformers.sentence_transformer.losses import CosineSimilarityLoss

    loss: nn.Module = CosineSimilarityLoss(model)
    return loss


def _cosent(model: SentenceTransformer) -> nn.Module:
    from sentence_transformers.sentence_transformer.losses import CoSENTLoss

    loss: nn.Module = CoSENTLoss(model)
    return loss


RECIPES: dict[str, Recipe] = {
    "mnrl": Recipe(
        examples.positive_pairs,
        _mnrl,
        in_batch_negatives=True,
        summary="multiple negatives ranking (InfoNCE) on the pairs above the threshold, other documents as negatives",
    ),
    "cosine": Recipe(
        examples.scored_pairs,
        _cosine,
        in_batch_negatives=False,
        summary="squared error between cosine and score, all pairs, scores scaled to 0..1",
    ),
    "cosent": Recipe(
        examples.scored_pairs,
        _cosent,
        in_batch_negatives=False,
        summary="CoSENT: cosines in the order of the scores, all pairs, scores scaled to 0..1",
    ),
}


def find_recipe(name: str) -> Recipe:
    """Return the recipe of that name.

    Raises:
        InputError: there is none.
    """
    if name not in RECIPES:
        raise InputError(f"unknown recipe {name!r}; choose {', '.join([PRETRAINED, *RECIPES])}")
    return RECIPES[name]


def with_matryoshka(
    model: SentenceTransformer, loss: nn.Module, dims: tuple[int, ...], weights: tuple[float, ...] | None
) -> nn.Module:
    """Wrap `loss` so that it is summed over prefixes of the embedding (Kusupati et al. 2022, arXiv 2205.13147).

    Args:
        dims: sizes of the prefixes, the full size among them.
        weights: one for each of the dims; 1 each by default.
    """
    from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss

    wrapped: nn.Module = MatryoshkaLoss(model, loss, matryoshka_dims=dims, matryoshka_weights=weights)
    return wrapped
