"""Experiments: defaults, short forms, presets, the way through YAML, and errors that name line and key."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import get_args

import pytest
import yaml

from fixtures.places import ROOT
from nestling.config.experiment import Variant
from nestling.config.recipes import RECIPES
from nestling.config.training import Matryoshka, TrainingSettings
from nestling.config.yaml_files import load_experiment, make_experiment, make_settings
from nestling.errors import InputError
from nestling.study.train import source_of


def written(folder: Path, text: str) -> Path:
    path = folder / "experiment.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_without_a_file_it_is_the_demo_and_changes_count():
    demo = load_experiment(None, {"data.records": 500})
    assert (demo.name, demo.data.source, demo.data.records, demo.training.epochs) == ("demo", "toolshed", 500, 1)
    assert [v.name for v in demo.variants] == ["pretrained", "mnrl", "mnrl+matryoshka", "graded"]
    assert load_experiment(None).data.records == 2400


def test_an_experiment_survives_yaml():
    experiment = make_experiment(
        {
            "name": "x",
            "variants": ["pretrained@a/b", {"recipe": "cosent", "training": {"epochs": 2}}, "mnrl+matryoshka"],
        }
    )
    assert make_experiment(yaml.safe_load(experiment.to_yaml())) == experiment


def test_the_example_in_the_repository_is_valid():
    example = ROOT / "experiment.yaml"
    assert load_experiment(example).data.source == "toolshed"


def test_the_short_form_of_a_variant_names_recipe_matryoshka_and_base():
    experiment = make_experiment({"variants": ["mnrl+matryoshka@models/mine"]})
    variant = experiment.variants[0]
    assert (variant.name, variant.recipe, variant.base) == ("mnrl+matryoshka-models-mine", "mnrl", "models/mine")
    assert variant.matryoshka == Matryoshka()


def test_the_study_preset_sets_what_is_not_given():
    settings = make_settings(TrainingSettings, preset="study", epochs=2)
    assert (settings.epochs, settings.batch_size, settings.learning_rate) == (2, 8, 5e-5)
    assert (settings.schedule, settings.warmup, settings.attention_dropout) == ("linear", 0.0, None)


def test_a_variants_own_settings_stand_above_the_experiments():
    experiment = make_experiment(
        {"training": {"preset": "study", "seed": 3}, "variants": [{"recipe": "mnrl", "training": {"epochs": 1}}]}
    )
    settings = experiment.training_of(experiment.variants[0])
    assert (settings.epochs, settings.batch_size, settings.seed) == (1, 8, 3)


def test_dotted_changes_are_applied_on_top_of_the_file(tmp_path: Path):
    path = written(tmp_path, "training: {epochs: 5}\n")
    experiment = load_experiment(path, {"training.epochs": 1, "data.records": 100})
    assert (experiment.training.epochs, experiment.data.records) == (1, 100)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\ntraining:\n  epoch: 3\n", r"line 3: training\.epoch: unknown key; did you mean 'epochs'\?"),
        ("speed: 3\n", r"line 1: speed: unknown key"),
        ("training: {mined: 4}\n", r"line 1: training\.mined: was taken out, since it brought nothing"),
        ("variants: [{recipe: mnrl, training: {typos: 0.1}}]\n", r"variant mnrl: training\.typos: was taken out"),
        (
            "variants: [pretrained, mnr]\n",
            r"line 1: variants\.1\.recipe: unknown recipe 'mnr'; choose pretrained, graded, distilled, mnrl",
        ),
        ("variants: [mnrl+mat]\n", r"variants\.0: 'mnrl\+mat': after the recipe only \+matryoshka is known"),
        ("variants: []\n", r"variants needs at least one"),
        ("variants: [mnrl, mnrl]\n", r"two variants are called 'mnrl'"),
        ("variants: [{recipe: mnrl, training: {epochs: 0}}]\n", r"variant mnrl: training\.epochs: Input should be gre"),
        ("variants: [{recipe: pretrained, matryoshka: {}}]\n", r"pretrained is not trained"),
        ("evaluation:\n  dims: [48, 96]\n", r"line 2: evaluation\.dims: sizes must fall, as in 96, 48"),
        ("evaluation: {dims: [96, 96]}\n", r"evaluation\.dims: sizes must fall"),
        ("evaluation: {dims: [96, 0]}\n", r"evaluation\.dims: sizes must be 1 or more, not 0"),
        ("data: {threshold: high}\n", r"data\.threshold: .*valid number.*, not 'high'"),
        ("split: {test: 0.5, dev: 0.5}\n", r"split: test 0\.5 and dev 0\.5 leave nothing for train"),
        ("name: ../elsewhere\n", r"line 1: name: string should match pattern"),
        ("a: [\n", r"line 2: no valid YAML"),
        ("- 1\n", r"an experiment is a mapping"),
    ],
)
def test_what_is_wrong_is_one_line_with_file_line_and_key(tmp_path: Path, text: str, message: str):
    path = written(tmp_path, text)
    with pytest.raises(InputError, match=message) as raised:
        load_experiment(path)
    assert str(raised.value).startswith(str(path))
    assert "\n" not in str(raised.value)


def test_a_file_that_is_missing_or_no_text_is_one_line(tmp_path: Path):
    with pytest.raises(InputError, match="no such file or directory; give an experiment file"):
        load_experiment(tmp_path / "nope.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="is not UTF-8 text"):
        load_experiment(tmp_path / "binary.yaml")


def test_weights_need_dims_of_the_same_number():
    with pytest.raises(InputError, match="weights needs dims of the same number"):
        make_settings(Matryoshka, dims=(4, 2), weights=(1.0,))


def test_schedules_are_those_that_the_trainer_knows():
    from transformers import SchedulerType

    field = TrainingSettings.model_fields["schedule"].annotation
    assert set(get_args(field)) <= {kind.value for kind in SchedulerType}


def test_a_name_is_made_of_what_a_variant_is():
    assert Variant.model_validate({"recipe": "cosent", "base": "a/b", "matryoshka": {}}).name == "cosent+matryoshka-a-b"


def test_what_a_recipe_needs_stands_between_the_experiments_settings_and_the_variants():
    experiment = make_experiment(
        {
            "training": {"learning_rate": 1e-5, "seed": 7},
            "variants": ["mnrl", "static", {"name": "mine", "recipe": "static", "training": {"learning_rate": 0.1}}],
        }
    )
    rates = [experiment.training_of(variant).learning_rate for variant in experiment.variants]
    assert rates == [1e-5, RECIPES["static"].defaults["learning_rate"], 0.1]
    assert {experiment.training_of(variant).seed for variant in experiment.variants} == {7}


def test_prompts_are_those_of_the_experiment_s_model_and_a_variant_s_own(tiny_model_path: Path, tmp_path: Path):
    other = tmp_path / "other"
    shutil.copytree(tiny_model_path, other)
    experiment = make_experiment(
        {
            "model": str(tiny_model_path),
            "prompts": {"query": "query: ", "document": "passage: "},
            "variants": [
                "pretrained",
                {"name": "a", "recipe": "mnrl", "base": str(other)},
                {"name": "b", "recipe": "mnrl", "base": str(other), "prompts": {"query": "find: "}},
                {"name": "c", "recipe": "mnrl", "prompts": {}},
            ],
        }
    )
    found = [source_of(experiment, variant).prompts for variant in experiment.variants]
    assert [(each["query"], each["document"]) for each in found] == [
        ("query: ", "passage: "),
        ("", ""),
        ("find: ", ""),
        ("", ""),
    ]
    assert source_of(experiment).prompts == found[0]
