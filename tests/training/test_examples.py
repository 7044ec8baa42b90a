"""What each recipe makes of a hand-made table."""

from __future__ import annotations

import polars as pl
import pytest

from nestling.errors import InputError
from nestling.judgments.table import Judgments
from nestling.training.examples import positive_pairs, scored_pairs
from nestling.training.recipes import RECIPES, find_recipe

ROWS = [("saw", "hand saw", 3.0), ("saw", "saw blade", 2.0), ("drill", "drill bit", 1.0)]


@pytest.fixture
def judgments() -> Judgments:
    return Judgments.from_frame(pl.DataFrame(ROWS, schema=["query", "document", "score"], orient="row"), scale=(1, 3))


def test_positive_pairs_are_those_above_the_threshold(judgments: Judgments):
    assert positive_pairs(judgments, 2.5).to_dict() == {"anchor": ["saw"], "positive": ["hand saw"]}


def test_scored_pairs_are_all_with_scores_from_0_to_1(judgments: Judgments):
    examples = scored_pairs(judgments, 2.5).to_dict()
    scores = dict(zip(examples["document"], examples["score"], strict=True))
    assert scores == {"hand saw": 1.0, "saw blade": 0.5, "drill bit": 0.0}


def test_no_positive_pair_is_refused(judgments: Judgments):
    with pytest.raises(InputError, match="no training pair is scored above 3"):
        positive_pairs(judgments, 3.0)


def test_equal_scores_cannot_be_ranked(judgments: Judgments):
    with pytest.raises(InputError, match="all training pairs have the same score"):
        scored_pairs(judgments.take([0]), 2.5)


def test_an_unknown_recipe_is_answered_with_the_known_ones():
    with pytest.raises(InputError, match="unknown recipe 'mse'; choose pretrained, mnrl, cosine, cosent"):
        find_recipe("mse")


def test_every_recipe_gives_a_loss_that_can_be_computed(judgments: Judgments, tiny_model):
    for recipe in RECIPES.values():
        examples = recipe.examples(judgments, 1.5)
        *columns, last = examples.column_names
        labels = None
        if last == "score":
            import torch

            labels = torch.tensor(examples["score"])
        else:
            columns.append(last)
        features = [tiny_model.preprocess(list(examples[name])) for name in columns]
        assert recipe.loss(tiny_model)(features, labels).item() > 0
