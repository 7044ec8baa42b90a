"""Recipes as steps, and the settings that lie above and below them."""

from __future__ import annotations

import re

import pytest

from nestling.config.experiment import Experiment
from nestling.config.recipes import RECIPES, find_recipe
from nestling.config.training import (
    ConcatStatic,
    Distill,
    Finetune,
    MergeBase,
    Rotate,
    TrainingSettings,
    _warn,
    layered,
)
from nestling.config.yaml_files import make_experiment
from nestling.errors import InputError


def settings(recipe: str, **options: object) -> TrainingSettings:
    return TrainingSettings.model_validate(layered(RECIPES[recipe].defaults, options))


def test_graded_is_four_steps():
    found = settings("graded").steps
    first = Finetune(loss="graded", positives="middle", negatives=1, batches="similar", crops=1, bm25=0.5)
    assert found == (first, MergeBase(share=0.2), ConcatStatic(), Rotate())


@pytest.mark.parametrize("recipe", list(RECIPES))
def test_the_settings_of_a_recipe_have_its_steps(recipe: str):
    assert settings(recipe).steps == RECIPES[recipe].steps


def test_an_unknown_recipe_is_answered_with_the_known_ones():
    known = "pretrained, graded, distilled, mnrl, static, adapter, cosine, cosent"
    with pytest.raises(InputError, match=f"unknown recipe 'mse'; choose {known}"):
        find_recipe("mse")


def test_a_step_is_left_out_taken_or_changed_by_what_lies_above():
    assert settings("graded", rotate=False, merge_base=None).steps[1:] == (ConcatStatic(),)
    assert settings("mnrl", distill=True).steps == (Finetune(), Distill())
    assert settings("graded", merge_base=True).merge_base == MergeBase(share=0.2)
    changed = settings("graded", finetune={"crops": 3}, merge_base={"share": 0.4})
    assert (changed.finetune.crops, changed.finetune.bm25, changed.merge_base) == (3, 0.5, MergeBase(share=0.4))


@pytest.mark.parametrize(
    ("recipe", "options"), [("static", {}), ("adapter", {}), ("cosent", {}), ("mnrl", {"fast": False})]
)
def test_steps_that_what_is_trained_has_no_use_for_are_not_made(recipe: str, options: dict[str, object]):
    asked = settings(recipe, distill=True, rotate=True, concat_static=True, **options).steps[1:]
    assert asked == ((ConcatStatic(), Rotate()) if recipe in ("mnrl", "cosent") else ())


@pytest.mark.parametrize(
    ("training", "said"),
    [
        ({"merge_base": 0.3}, "merge_base: give true, false, or its settings as a mapping, not 0.3"),
        ({"finetune": False}, "finetune: the first step cannot be left out"),
        ({"finetune": {"crop": 1}}, "finetune.crop"),
        ({"merge_base": {"share": 2}}, "merge_base.share"),
    ],
)
@pytest.mark.parametrize("place", ["experiment", "variant"])
def test_what_is_no_step_or_no_setting_of_one_is_refused_by_name(place: str, training: dict[str, object], said: str):
    variant = {"recipe": "mnrl", "training": training}
    with pytest.raises(InputError, match=re.escape(said)):
        make_experiment({"training": training} if place == "experiment" else {"variants": [variant]})


OLD = [
    ({"alike": True}, {"finetune": {"batches": "similar"}}),
    ({"alike": False}, {"finetune": {"batches": "length"}}),
    (
        {"crops": 2, "bm25": 0.1, "scale": 15, "negatives": 2},
        {"finetune": {"crops": 2, "bm25": 0.1, "scale": 15, "negatives": 2}},
    ),
    ({"language": "german", "positives_above": 2}, {"finetune": {"language": "german", "positives_above": 2}}),
    ({"rotate_first": False}, {"finetune": {"rotate_first": False}}),
    ({"lexical": True}, {"concat_static": True}),
    ({"lexical": False}, {"concat_static": False}),
    ({"base_share": 0.3}, {"merge_base": {"share": 0.3}}),
    ({"base_share": 0}, {"merge_base": False}),
    ({"cross_encoder": 1.5}, {"distill": {"weight": 1.5}}),
    ({"cross_encoder": 0}, {"distill": False}),
]


@pytest.mark.parametrize(("old", "new"), OLD)
@pytest.mark.parametrize("recipe", ["mnrl", "distilled"])
def test_settings_of_the_version_before_are_understood_with_a_warning(
    recipe: str, old: dict[str, object], new: dict[str, object], caplog: pytest.LogCaptureFixture
):
    _warn.cache_clear()
    found = [
        experiment.training_of(experiment.variants[0])
        for each in (old, new)
        for experiment in [Experiment.model_validate({"variants": [{"recipe": recipe, "training": each}]})]
    ]
    assert found[0] == found[1]
    for name in old:
        assert f"training.{name} is now training." in caplog.text
