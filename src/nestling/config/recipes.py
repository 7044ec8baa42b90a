"""The recipes: what each name stands for, as steps and the training settings that they need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nestling.config.names import PRETRAINED
from nestling.config.training import STEPS, ConcatStatic, Distill, Finetune, MergeBase, Rotate, Step
from nestling.errors import InputError

FINETUNE_GRADED = Finetune(loss="graded", positives="middle", negatives=1, batches="similar", crops=1, bm25=0.5)


@dataclass(frozen=True)
class Recipe:
    """A way to train a variant: a summary for people, the steps in order, and settings other than the general ones."""

    summary: str
    steps: tuple[Step, ...]
    training: Mapping[str, Any] = field(default_factory=dict)

    @property
    def defaults(self) -> dict[str, Any]:
        """Its settings, steps included. A variant's own settings stand above them, an experiment's below."""
        names = {kind: name for name, kind in STEPS.items()}
        return {**self.training, **{names[type(step)]: step.model_dump(exclude_unset=True) for step in self.steps}}


RECIPES: dict[str, Recipe] = {
    "graded": Recipe(
        "InfoNCE with all relevant documents of the batch as positives weighted by score, documents judged low and "
        "similar documents as hard negatives, queries made of documents, and BM25 as a teacher; concatenated with a "
        "table of word pieces",
        (FINETUNE_GRADED, MergeBase(share=0.2), ConcatStatic(), Rotate()),
        {"epochs": 2, "hidden_dropout": 0.0},
    ),
    "distilled": Recipe(
        "graded, then taught by a cross-encoder that is trained on the same judgments: several times as long",
        (FINETUNE_GRADED, MergeBase(share=0.2), Distill(weight=2.0), ConcatStatic(), Rotate()),
        {"epochs": 2, "hidden_dropout": 0.0},
    ),
    "mnrl": Recipe(
        "multiple negatives ranking (InfoNCE) on the pairs above the threshold, other documents as negatives",
        (Finetune(loss="mnrl"),),
    ),
    "static": Recipe(
        "a table of word-piece vectors in place of the transformer, trained like mnrl: a hundredth of the cost to run",
        (Finetune(start="static", positives="middle", scale=15.0, crops=1),),
        {"learning_rate": 0.005, "batch_size": 1024, "epochs": 3, "precision": "fp32"},
    ),
    "adapter": Recipe(
        "a linear layer on the frozen base model, trained like mnrl on vectors computed once: seconds on a CPU",
        (Finetune(start="adapter", positives="middle", scale=20.0),),
        {"learning_rate": 0.001, "batch_size": 256, "epochs": 5, "precision": "fp32"},
    ),
    "cosine": Recipe(
        "squared error between cosine and score, all pairs, scores scaled to 0..1", (Finetune(loss="cosine"),)
    ),
    "cosent": Recipe(
        "CoSENT: cosines in the order of the scores, all pairs, scores scaled to 0..1", (Finetune(loss="cosent"),)
    ),
}


def find_recipe(name: str) -> Recipe:
    """Return the recipe of that name; raise InputError where there is none."""
    if name not in RECIPES:
        raise InputError(f"unknown recipe {name!r}; choose {', '.join([PRETRAINED, *RECIPES])}")
    return RECIPES[name]
