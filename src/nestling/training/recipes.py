"""The recipes: a name -> the examples that a variant trains on and its loss. The one place where they are listed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nestling.errors import InputError
from nestling.judgments.table import Judgments
from nestling.training import contrastive, scored
from nestling.training.job import Job, Material

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

PRETRAINED = "pretrained"
"""Not a recipe but the lack of one: the base model as it is."""


@dataclass(frozen=True)
class Recipe:
    """How a variant is trained.

    Attributes:
        prepare: (train split, job, model) -> data, loss and batches.
        summary: one line for a person.
    """

    prepare: Callable[[Judgments, Job, SentenceTransformer], Material]
    summary: str


RECIPES: dict[str, Recipe] = {
    "graded": Recipe(
        contrastive.graded,
        "InfoNCE with every relevant document of the batch as a positive weighted by its score, documents judged low "
        "as hard negatives, and both directions",
    ),
    "mnrl": Recipe(
        contrastive.mnrl,
        "multiple negatives ranking (InfoNCE) on the pairs above the threshold, other documents as negatives",
    ),
    "cosine": Recipe(
        scored.cosine,
        "squared error between cosine and score, all pairs, scores scaled to 0..1",
    ),
    "cosent": Recipe(
        scored.cosent,
        "CoSENT: cosines in the order of the scores, all pairs, scores scaled to 0..1",
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
